"""Claims of local folders: a lock of the kernel, which ends with the process that holds it.

The lock is on the file `.autolabel.lock` in the folder, exclusive or shared, and the file tells who holds it, a line
for each. Who leaves last deletes it. The descriptor is closed on exec (PEP 446), so that no child process, such as a
Prefect server, holds on to the lock.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tasks.domain.errors import ArtifactError, LostClaimError
from tasks.storage.claimants import UNKNOWN, Claimant, dump_claimant, load_claimant, refusal

LOCK_FILE = ".autolabel.lock"
# Who leaves a folder holds its lock alone while they delete the file, some 10 us (measured): one pause is plenty.
TRIES, PAUSE_SECONDS = 6, 0.05
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks answer


class NoLocksError(ArtifactError):
    """The file system of the folder has no locks."""


@dataclass(frozen=True)
class FolderLock:
    """The lock file at `path`, open and locked."""

    path: Path
    file: FileIO

    def refuse_if_lost(self) -> None:
        """Raise LostClaimError where the locked file is no longer the one in the folder."""
        if not self.is_in_place():
            raise LostClaimError(
                f"{self.path.parent} was deleted or replaced while a run worked there, which stopped before it wrote "
                "more; run the same command again"
            )

    def is_in_place(self) -> bool:
        """Whether the locked file is the one in the folder."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def locked(folder: Path, claimant: Claimant) -> Iterator[FolderLock]:
    """Hold the lock of a folder; folders that were made for it go with it when nothing else came in.

    Raises:
        ClaimedError: someone holds it in a way that excludes this claimant.
        NoLocksError: the file system has no locks.
        ArtifactError: the folder cannot be written.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    with _errors_told(folder):
        lock, line = _acquire(folder / LOCK_FILE, claimant)
    with lock.file:
        try:
            yield lock
        finally:
            with suppress(OSError):  # the folder may be gone or read-only by now; what was done in it is done
                _leave(lock, line)
                for place in new:
                    place.rmdir()


@contextmanager
def _errors_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_LOCKS:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            raise NoLocksError(f"the file system of {folder} has no locks") from error
        raise ArtifactError(
            f"{folder} cannot be claimed: {error.strerror}: {error.filename or LOCK_FILE}; check the permissions and "
            "the free space, or choose another folder"
        ) from error


def _acquire(path: Path, claimant: Claimant) -> tuple[FolderLock, range]:
    """The lock, with where in the file the line of its claimant is."""
    for _ in range(TRIES):
        with suppress(FileNotFoundError), ExitStack() as stack:  # who leaves may take the folder along
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path, stack.enter_context(FileIO(path, "a+")))
            if _lock(lock.file, exclusive=claimant.exclusive) and lock.is_in_place():
                line = _sign(lock.file, claimant)
                stack.pop_all()
                return lock, line
        time.sleep(PAUSE_SECONDS)
    raise refusal(str(path.parent), _holders(path))


def _lock(file: FileIO, *, exclusive: bool) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: FileIO, claimant: Claimant) -> range:
    """Append the claimant's line, in place of all others where it is alone: the bytes of the file that it takes."""
    if claimant.exclusive:
        file.truncate(0)  # what is there was written by processes that were killed
    line = dump_claimant(claimant)
    file.write(line)
    return range(file.tell() - len(line), file.tell())


def _holders(path: Path) -> list[str]:
    """Who holds the lock, by the lines of all that are not known to be gone."""
    lines: list[bytes] = []
    with suppress(FileNotFoundError):
        lines = path.read_bytes().split(b"\n")
    holders = [load_claimant(line) for line in lines if line.strip()]
    return [holder.owner for holder in holders if not holder.process.is_gone()] or [UNKNOWN.owner]


def _leave(lock: FolderLock, line: range) -> None:
    """Delete the lock file, or only the line in it where others hold the lock, too."""
    if not lock.is_in_place():
        return
    with FileIO(lock.path, "r+") as file:  # the locked descriptor appends, wherever it is told to write
        file.seek(line.start)
        file.write(b" " * (len(line) - 1))
    if _lock(lock.file, exclusive=True):
        lock.path.unlink()
