"""How a step is cut into task runs, and what runs them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.settings import TASKS_PER_STEP

T = TypeVar("T")

# One thread: torch keeps all cores busy by itself. Prefect's runner does not fit Prefect's annotation for it.
ONE_AT_A_TIME = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1))


def unwalked(argument: T) -> T:
    """An argument of a task that Prefect is not to search for futures, element by element; the task gets it as it is.

    100 000 records took Prefect's search 40 s.
    """
    return cast("T", quote(argument))


def in_batches(shards: Sequence[T]) -> Iterator[tuple[str, Sequence[T]]]:
    """Consecutive batches of shards, a task run each, with the names that people read in the UI."""
    size = max(1, math.ceil(len(shards) / TASKS_PER_STEP))
    for start in range(0, len(shards), size):
        batch = shards[start : start + size]
        yield f"shards {start + 1}-{start + len(batch)} of {len(shards)}", batch
