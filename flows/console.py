"""What a person at a terminal sees: progress bars on long work, tables at the end, one line for an error."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tasks.domain.mask_quality import MaskQuality
from tasks.domain.summary import RunRecord
from tasks.evaluation.box_report import BoxReport, Scores
from tasks.evaluation.counterparts import Coverage
from tasks.evaluation.mask_report import MaskReport, MaskScores
from tasks.progress import listening

if TYPE_CHECKING:  # at run time it would import Prefect, which must wait until the server's address is known
    from flows.plan import Plan, PlannedIteration

# Names of classes, images and folders are the user's: nothing in them is markup, an emoji or worth a colour.
output = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)


class ImagesPerSecond(ProgressColumn):
    """How fast a stage is going."""

    def render(self, task: Task) -> Text:
        """The speed of the last moments, or of the whole once the stage is finished."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show a bar for every stage that reports progress meanwhile; nothing where the output is not a terminal."""
    if not errors.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        ImagesPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress, listening(_Bars(progress)):
        yield


class _Bars:
    """A bar for each stage; a stage that begins again starts its bar anew."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def begin(self, stage: str, total: int | None) -> None:
        if stage in self._bars:
            self._progress.reset(self._bars[stage], total=total)
        else:
            self._bars[stage] = self._progress.add_task(stage, total=total)

    def advance(self, stage: str, images: int) -> None:
        if stage in self._bars:
            self._progress.advance(self._bars[stage], images)


def show_warnings() -> None:
    """Print what our own modules warn of, one line each; Prefect's log lines go to its UI."""
    for name in ("flows", "tasks"):
        logger = logging.getLogger(name)
        logger.addHandler(RichHandler(console=errors, show_time=False, show_path=False, level=logging.WARNING))


def print_run(record: RunRecord) -> None:
    """The iterations as a table, then why the loop stopped and in which states the images are."""
    table = _table("iteration", "threshold", "new labels", "labels", "without a label", "forwards", "seconds")
    for iteration in record.iterations:
        missing = ", ".join(iteration.missing or ()) or f"{iteration.progress.missing or 'none'}"
        cells = (iteration.counts.new_labels, iteration.counts.labels, missing, iteration.forwards)
        _add_row(table, iteration.iteration, f"{iteration.threshold:.3g}", *cells, f"{iteration.seconds:.1f}")
    output.print(table)
    states = record.images
    output.print(
        f"stopped: {record.stop_reason}; "
        f"images: {states.labelled} labelled, {states.empty} empty, {states.failed} failed",
    )


def print_plan(plan: "Plan") -> None:
    """What a run would do now: the data set, the captions, and the forwards of each iteration with the reason."""
    output.print(
        f"images: {plan.images} in {plan.shards} shards, {plan.failures} unreadable, "
        f"{plan.without_prompt} without a prompt; phrases: {plan.phrases}",
    )
    for captions, records in plan.captions:
        output.print(f"{records} prompts of {captions} {'caption' if captions == 1 else 'captions'} each")
    for text, tokens in plan.caption_texts:
        output.print(f"caption of {tokens} tokens: {text}")
    table = _table("iteration", "threshold", "forwards", "reused shards", "why")
    for step in plan.iterations:
        _add_row(
            table,
            step.iteration,
            f"{step.threshold:.3g}",
            _between(step.least, step.most),
            step.reused_shards,
            _why(step),
        )
    output.print(table)
    output.print(f"a run makes {_between(plan.least, plan.most)} forwards now")
    if plan.stop is not None:
        output.print(f"and stops: {plan.stop}")


