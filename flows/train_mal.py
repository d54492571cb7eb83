"""The training of Mask Auto-Labeler: choose the boxes, then epoch by epoch, measured and recorded."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefect import flow
from prefect.artifacts import create_image_artifact, create_table_artifact

from flows.run_inputs import versions
from flows.settings import training_devices
from flows.sole_run import SoleRun, sole_run
from flows.task_runs import ONE_AT_A_TIME
from flows.training_plot import training_curve
from tasks.begin_training import Standing, begin_training
from tasks.choose_boxes import Chosen, Wanted, choose_boxes
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_boxes import Limits
from tasks.domain.training_record import EpochRecord, TrainingRecord, best_epoch
from tasks.export_network import export_network
from tasks.formats.failures import dump_failures
from tasks.formats.spec_yaml import spec_as_dict
from tasks.image_files import ImageSource
from tasks.index_images import Indexer, index_images
from tasks.models.devices import refuse_device
from tasks.models.mal.training_state import architecture_of
from tasks.recall import Recall
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore
from tasks.train_epoch import train_epoch
from tasks.training_files import Training, write_record
from tasks.validate_epoch import validate_epoch

CURVE = "training_curve.svg"


@flow(name="train-mal", task_runner=ONE_AT_A_TIME, persist_result=False)
def train_mal(spec: TrainMalSpec) -> TrainingRecord:
    """Train on the boxes of the spec, and leave networks, curve and record in its `results_dir`.

    The same spec again goes on where the training stopped, and gives the same weights as if it had not.
    """
    results = Folder(spec.results_dir, spec.storage_options)
    with sole_run(results, _cache_of(spec)) as sole:
        training = training_of(spec)
        sole.register()
        boxes = chosen_boxes(training)
        sole.needs(chosen.boxes for chosen in (boxes.train, boxes.validation) if chosen)
        standing = begin_training.submit(training, boxes.train.boxes).result()
        course = Course(training, sole, boxes, _record(training, boxes))
        record = course.run(standing)
        sole.refuse_if_lost()
        export_network.submit(training).result()
        return record


def training_of(spec: TrainMalSpec) -> Training:
    """What the steps share. Raises SpecError for a device, a network or an image folder that cannot be used."""
    devices = training_devices(spec.train)
    for device in devices:
        refuse_device(device, "fp32")  # what the weights are in, with mixed precision too
    architecture_of(spec)
    store = _cache_of(spec)

    def source(folder: str) -> ImageSource:
        return ImageSource((folder,), spec.storage_options, excluded=(spec.results_dir, store.uri))

    return Training(
        spec=spec,
        results=Folder(spec.results_dir, spec.storage_options),
        store=store,
        source=source(spec.dataset.train_img_dir),
        validation_source=source(spec.dataset.val_img_dir) if spec.dataset.val_img_dir else None,
        devices=devices,
    )


def _cache_of(spec: TrainMalSpec) -> ArtifactStore:
    return ArtifactStore(f"{spec.results_dir.rstrip('/')}/cache", spec.storage_options)


@dataclass(frozen=True)
class Boxes:
    """The boxes to learn from, and those to measure with, if any."""

    train: Chosen
    validation: Chosen | None


def chosen_boxes(training: Training) -> Boxes:
    """Index the images and choose the boxes of both files; raises SpecError with the problems of both."""
    data = training.spec.dataset
    recall = Recall(training.store)
    index = index_images.submit(Indexer(training.source, training.store, recall)).result()
    limits = Limits(data.min_obj_size, data.max_obj_size)
    wanted = [Wanted(data.train_ann_path, "dataset.train_ann_path", index, limits, masks=False, learns=True)]
    if training.validation_source is not None:
        index = index_images.submit(Indexer(training.validation_source, training.store, recall)).result()
        wanted.append(
            Wanted(data.val_ann_path, "dataset.val_ann_path", index, Limits(), masks=data.load_mask, learns=False)
        )
    train, *validation = choose_boxes.submit(training.store, training.results, wanted).result()
    failures = {failure for chosen in (train, *validation) for failure in chosen.failures}
    training.results.write("failures.jsonl", dump_failures(sorted(failures)))
    return Boxes(train, validation[0] if validation else None)


def _record(training: Training, boxes: Boxes) -> TrainingRecord:
    """The record before the first epoch."""
    both = [boxes.train, *([boxes.validation] if boxes.validation else [])]
    return TrainingRecord(
        spec=spec_as_dict(training.spec),
        versions=versions(),
        devices=training.devices,
        boxes=boxes.train.count,
        left_out=boxes.train.left_out,
        failed=len({failure.image for chosen in both for failure in chosen.failures}),
    )


class Course:
    """The epochs of a training, one after another, and the record that grows with them."""

    def __init__(self, training: Training, sole: SoleRun, boxes: Boxes, record: TrainingRecord) -> None:
        self._training, self._sole, self._boxes, self._record = training, sole, boxes, record

    def run(self, standing: Standing) -> TrainingRecord:
        """Train to the last epoch, and give the whole record."""
        self._keep(standing.epochs)
        if standing.epochs and not standing.step:
            self._measure()  # it was interrupted between an epoch and its measurement
        for epoch in range(len(standing.epochs), self._training.spec.train.num_epochs):
            self._sole.refuse_if_lost()
            done = train_epoch.submit(self._training, self._boxes.train.boxes, epoch).result()
            self._keep([*self._record.epochs, done])
            self._measure()
            self._tell()
        return self._record

    def _measure(self) -> None:
        """Measure the last epoch, where that is due and not done."""
        *before, last = self._record.epochs
        train, boxes = self._training.spec.train, self._boxes.validation
        is_due = (last.epoch + 1) % train.validation_interval == 0 or last.epoch + 1 == train.num_epochs
        if boxes is None or not is_due or last.validation is not None:
            return
        best = best_epoch(before)
        found = validate_epoch.submit(self._training, boxes.boxes, last.epoch, best.mean_iou if best else None).result()
        self._keep([*before, last.validated(found)])

    def _keep(self, epochs: Sequence[EpochRecord]) -> None:
        """Write the record and the curve with these epochs."""
        self._sole.refuse_if_lost()
        self._record = replace(self._record, epochs=tuple(epochs))
        write_record(self._training.results, self._record)
        if epochs:
            self._training.results.write(CURVE, training_curve(epochs).encode())

    def _tell(self) -> None:
        """Show the course so far in Prefect's UI."""
        create_table_artifact(key="mal-training", table=[_row(epoch) for epoch in self._record.epochs])
        picture = base64.b64encode(training_curve(self._record.epochs).encode()).decode("ascii")
        create_image_artifact(key="mal-training-curve", image_url=f"data:image/svg+xml;base64,{picture}")


def _row(epoch: EpochRecord) -> dict[str, Any]:
    scores = epoch.validation.teacher if epoch.validation else None
    return {
        "epoch": epoch.epoch,
        "projection loss": round(epoch.projection_loss, 4),
        "refinement loss": None if epoch.refinement_loss is None else round(epoch.refinement_loss, 4),
        "learning rate": epoch.lr,
        "boxes": epoch.samples,
        "seconds": epoch.seconds,
        "mIoU": epoch.mean_iou,
        "mIoU of the teacher": scores.overall if scores else None,
    }
