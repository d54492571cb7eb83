"""Progress of long work, told to whoever listens in this process; nobody has to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """Someone who wants to know; called from any thread."""

    def begin(self, stage: str, total: int) -> None:
        """`stage` starts and has `total` images before it."""
        ...

    def advance(self, stage: str, images: int) -> None:
        """`stage` is done with `images` more images."""
        ...


_listeners: list[Listener] = []


def begin(stage: str, total: int) -> None:
    """Say that `stage` starts, with `total` images before it."""
    for listener in tuple(_listeners):
        listener.begin(stage, total)


def advance(stage: str, images: int) -> None:
    """Say that `stage` is done with `images` more images."""
    for listener in tuple(_listeners):
        listener.advance(stage, images)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of all progress while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
