"""status.json: the course of a run, in the lines that TAO's automation reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from tasks.formats.status import Status, status_line
from tasks.store import Folder

FILE = "status.json"

# A flow that another one runs is a part of that one's course, which goes on after it.
_is_told: ContextVar[bool] = ContextVar("a flow further out tells the course of the run", default=False)


@contextmanager
def status_file(results: Folder) -> Iterator[None]:
    """Write STARTED, then SUCCESS or, with the reason, FAILURE; nothing of an earlier run stays.

    Inside another such context nothing is written: a run has one course.
    """
    if _is_told.get():
        yield
        return
    results.delete_tree(FILE)
    _append(results, Status.STARTED, "Starting AutoLabel Flow.")
    outer = _is_told.set(True)
    try:
        yield
    except BaseException as error:
        _append(results, Status.FAILURE, f"{type(error).__name__}: {error}")
        raise
    finally:
        _is_told.reset(outer)
    _append(results, Status.SUCCESS, "AutoLabel Flow finished successfully.")


def _append(results: Folder, status: Status, message: str) -> None:
    results.append(FILE, status_line(status, message, datetime.now().astimezone()))
