"""The runs that use a cache, and which artifacts each of them needs: what the cache keeps when it is cleaned.

A run goes by where its results are and by its flow: the same command again is the same run. It needs what it would
read if it were started again now, so that this costs no forward pass.
"""

import hashlib
import json
import logging
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, canonical_json, digest_of
from tasks.domain.errors import ArtifactError
from tasks.storage.folder import Folder, StoredFile
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

RUNS = "runs"  # the folder of the register in the cache
REGISTER_FILE = re.compile(RUNS + r"/[0-9a-f]{64}\.[a-z0-9-]+\.jsonl")
REGISTER_FORMAT = 1  # raised when an older autolabel-flow would misread what is written


@dataclass(frozen=True)
class RunEntry:
    """What a cache knows about the last run of a flow over a results_dir.

    `path` is the file in the cache that says so. `results_dir` is absolute where it is local, and has no password;
    `machine` names where it is local, and the cache is not. A run that was killed is still "running"; `since` is when
    the first of those began that did not finish, in POSIX seconds by the clock of the cache's backend, and None for a
    finished one. What was made since then may be missing among what it `needs`.
    """

    path: str
    results_dir: str
    flow: str
    machine: str | None
    state: Literal["running", "finished"]
    since: float | None
    needs: frozenset[ArtifactRef] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class DamagedEntry:
    """A file of the register that was cut or changed: nobody knows what its run needs."""

    path: str


class RegisteredRun:
    """A run under way, which tells the cache what it needs.

    Until it is finished, the cache keeps what the run before it needed as well: should this one be killed, both can be
    gone on with.
    """

    def __init__(self, folder: Folder, entry: RunEntry, *, writes_before_the_end: bool) -> None:
        self._folder = folder
        self._entry = entry
        self._needed: set[ArtifactRef] = set()
        self._writes_before_the_end = writes_before_the_end

    def needs(self, refs: Iterable[ArtifactRef]) -> None:
        """Keep these artifacts from now on.

        A call with new ones writes the file of this run anew: better a few calls with thousands than the other way.
        """
        self._needed.update(refs)
        if not self._needed <= self._entry.needs:
            self._entry = replace(self._entry, needs=self._entry.needs | self._needed)
            if self._writes_before_the_end:
                _write(self._folder, self._entry)

    def finish(self) -> None:
        """Keep what this run needs, and no longer what only earlier runs of its flow over its results_dir needed."""
        _write(self._folder, replace(self._entry, state="finished", since=None, needs=frozenset(self._needed)))


