"""Work on many things at a time, whose results come in their order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[tuple[Item, Result]]:
    """Every item with what `work` makes of it, in the order of `items`, made by `workers` threads.

    Items are taken as they are needed: while the consumer has a result, no more than 2 * `workers` are in memory, its
    own among them. An error of `work` is raised in its place and ends the iteration. A consumer that stops early does
    not wait for the work that has begun.
    """

    def done(item: Item) -> tuple[Item, Result]:
        return item, work(item)

    pending: deque[Future[tuple[Item, Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            # Each in the consumer's context: by it a log line finds its run, and work that nobody waits for its end.
            pending.append(pool.submit(copy_context().run, done, item))
            if len(pending) == 2 * workers:
                # Neither the future nor its result has a name here: it would keep a result alive that is done with.
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=not pending, cancel_futures=True)
