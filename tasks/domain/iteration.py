"""The rules of the loop: what an iteration asks, what it counts, and when it was the last."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from tasks.domain.annotations import Record

Reprompt: TypeAlias = Literal["undetected", "all"]


def next_prompt(record: Record, reprompt: Reprompt) -> tuple[str, ...]:
    """The phrases to ask about a record now: all of them, or those without a label; empty means: do not look again."""
    return record.phrases if reprompt == "all" else record.undetected


class StopReason(StrEnum):
    """Why an iteration was the last; the run record holds it."""

    CONVERGED = "converged"
    FEW_NEW_LABELS = "few_new_labels"
    MAX_ITERATIONS = "max_iterations"
    SCHEDULE_FLOOR = "schedule_floor"


@dataclass(frozen=True)
class Termination:
    """When to stop before the schedule does.

    After `max_iterations` iterations; after `patience` iterations in a row with fewer than `min_new_labels` new
    labels. None switches a rule off.
    """

    max_iterations: int | None = None
    min_new_labels: int | None = None
    patience: int = 1


@dataclass(frozen=True)
class Progress:
    """What one iteration brought: labels it added, labels so far, and how many classes or chunks still have none."""

    new_labels: int
    labels: int
    missing: int


def stop_reason(history: Sequence[Progress], termination: Termination, *, at_floor: bool) -> StopReason | None:
    """Why to stop after the last iteration of `history`, or None to go on; the first rule that holds names the reason.

    An empty first iteration is not convergence, and neither is a data set in which nothing could be looked at: both
    rules about new labels ask for some label first. `at_floor` says that the schedule has no lower threshold left.
    """
    last = history[-1]
    if last.labels > 0 and last.missing == 0 and last.new_labels == 0:
        return StopReason.CONVERGED
    if _few_new_labels(history, termination):
        return StopReason.FEW_NEW_LABELS
    if termination.max_iterations is not None and len(history) >= termination.max_iterations:
        return StopReason.MAX_ITERATIONS
    return StopReason.SCHEDULE_FLOOR if at_floor else None


def _few_new_labels(history: Sequence[Progress], termination: Termination) -> bool:
    if termination.min_new_labels is None or len(history) < termination.patience:
        return False
    recent = history[-termination.patience :]
    return all(progress.labels > 0 and progress.new_labels < termination.min_new_labels for progress in recent)