@dataclass(frozen=True)
class RunRegister:
    """The runs that a store knows of: in its folder `runs`, a file for each flow and results_dir.

    Every method raises ArtifactError for a file that a newer autolabel-flow wrote, and when the store cannot be used.
    """

    store: ArtifactStore

    def begin(self, results_dir: str, flow: str) -> RegisteredRun:
        """Register a run of `flow` (its name, of lower-case letters, digits and hyphens) over `results_dir`.

        A damaged entry of an earlier run stays until this one is finished, and keeps everything as long.
        """
        results = self._results(results_dir)
        path = f"{RUNS}/{results.digest}.{flow}.jsonl"
        if not REGISTER_FILE.fullmatch(path):  # nobody would find it again, and what the run needs would be pruned
            raise ValueError(f"flow: found {flow!r}, expected lower-case letters, digits and hyphens")
        entry = RunEntry(path, results.address, flow, results.machine, "running", None)
        earlier = self._find(path)
        if isinstance(earlier, DamagedEntry):
            cache = without_password(self.store.uri)
            logger.warning("%s in %s was cut or changed; it is written anew when this run is finished", path, cache)
            return RegisteredRun(self._folder, entry, writes_before_the_end=False)
        if earlier is None or earlier.state == "finished":
            entry = replace(entry, needs=earlier.needs if earlier else frozenset())
            _write(self._folder, entry)
            earlier = self._find(path)  # with the time at which it was written
        begun = earlier if isinstance(earlier, RunEntry) else entry
        return RegisteredRun(self._folder, begun, writes_before_the_end=True)

    def entries(self) -> Iterator[RunEntry | DamagedEntry]:
        """Every run, sorted by the path of its file; one at a time is in memory, since each may need very much."""
        return map(self._read, self.files())

    def files(self) -> list[StoredFile]:
        """The files of the register, sorted."""
        return [file for file in self._folder.files(RUNS) if REGISTER_FILE.fullmatch(file.path)]

    def is_over(self, results_dir: str, entry: RunEntry | DamagedEntry) -> bool:
        """Whether the run was one over `results_dir`: that place, or the address that the entry tells."""
        if isinstance(entry, RunEntry) and entry.results_dir == without_password(results_dir):
            return True
        with suppress(ArtifactError):  # a place that cannot be reached any more
            return entry.path.startswith(f"{RUNS}/{self._results(results_dir).digest}.")
        return False

    def has_results(self, entry: RunEntry) -> bool | None:
        """Whether there is anything in the results_dir of a run; None where that cannot be told from here."""
        if entry.machine not in (None, socket.gethostname()):
            return None
        try:
            return bool(Folder(entry.results_dir, self.store.storage_options).names())
        except ArtifactError:
            return None

    def _results(self, results_dir: str) -> "_Results":
        place = Folder(results_dir, self.store.storage_options).place
        if not _is_local(place):
            return _Results(digest_of(place), without_password(results_dir), None)
        # Two machines may have a folder of one name, and share a cache that lies on neither of them.
        machine = None if _is_local(self._folder.place) else socket.gethostname()
        return _Results(digest_of([machine, *place]), str(Path(*place)), machine)

    def _find(self, path: str) -> RunEntry | DamagedEntry | None:
        return next((self._read(file) for file in self.files() if file.path == path), None)

    def _read(self, file: StoredFile) -> RunEntry | DamagedEntry:
        lines = self._folder.read(file.path).splitlines(keepends=True)
        with suppress(ValueError, LookupError, TypeError):  # whatever else may be in the place of our lines
            self._refuse_newer(json.loads(lines[0])["format"], file.path)
            if list(_signed(lines[:-1])) == lines:
                return _entry(file, lines[:-1])
        return DamagedEntry(file.path)

    def _refuse_newer(self, version: int, path: str) -> None:
        if version > REGISTER_FORMAT:
            raise ArtifactError(
                f"{path} under {without_password(self.store.uri)} is of format {version}, newer than "
                f"{REGISTER_FORMAT}, which this autolabel-flow reads; upgrade autolabel-flow or set another cache_dir"
            )

    @property
    def _folder(self) -> Folder:
        return Folder(self.store.uri, self.store.storage_options)


@dataclass(frozen=True)
class _Results:
    """What a results_dir goes by: the digest of its place and, for people, its address and its machine."""

    digest: str
    address: str
    machine: str | None


def _is_local(place: Sequence[str]) -> bool:
    return Path(place[0]).is_absolute()  # a remote place begins with the name of its backend


def _write(folder: Folder, entry: RunEntry) -> None:
    """Write the file of a run: equal entries give equal bytes, in whatever order the artifacts were told."""
    folder.write_stream(entry.path, _signed(_lines(entry)))


def _lines(entry: RunEntry) -> Iterator[bytes]:
    """A line about the run, then one for every artifact."""
    about = {name: getattr(entry, name) for name in ("results_dir", "flow", "machine", "state", "since")}
    yield canonical_json({"format": REGISTER_FORMAT, **about}) + b"\n"
    for ref in sorted(entry.needs, key=lambda ref: (ref.kind, ref.key, ref.sha256)):
        yield canonical_json([ref.kind, ref.key, ref.sha256]) + b"\n"


def _signed(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, and the SHA-256 of them all as one more: a file that was cut or changed shows it."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        yield line
    yield canonical_json({"sha256": digest.hexdigest()}) + b"\n"


def _entry(file: StoredFile, lines: Sequence[bytes]) -> RunEntry:
    head = json.loads(lines[0])
    since = head["since"]
    if since is None and head["state"] == "running":
        since = file.modified  # the run had only just begun
    refs = frozenset(ArtifactRef(*json.loads(line)) for line in lines[1:])
    return RunEntry(file.path, head["results_dir"], head["flow"], head["machine"], head["state"], since, refs)
