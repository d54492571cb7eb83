"""Step: what the networks are worth after an epoch."""

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import CheckpointError
from tasks.domain.training_record import MaskScores, Validation
from tasks.formats.training_boxes import load_labelled_boxes
from tasks.models.mal.network import MalNetwork
from tasks.models.mal.samples import IMAGE_CACHE_BYTES, DecodedImages
from tasks.models.mal.training_state import network_of
from tasks.models.mal.validation import mask_scores, mean_projection_loss, segmenter_of
from tasks.progress import advance, begin
from tasks.training_files import BEST, STATE, Training, read_state, reader, write_networks

STAGE = "validate"


@task(
    name="validate epoch",
    task_run_name="epoch {epoch} / validate",
    cache_policy=NO_CACHE,
    persist_result=False,
    tags=["gpu"],
)
def validate_epoch(training: Training, boxes: ArtifactRef, epoch: int, best: float | None) -> Validation:
    """Measure both networks on the first device; a student better than `best` is kept in results_dir.

    `boxes` refers to the boxes to measure with, and `best` is the greatest mean IoU of the epochs before.
    """
    del epoch  # it names the task run
    started = time.perf_counter()
    state = read_state(training)
    if state is None or training.validation_source is None:
        raise CheckpointError(f"{STATE} was deleted while the training went on; start it again")
    truth = load_labelled_boxes(training.store.read(boxes))
    pictures = DecodedImages(reader(training.validation_source), IMAGE_CACHE_BYTES)
    student, teacher = (
        network_of(training.spec, tensors).to(training.devices[0]) for tensors in (state.student, state.teacher)
    )

    def tell(samples: int) -> None:
        advance(STAGE, samples)

    def scores(network: MalNetwork) -> MaskScores:
        segmenter = segmenter_of(training.spec, network)
        return mask_scores(segmenter, truth, pictures, training.spec.train.batch_size, tell)

    if truth.masks is None:
        begin(STAGE, len(truth))
        loss = mean_projection_loss(training.spec, student, truth, pictures, tell)
        return Validation(projection_loss=loss, seconds=round(time.perf_counter() - started, 3))
    begin(STAGE, 2 * len(truth))
    found, followed = scores(student), scores(teacher)
    if best is None or (found.overall or 0.0) > best:
        write_networks(training, state, BEST)
    return Validation(found, followed, seconds=round(time.perf_counter() - started, 3))
