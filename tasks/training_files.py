"""What a training keeps in its results_dir: its state, its networks, and its record."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, Json
from tasks.domain.images import Image
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_record import TrainingRecord, Validation, validation_from_json
from tasks.image_files import ImageSource, decode_unchanged
from tasks.models.mal.checkpoints import save_checkpoint
from tasks.models.mal.layouts import Role
from tasks.models.mal.network import MalNetwork
from tasks.models.mal.samples import Pixels, Reader
from tasks.models.mal.training_state import TrainingState, dump_state, load_state, network_of
from tasks.storage.folder import Folder, MissingFileError
from tasks.store import ArtifactStore

STATE = "checkpoints/last.pt"
NETWORK, BEST = "mal", "mal_best"
RECORD = "train.json"


@dataclass(frozen=True)
class Training:
    """What the steps of a training share: the spec, where things are, and a device for each process.

    `validation_source` is None where nothing is measured.
    """

    spec: TrainMalSpec = field(repr=False)
    results: Folder
    store: ArtifactStore
    source: ImageSource
    validation_source: ImageSource | None
    devices: tuple[str, ...]

    @property
    def boxes_per_step(self) -> int:
        """Boxes that all processes together see in a step."""
        return self.spec.train.boxes_per_step * len(self.devices)

    def asked(self, boxes: ArtifactRef) -> dict[str, Json]:
        """Everything on which the weights depend, by name; `boxes` refers to the boxes that are trained on."""
        return {**self.spec.learned_from, "boxes": boxes.sha256, "processes": len(self.devices)}


def reader(source: ImageSource) -> Reader:
    """Reads the pixels of an image as it was indexed. Raises ImageError where it is another one by now."""

    def read(image: Image) -> Pixels:
        return decode_unchanged(source.read(image.key), image)

    return read


def read_state(training: Training) -> TrainingState | None:
    """The state in results_dir; None where no training has begun. Raises CheckpointError where it is damaged."""
    try:
        data = training.results.read(STATE)
    except MissingFileError:
        return None
    return load_state(data, f"{STATE} in {without_password(training.results.uri)}")


def write_state(training: Training, state: TrainingState) -> None:
    """Put the state in place of the one before; whoever reads finds one of the two, whole."""
    training.results.write(STATE, dump_state(state))


def write_networks(training: Training, state: TrainingState, name: str) -> None:
    """Write student and teacher to a folder of results_dir, as a checkpoint to label with."""
    networks: dict[Role, MalNetwork] = {
        "student": network_of(training.spec, state.student),
        "teacher": network_of(training.spec, state.teacher),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, networks, training.spec.dataset.crop_size)
        # The config goes last: where it is, the weights are.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.suffix == ".json"):
            training.results.write(f"{name}/{file.name}", file.read_bytes())


def read_validations(results: Folder) -> dict[int, Validation]:
    """What was measured after which epoch, as far as the record tells."""
    try:
        rows = json.loads(results.read(RECORD))["epochs"]
        return {row["epoch"]: validation_from_json(row["validation"]) for row in rows if row["validation"]}
    except (MissingFileError, ValueError, KeyError, TypeError):
        return {}  # what is not known is measured again


def write_record(results: Folder, record: TrainingRecord) -> None:
    """Write `train.json`."""
    results.write(RECORD, json.dumps(record.to_json(), indent=2).encode())