def _between(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _why(step: "PlannedIteration") -> str:
    reasons = [f"{why} ({forwards})" for why, forwards in sorted(step.why.items())]
    if not step.exact:
        reasons.append(f"what is asked depends on labels not known yet (up to {step.most - step.least})")
    return "; ".join(reasons) or "all answers are in the cache, or come in an earlier iteration"


def print_evaluation(report: BoxReport) -> None:
    """Per class, overall and per iteration: labels, precision, recall, F1, AP50 and AP.

    The head of the iterations' table says which labels they are: those after an iteration, or up to it.
    """
    columns = ("labels", "truth", "precision", "recall", "F1", "AP50", "AP")
    table = _table("class", *columns)
    for name, scores in report.classes.items():
        _add_row(table, name, *_cells(scores))
    table.add_section()
    _add_row(table, "all", *_cells(report.overall), style="bold")
    output.print(table)
    if len(report.iterations) > 1:
        table = _table(report.iterations_are, *columns)
        for iteration, scores in report.iterations.items():
            _add_row(table, iteration, *_cells(scores))
        output.print(table)
    _print_coverage(report.coverage)


def print_mask_evaluation(report: MaskReport) -> None:
    """Per class, per size and overall: labels, mIoU beside that of the boxes alone, AP50 and AP."""
    table = _table("class", "labels", "truth", "found", "mIoU", "box mIoU", "ellipse mIoU", "AP50", "AP")
    for name, scores in report.classes.items():
        _add_row(table, name, *_mask_cells(scores))
    table.add_section()
    for size, quality in report.sizes.items():
        _add_row(table, size, "-", *_quality_cells(quality), "-", "-")
    table.add_section()
    _add_row(table, "all", *_mask_cells(report.overall), style="bold")
    output.print(table)
    small, medium, large = (_rate(report.coco[name]) for name in ("APs", "APm", "APl"))
    found, classes = _rate(report.overall.quality.miou_found), _rate(report.miou_classes)
    output.print(f"mIoU of the found: {found}, mean of the classes: {classes}")
    output.print(f"AP of small masks: {small}, medium: {medium}, large: {large}")
    _print_left_out(report)
    _print_coverage(report.coverage)


def _mask_cells(scores: MaskScores) -> Sequence[str]:
    return str(scores.labels), *_quality_cells(scores.quality), _rate(scores.ap50), _rate(scores.ap)


def _quality_cells(quality: MaskQuality) -> Sequence[str]:
    means = (quality.miou, quality.miou_of_box, quality.miou_of_ellipse)
    return str(quality.truths), str(quality.found), *map(_rate, means)


def _print_left_out(report: MaskReport) -> None:
    for what, number in (
        ("labels without a mask (their IoU is 0)", report.overall.labels_without_mask),
        ("labels without a score (AP takes 1)", report.labels_without_score),
        ("labels beyond the 100 best of an image and class (AP leaves them out)", report.labels_not_ranked),
        ("crowd regions among the labels (not compared)", report.crowd_labels),
        ("objects of the ground truth without a mask (not compared)", report.truths_without_mask),
    ):
        if number:
            output.print(f"{what}: {number}")


def _table(*head: str) -> Table:
    return Table(*(Column(Text(title), overflow="fold") for title in head))


def _add_row(table: Table, *cells: object, style: str | None = None) -> None:
    """Add the cells as they read: rich would take text in brackets for markup in a plain string."""
    table.add_row(*(Text(str(cell)) for cell in cells), style=style)


def _cells(scores: Scores) -> Sequence[str]:
    rates = (scores.counts.precision, scores.counts.recall, scores.counts.f1, scores.ap50, scores.ap)
    return str(scores.labels), str(scores.truths), *map(_rate, rates)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3f}"


def _print_coverage(coverage: Coverage) -> None:
    for names, what in (
        (coverage.images_only_in_labels, "images are only in the labels"),
        (coverage.images_only_in_truth, "images are only in the ground truth: their objects count as missed"),
        (coverage.classes_only_in_labels, "classes are only in the labels"),
        (coverage.classes_only_in_truth, "classes are only in the ground truth: their objects count as missed"),
    ):
        if names:
            shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
            output.print(f"{len(names)} {what}: {shown}")
    if coverage.labels_left_out:
        output.print(f"{coverage.labels_left_out} labels were left out for that")
