"""What a training leaves on record: its losses, its learning rate and what was measured, epoch by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tasks.domain.artifacts import Json


@dataclass(frozen=True)
class MaskScores:
    """Mean intersection over union with the true masks, over all boxes and over those of a size; None without any.

    A box is small up to 32 x 32 square pixels, medium up to 96 x 96, and large above. `boxes` counts all.
    """

    boxes: int
    overall: float | None
    small: float | None
    medium: float | None
    large: float | None


@dataclass(frozen=True)
class Validation:
    """What was measured after an epoch: masks of both networks, or the projection loss where no masks are known."""

    student: MaskScores | None = None
    teacher: MaskScores | None = None
    projection_loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class EpochRecord:
    """One epoch, counted from 0.

    `projection_loss` and `refinement_loss` are means over its steps, without weights and warm-up; `refinement_loss` is
    None while its weight is 0. `lr` is the learning rate of its last step, `samples` how many boxes were looked at, and
    `skipped` the steps that mixed precision left out because a gradient overflowed.
    """

    epoch: int
    projection_loss: float
    refinement_loss: float | None
    lr: float
    samples: int
    skipped: int
    seconds: float
    validation: Validation | None = None

    def validated(self, validation: Validation) -> "EpochRecord":
        """The same epoch with what was measured after it."""
        return replace(self, validation=validation)

    @property
    def mean_iou(self) -> float | None:
        """That of the student, over all boxes; None where it is not known."""
        scores = self.validation and self.validation.student
        return scores.overall if scores else None


def best_epoch(epochs: Sequence[EpochRecord]) -> EpochRecord | None:
    """The earliest epoch with the greatest mean IoU; None where none was measured."""
    measured = [epoch for epoch in epochs if epoch.mean_iou is not None]
    return max(measured, key=lambda epoch: (epoch.mean_iou or 0.0, -epoch.epoch), default=None)


@dataclass(frozen=True)
class TrainingRecord:
    """`train.json`: what was asked, from which boxes, and how it went.

    `boxes` counts those that are trained on, and `left_out` the others by reason; `failed` counts the images that could
    not be read.
    """

    spec: Mapping[str, Json]
    versions: Mapping[str, str]
    devices: Sequence[str]
    boxes: int
    left_out: Mapping[str, int]
    failed: int
    epochs: tuple[EpochRecord, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As JSON has it, with the number of the best epoch."""
        best = best_epoch(self.epochs)
        return asdict(self) | {"best_epoch": None if best is None else best.epoch}


def epoch_from_json(row: Mapping[str, Any]) -> EpochRecord:
    """The epoch that `asdict` turned into `row`."""
    validation = row["validation"]
    return EpochRecord(**{**row, "validation": None if validation is None else validation_from_json(validation)})


def validation_from_json(row: Mapping[str, Any]) -> Validation:
    """The measurement that `asdict` turned into `row`."""
    scores = {name: None if row[name] is None else MaskScores(**row[name]) for name in ("student", "teacher")}
    return Validation(**{**row, **scores})
