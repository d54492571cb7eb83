"""What a run of the loop works with, made from its spec; everything that can be refused early is refused here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

from flows.settings import settings_for
from tasks.domain.addresses import without_password
from tasks.domain.aggregation import AggregationRules, Dbscan, Nms, Wbf
from tasks.domain.annotations import Record
from tasks.domain.errors import ArtifactError, SpecError
from tasks.domain.iteration import Termination
from tasks.domain.schedule import Schedule
from tasks.domain.spec import ExperimentSpec
from tasks.export import Export
from tasks.formats.noun_chunks import load_noun_chunks
from tasks.forwarding import Place
from tasks.image_files import ImageSource
from tasks.index_images import Indexer
from tasks.infer import Question
from tasks.models import DetectorConfig, Prompter, load_prompter, refuse_device
from tasks.recall import Recall
from tasks.results import ITERATION_FOLDER
from tasks.storage.folder import Folder, folder_and_name
from tasks.store import ArtifactStore

PACKAGES = ("autolabel-flow", "numpy", "pillow", "prefect", "pycocotools", "scikit-learn", "torch", "transformers")


@dataclass(frozen=True)
class RunInputs:
    """Everything that the loop hands to its steps.

    `classes` are the class names of detection mode, empty in grounding mode; `records` are the captions of grounding
    mode by image key, empty in detection mode.
    """

    spec: ExperimentSpec
    prompter: Prompter
    store: ArtifactStore
    recall: Recall
    export: Export
    question: Question
    place: Place
    classes: tuple[str, ...]
    records: Mapping[str, tuple[Record, ...]]

    @property
    def indexer(self) -> Indexer:
        """What looks at the images."""
        return Indexer(self.place.source, self.store, self.recall)

    @property
    def schedule(self) -> Schedule:
        """The annealing of the confidence threshold."""
        return self.spec.grounding_dino.schedule

    @property
    def termination(self) -> Termination:
        """When to stop before the schedule does."""
        asked = self.spec.grounding_dino.termination
        return Termination(asked.max_iterations, asked.min_new_labels, asked.patience)

    def rules(self, iteration: int) -> AggregationRules:
        """How the detections of `iteration` join the labels.

        Detections of all iterations are grouped anew each time, so the strictest `nms_threshold` so far holds: what an
        iteration suppressed does not come back in a later one that is laxer.
        """
        asked = self.spec.grounding_dino.aggregation
        match asked.method:
            case "nms":
                so_far = map(self.spec.grounding_dino.nms_threshold, range(iteration + 1))
                method: Nms | Dbscan | Wbf = Nms(min((iou for iou in so_far if iou is not None), default=None))
            case "dbscan":
                method = Dbscan(asked.eps, asked.min_samples, asked.box)
            case "wbf":
                method = Wbf(asked.iou)
        return AggregationRules(method, asked.cross_class_iou)


def inputs_of(spec: ExperimentSpec) -> RunInputs:
    """The inputs of a run.

    Raises:
        SpecError: the spec asks for no boxes, for a device or precision that cannot be had, or for inputs that the run
            would delete.
        CheckpointError: the detector's files cannot be used.
        PromptError: a class name or noun chunk cannot be asked.
        FormatError: the prompt file does not follow its format.
    """
    _refuse_without_boxes(spec)
    refuse_inputs_that_go(spec)
    settings = settings_for(spec)
    detector = _detector(spec)
    refuse_device(detector, settings.device)
    prompter = load_prompter(detector)
    records = _records(spec)
    classes = tuple(spec.grounding_dino.dataset.class_names)
    _refuse_unaskable(prompter, [classes, *(r.phrases for rs in records.values() for r in rs)])
    results = Folder(spec.results_dir, spec.storage_options)
    store = store_of(spec)
    source = source_of(spec, store)
    return RunInputs(
        spec=spec,
        prompter=prompter,
        store=store,
        recall=Recall(store),
        export=Export(store, results, source, classes, spec.grounding_dino.visualize, spec.makes_masks),
        question=Question(detector, prompter.digest, spec.grounding_dino.floor, spec.grounding_dino.reprompt),
        place=Place(source, settings.device, settings.batch_size, settings.read_ahead),
        classes=classes,
        records=records,
    )


def store_of(spec: ExperimentSpec) -> ArtifactStore:
    """Where the artifacts of a run are kept."""
    return ArtifactStore(spec.cache_dir or in_results(spec, "cache"), spec.storage_options)


def in_results(spec: ExperimentSpec, path: str) -> str:
    """The path or URL of what is at `path` in results_dir."""
    results = spec.results_dir
    return f"{results}{path}" if results.endswith("/") else f"{results}/{path}"


def source_of(spec: ExperimentSpec, store: ArtifactStore) -> ImageSource:
    """The images of a run, without what runs have left among them."""
    return ImageSource(spec.image_roots, spec.storage_options, excluded=(spec.results_dir, store.uri))


def refuse_inputs_that_go(spec: ExperimentSpec) -> None:
    """Raise SpecError for images, boxes or phrases among what the run deletes in results_dir, or writes anew.

    That is the pictures of earlier runs and, when boxes are made, the folders of the iterations.
    """
    results = Folder(spec.results_dir, spec.storage_options).place
    for key, address in _read_by(spec):
        place: tuple[str, ...] = ()
        with suppress(ArtifactError):  # what cannot be opened is told by the step that reads it
            place = Folder(address, spec.storage_options).place
        name = place[len(results)] if place[: len(results)] == results != place else ""
        if name == "images_annotated" or (spec.makes_boxes and ITERATION_FOLDER.fullmatch(name)):
            raise SpecError(
                f"{key}: found {without_password(address)}, which lies in {name} of results_dir, which the run "
                "deletes; choose another results_dir"
            )


def _read_by(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The files and folders with the data of a run, each with its key in the spec."""
    images = "grounding_dino.dataset.image_dir" if spec.makes_boxes else "mal.inference.img_dir"
    yield from ((images, root) for root in spec.image_roots)
    if not spec.makes_boxes:
        yield "mal.inference.ann_path", spec.mal.inference.ann_path
    elif spec.grounding_dino.dataset.noun_chunk_path is not None:
        yield "grounding_dino.dataset.noun_chunk_path", spec.grounding_dino.dataset.noun_chunk_path


