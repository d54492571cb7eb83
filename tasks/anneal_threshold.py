"""Step: the confidence threshold of the next iteration."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.schedule import Schedule


@task(
    name="anneal threshold",
    task_run_name="iteration {iteration} / anneal threshold",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def anneal_threshold(schedule: Schedule, iteration: int) -> float:
    """The threshold that follows `iteration`, which is not the last of the schedule."""
    return schedule.threshold(iteration + 1)
