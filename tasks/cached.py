"""How a task says in the UI what it reused and what it made."""

from collections.abc import Sized
from typing import TypeVar, cast

from prefect.states import Completed

T = TypeVar("T")
Many = TypeVar("Many", bound=Sized)


def cached(answer: T, message: str) -> T:
    """What a task returns to be shown as Cached in the UI; whoever waits for the task gets `answer`.

    Prefect takes a returned state for the task's own and hands out its data, so for the callers the type is that of
    the data.
    """
    return cast("T", Completed(name="Cached", message=message, data=answer))


def made(answer: T, message: str) -> T:
    """What a task returns to be shown as Completed with a message; see `cached`."""
    return cast("T", Completed(message=message, data=answer))


def told(answers: Many, batch: str, *, reused: int, cost: str = "") -> Many:
    """`answers` as Cached where all were there before; else as Completed, with how many were, and what others cost."""
    if reused == len(answers):
        return cached(answers, f"{batch}: all {reused} reused")
    return made(answers, f"{batch}: {reused} reused, {len(answers) - reused} made" + (f", {cost}" if cost else ""))
