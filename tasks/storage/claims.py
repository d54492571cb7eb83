"""Who may work in a folder, alone or beside others, when processes come at once.

A claim never outlives its process, on no backend: see tasks/storage/local_claims.py and tasks/storage/remote_claims.py.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Protocol

from tasks.storage.claimants import Claimant, this_process
from tasks.storage.folder import Folder
from tasks.storage.local_claims import NoLocksError, locked
from tasks.storage.remote_claims import beating

# A dead process is told from a living one in 2.5 of these: long beside the seconds for which a network or a busy
# machine may hang, short beside a run. It costs a bucket six small writes a minute.
HEARTBEAT_SECONDS = 10.0


def owner_of(what: str) -> str:
    """What messages call this process while it does `what`: with host, process id, and since when."""
    return f"{what} on {gethostname()}, process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


class Claim(Protocol):
    """A folder, claimed."""

    def refuse_if_lost(self) -> None:
        """Raise LostClaimError where another process has taken the folder over, or somebody deleted it.

        To be asked before something is written that must not mix with what another process writes.
        """
        ...


@contextmanager
def claim(
    folder: Folder, *, exclusive: bool, owner: str, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Iterator[Claim]:
    """Claim a folder while the context lasts; it need not exist yet.

    Args:
        folder: Where nobody else may work, or (not `exclusive`) only others who share it.
        exclusive: Whether alone.
        owner: What the messages of others call this process (see `owner_of`).
        heartbeat_seconds: How often a folder without locks is told that this process lives.

    Raises:
        ClaimedError: another process, or another thread of this one, has it. The message names its owner.
        ArtifactError: the folder cannot be used.
    """
    claimant = Claimant(owner, exclusive, this_process())
    with ExitStack() as stack:
        yield _entered(stack, folder, claimant, heartbeat_seconds)


def _entered(stack: ExitStack, folder: Folder, claimant: Claimant, heartbeat_seconds: float) -> Claim:
    path = _local_path(folder)
    if path is not None:
        try:
            return stack.enter_context(locked(path, claimant))
        except NoLocksError:  # some mounts of networks and buckets: they are like any other folder without locks
            pass
    return stack.enter_context(beating(folder, claimant, heartbeat_seconds))


def _local_path(folder: Folder) -> Path | None:
    """Where a folder of this machine really is; None for one of another backend."""
    place = folder.place
    return Path(*place) if place[0] == os.sep else None
