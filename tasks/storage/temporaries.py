"""Names of files that are still being written; they tell who writes, so that what killed processes left is found."""

import hashlib
import os
import re
from dataclasses import replace
from functools import cache
from secrets import token_hex

from tasks.storage.claimants import Process, this_process

TEMPORARY = ".tmp-"  # how the names of files start that are still being written
# autolabel-flow 0.1 wrote names that do not tell who writes.
_NAME = re.compile(rf"{re.escape(TEMPORARY)}(?:([0-9a-f]{{8}})-(\d+)-(\d+)-)?[0-9a-f]{{16}}")
# Who writes on another machine cannot be asked whether it lives. A file is written on from second to second, so that
# one which did not change for a day is left over, whatever the clocks of two machines make of that.
LEFT_OVER_SECONDS = 86_400.0


def temporary_name() -> str:
    """A name that no other file has, and that tells this process; of some 50 bytes, whatever the final name is."""
    return f"{TEMPORARY}{_writer(os.getpid())}-{token_hex(8)}"


def is_left_over(name: str, age_seconds: float | None) -> bool:
    """Whether a file is one of ours that no living process writes; `age_seconds` is None where it cannot be told.

    Whether a process of this machine lives is known; who writes elsewhere is judged by the time since the last change.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    counted_in, pid, started = match.groups()
    here = this_process()
    if here.counted_in is not None and counted_in == _digest(here):
        return replace(here, pid=int(pid), started=int(started)).is_gone()
    return age_seconds is not None and age_seconds > LEFT_OVER_SECONDS


@cache
def _writer(pid: int) -> str:  # by its id, since a fork has the parent's memory
    process = this_process()
    return f"{_digest(process)}-{pid}-{process.started}"


def _digest(process: Process) -> str:
    return hashlib.sha256(str(process.counted_in).encode()).hexdigest()[:8]
