"""Who claims a folder: what a message calls them, and whether their process still lives."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.domain.errors import ClaimedError

ENDED = ("Z", "X")  # states of /proc/PID/stat in which a process runs no more: zombie, dead (man 5 proc)


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other one of any machine.

    A process id says nothing by itself: machines and containers count theirs alike, and ids are given again.

    Attributes:
        pid: The process id.
        started: The clock ticks from the kernel's start to its own.
        counted_in: The kernel's start and the namespace in which `pid` counts. None where the system does not tell
            (it has no /proc): whether the process lives can then not be told from outside.
    """

    pid: int
    started: int
    counted_in: str | None

    def is_gone(self) -> bool:
        """Whether the process certainly runs no more; False where that cannot be told from here."""
        if self.counted_in is None or self.counted_in != _pids_counted_in():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        found = _stat(self.pid)
        return found is not None and (found[0] in ENDED or found[1] != self.started)


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    found = _stat(pid)
    return Process(pid, found[1], _pids_counted_in()) if found else Process(pid, 0, None)


@dataclass(frozen=True)
class Claimant:
    """Who claims a folder, alone (`exclusive`) or beside others who share it; `owner` is what messages call them."""

    owner: str
    exclusive: bool
    process: Process


# Stands for whoever wrote what cannot be read, such as a file that is half written.
UNKNOWN = Claimant("another process", exclusive=True, process=Process(0, 0, None))


def dump_claimant(claimant: Claimant) -> bytes:
    """A line of JSON."""
    return json.dumps(asdict(claimant)).encode() + b"\n"


def load_claimant(payload: bytes) -> Claimant:
    """The claimant of such a line; UNKNOWN where it is none."""
    try:
        found = json.loads(payload)
        return Claimant(str(found["owner"]), bool(found["exclusive"]), Process(**found["process"]))
    except (ValueError, KeyError, TypeError):
        return UNKNOWN


def refusal(address: str, owners: Sequence[str]) -> ClaimedError:
    """The error that names who has the folder, and how to proceed."""
    return ClaimedError(
        f"{address} is in use by {', and '.join(owners)}; wait for that to end, stop it, or choose another folder"
    )


def _pids_counted_in() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _stat(pid: int) -> tuple[str, int] | None:
    """The state of a process and when it started, in clock ticks from the kernel's start; None where unknown."""
    try:
        # The second field is the program's name in brackets, with whatever is in it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except OSError:
        return None