def _refuse_without_boxes(spec: ExperimentSpec) -> None:
    if not spec.makes_boxes:
        raise SpecError(
            f"autolabel_type: found {spec.autolabel_type!r}, expected 'grounding_dino' or 'grounding_dino+mal', which "
            "make boxes"
        )


def _detector(spec: ExperimentSpec) -> DetectorConfig:
    asked = spec.grounding_dino
    augmentation = asked.dataset.augmentation
    return DetectorConfig(
        checkpoint=str(asked.checkpoint),
        precision=asked.precision,
        score=asked.score,
        shortest_edge=augmentation.test_random_resize,
        longest_edge=augmentation.random_resize_max_size,
        mean=augmentation.input_mean,
        std=augmentation.input_std,
        tokenizer=asked.model.text_encoder_type,
        architecture="log_scale_auto" if asked.model.log_scale == "auto" else None,
    )


def _records(spec: ExperimentSpec) -> dict[str, tuple[Record, ...]]:
    path = spec.grounding_dino.dataset.noun_chunk_path
    if path is None:
        return {}
    folder, name = folder_and_name(path.replace("\\", "/"), spec.storage_options)
    return load_noun_chunks(folder.read(name), without_password(path))


def _refuse_unaskable(prompter: Prompter, prompts: Sequence[Sequence[str]]) -> None:
    """Ask for the captions of all distinct phrases at once, so that one message names every bad one."""
    prompter.captions(list(dict.fromkeys(phrase for prompt in prompts for phrase in prompt)))


def versions() -> dict[str, str]:
    """The installed version of every package that has a part in the labels."""
    return {name: version(name) for name in PACKAGES}
