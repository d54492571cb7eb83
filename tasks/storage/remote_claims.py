"""Claims of folders without locks: a file for each claimant, and the holder shows that it lives.

A claim is `.autolabel-claims/<random>.json`, which says who it is. Beside it, `<random>.beat` is written anew at every
heartbeat by the process that holds the claim. Who comes writes its claim first and looks for others then: of two that
come at once, at least one sees the other, and whoever sees a claim that excludes it withdraws. Beats begin when the
folder is held. So of a claim that was seen, one of three things comes true, and no clocks of machines are compared:

* It goes away: it was withdrawn, and whoever saw it tries again after a pause of random length.
* Its beat changes: it is held, and whoever saw it is refused.
* Neither: it is dead and is deleted.

A claim is written once and deleted once, whatever becomes of its beats: a process that was suspended, taken for dead,
and goes on finds that its claim is gone.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from random import SystemRandom
from secrets import token_hex
from threading import Event, Thread

from tasks.domain.addresses import without_password
from tasks.domain.errors import ArtifactError, LostClaimError
from tasks.storage.claimants import Claimant, dump_claimant, load_claimant, refusal
from tasks.storage.folder import Folder, MissingFileError

logger = logging.getLogger(__name__)

CLAIMS = ".autolabel-claims"
CLAIM, BEAT = ".json", ".beat"

# In heartbeats. Two beats may be lost before a claim is dead; a look is cheap beside the run that waits for it.
LOOKS, LOOK_AFTER = 25, 0.1
# Two that come at once meet again when their pauses differ by less than it takes to write and look, some 0.1 s on an
# object store: at heartbeats of 10 s one time in ten, and five times in a row once in 100 000.
TRIES, LONGEST_PAUSE = 5, 0.2


@contextmanager
def beating(folder: Folder, claimant: Claimant, heartbeat_seconds: float) -> Iterator["RemoteClaim"]:
    """Hold a claim of a folder.

    Raises:
        ClaimedError: someone holds one that excludes this claimant.
        ArtifactError: the folder cannot be read or written.
    """
    claim = RemoteClaim(folder, claimant, heartbeat_seconds, token_hex(8))
    try:
        claim.take()
        with _beats(claim):
            yield claim
    finally:
        try:
            claim.delete(claim.name)
        except ArtifactError as error:
            logger.warning("the claim of %s was not withdrawn: %s", claimant.owner, error)


@contextmanager
def _beats(claim: "RemoteClaim") -> Iterator[None]:
    ended = Event()
    thread = Thread(target=claim.beat, args=(ended,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class RemoteClaim:
    """The claim of `claimant` under a random `name`, among the others of the folder."""

    folder: Folder
    claimant: Claimant
    heartbeat_seconds: float
    name: str

    def refuse_if_lost(self) -> None:
        """Raise LostClaimError where the claim is gone: another process has taken this one for dead."""
        if self._read(self.name, CLAIM) is None:
            raise LostClaimError(
                f"{self._address} was taken over from {self.claimant.owner}, which did not show for "
                f"{self._silence:.0f} s that it lives and stopped before it wrote more; run the same command again "
                "when nobody else works there"
            )

    def take(self) -> None:
        """Write the claim where no other excludes it; raises ClaimedError."""
        for _ in range(TRIES):
            self.folder.write(_path(self.name, CLAIM), dump_claimant(self.claimant))
            rivals = self._rivals()
            if not rivals:
                return
            self.delete(self.name)
            self._outlast(rivals)
            time.sleep(SystemRandom().uniform(0, LONGEST_PAUSE * self.heartbeat_seconds))
        raise refusal(self._address, sorted(rival.owner for rival in rivals.values()))

    def beat(self, ended: Event) -> None:
        """Show that the claim is held until `ended` is set, or the claim lost."""
        for number in count():
            try:
                self.refuse_if_lost()
                self.folder.write(_path(self.name, BEAT), str(number).encode())
            except LostClaimError:
                return
            except ArtifactError as error:
                logger.info("heartbeat %d: %s", number, error)  # the folder may be within reach at the next one
            if ended.wait(self.heartbeat_seconds):
                return

    def delete(self, name: str) -> None:
        """Take away a claim, this one or a dead one; nothing happens where there is none."""
        self.folder.delete_tree(_path(name, CLAIM))
        self.folder.delete_tree(_path(name, BEAT))

    def _rivals(self) -> dict[str, Claimant]:
        """The claims that exclude this one, by name; any of a process that is known to be gone is deleted."""
        rivals = {}
        for name in self._names() - {self.name}:
            payload = self._read(name, CLAIM)
            other = load_claimant(payload) if payload is not None else None
            if other is not None and other.process.is_gone():
                self.delete(name)
            elif other is not None and (self.claimant.exclusive or other.exclusive):
                rivals[name] = other
        return rivals

    def _outlast(self, rivals: Mapping[str, Claimant]) -> None:
        """Wait until the rivals are withdrawn or dead; raises ClaimedError when one of them is held."""
        beats = {name: self._read(name, BEAT) for name in rivals}
        for _ in range(LOOKS):
            time.sleep(LOOK_AFTER * self.heartbeat_seconds)
            names = self._names()
            beats = {name: beat for name, beat in beats.items() if name in names}
            held = [rivals[name].owner for name, beat in beats.items() if self._read(name, BEAT) != beat]
            if held:
                raise refusal(self._address, sorted(held))
            if not beats:
                return
        for name in beats:
            self.delete(name)
            logger.warning(
                "%s: %s left its claim and does not answer; taken over after %.0f s",
                self._address,
                rivals[name].owner,
                self._silence,
            )

    def _names(self) -> set[str]:
        return {file.removesuffix(CLAIM) for file in self.folder.names(CLAIMS) if file.endswith(CLAIM)}

    def _read(self, name: str, suffix: str) -> bytes | None:
        try:
            return self.folder.read(_path(name, suffix))
        except MissingFileError:
            return None

    @property
    def _address(self) -> str:
        return without_password(self.folder.uri)

    @property
    def _silence(self) -> float:
        """The seconds after which a claim without a beat is dead."""
        return LOOKS * LOOK_AFTER * self.heartbeat_seconds


def _path(name: str, suffix: str) -> str:
    return f"{CLAIMS}/{name}{suffix}"
