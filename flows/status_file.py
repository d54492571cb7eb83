"""status.json: the course of a run, in the lines that TAO's automation reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from tasks.formats.status import Status, status_line
from tasks.store import Folder

FILE = "status.json"


@contextmanager
def status_file(results: Folder) -> Iterator[None]:
    """Write STARTED, then SUCCESS or, with the reason, FAILURE; nothing of an earlier run stays."""
    results.delete_tree(FILE)
    _append(results, Status.STARTED, "Starting AutoLabel Flow.")
    try:
        yield
    except BaseException as error:
        _append(results, Status.FAILURE, f"{type(error).__name__}: {error}")
        raise
    _append(results, Status.SUCCESS, "AutoLabel Flow finished successfully.")


def _append(results: Folder, status: Status, message: str) -> None:
    results.append(FILE, status_line(status, message, datetime.now().astimezone()))
