"""What a person at a terminal sees of a training when it is done."""

from rich.table import Column, Table
from rich.text import Text

from flows.console import output
from tasks.domain.training_record import EpochRecord, TrainingRecord, best_epoch

COLUMNS = ("epoch", "projection", "refinement", "lr", "seconds", "mIoU", "teacher")


def print_training(record: TrainingRecord) -> None:
    """A row for each epoch with its two losses and the mean IoU of both networks, then the best one's by size."""
    table = Table(*(Column(title, overflow="fold") for title in COLUMNS))
    for epoch in record.epochs:
        table.add_row(*(Text(cell) for cell in _cells(epoch)))
    output.print(table)
    output.print(f"trained on {record.boxes} boxes, on {', '.join(record.devices)}")
    best = best_epoch(record.epochs)
    if best is not None and best.validation is not None and best.validation.student is not None:
        scores = best.validation.student
        sizes = ", ".join(f"{size} {_number(getattr(scores, size))}" for size in ("small", "medium", "large"))
        which = f"best: epoch {best.epoch} with mIoU {_number(scores.overall)} over {scores.boxes} boxes"
        output.print(f"{which} ({sizes})", soft_wrap=True)


def _cells(epoch: EpochRecord) -> tuple[str, ...]:
    validation = epoch.validation
    measured = validation.projection_loss if validation else None
    teacher = validation.teacher.overall if validation and validation.teacher else None
    loss = _number(epoch.projection_loss) + (f" (measured {_number(measured)})" if measured is not None else "")
    numbers = (loss, _number(epoch.refinement_loss), f"{epoch.lr:.3g}", f"{epoch.seconds:.1f}")
    return str(epoch.epoch), *numbers, _number(epoch.mean_iou), _number(teacher)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
