"""Step: whether the last iteration was the last one of all, and why."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.iteration import Progress, StopReason, Termination, stop_reason


@task(
    name="check termination",
    task_run_name="iteration {iteration} / check termination",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def check_termination(
    history: Sequence[Progress], termination: Termination, *, iteration: int, at_floor: bool
) -> StopReason | None:
    """The reason to stop after `iteration`, the last of `history`, or None."""
    del iteration  # it names the task run
    return stop_reason(history, termination, at_floor=at_floor)
