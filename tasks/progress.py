"""Progress of long work, told to whoever listens in this process; nobody has to. It can be stopped where it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Protocol

from tasks.domain.errors import StoppedError


class Listener(Protocol):
    """Someone who wants to know; called from any thread."""

    def begin(self, stage: str, total: int | None) -> None:
        """`stage` starts and has `total` images before it; None where nobody has counted them yet."""
        ...

    def advance(self, stage: str, images: int) -> None:
        """`stage` is done with `images` more images."""
        ...


_listeners: list[Listener] = []
# Set when nobody waits for the work any more. A context variable, so that the threads of one run stop and no others.
_abandoned: ContextVar[Event | None] = ContextVar("whether nobody waits for this work any more", default=None)


def begin(stage: str, total: int | None) -> None:
    """Say that `stage` starts, with `total` images before it, or with nobody knows how many."""
    for listener in tuple(_listeners):
        listener.begin(stage, total)


def advance(stage: str, images: int) -> None:
    """Say that `stage` is done with `images` more images.

    Raises StoppedError where nobody waits for the rest.
    """
    stop_if_abandoned()
    for listener in tuple(_listeners):
        listener.advance(stage, images)


def stop_if_abandoned() -> None:
    """Raise StoppedError where nobody waits for the work any more; for work that tells no progress."""
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned.is_set():
        raise StoppedError("the run ended before this was done")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of all progress while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def stopping_together() -> Iterator[None]:
    """Stop the work of all threads that was begun in this context when it ends with an error, Ctrl-C for one.

    Without it a thread would go on with all images that it was given, which may be thousands, and the process with it.
    """
    abandoned = Event()
    before = _abandoned.set(abandoned)
    try:
        yield
    except BaseException:
        abandoned.set()
        raise
    finally:
        _abandoned.reset(before)
