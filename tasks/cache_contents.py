"""What lies in a cache: the artifacts, which of them the registered runs need, and what else there is."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace

from tasks.domain.artifacts import ArtifactRef
from tasks.registered_runs import REGISTER_FILE, RUNS, DamagedEntry, RunEntry, RunRegister
from tasks.storage.folder import Folder, StoredFile
from tasks.storage.local_claims import LOCK_FILE
from tasks.storage.remote_claims import CLAIMS
from tasks.storage.temporaries import TEMPORARY
from tasks.store import MANIFEST, ArtifactStore

# How the store names its files. Everything else in the folder is someone else's, whatever it may be.
_KEY = r"(?P<kind>[^/]+)/(?P<start>[0-9a-f]{2})/(?P<key>(?P=start)[0-9a-f]{62})"
_DATA = re.compile(_KEY + r"\.(?P<digest>[0-9a-f]{16})\.json")
_MANIFEST = re.compile(_KEY + re.escape(MANIFEST))
_TEMPORARY = re.compile(r"(?P<kind>[^/]+)/(?:[0-9a-f]{2}/)?" + re.escape(TEMPORARY) + "[^/]+")
_DIGEST = 16  # hexadecimal digits of the SHA-256 in the name of the data


@dataclass(frozen=True)
class StoredArtifact:
    """What lies under a kind and a key: its manifest, if there is one, and the data that count, sorted.

    The data that count are those that the manifest describes and those that a registered run refers to.
    """

    kind: str
    key: str
    manifest: StoredFile | None
    data: tuple[StoredFile, ...]
    is_needed: bool

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All its files, the manifest first."""
        return (self.manifest, *self.data) if self.manifest else self.data

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return total_bytes(self.files)

    @property
    def modified(self) -> float:
        """When it was last written, in POSIX seconds by the backend's clock; 0 where the backend tells no times."""
        return max(file.modified for file in self.files)


@dataclass(frozen=True)
class RunNeeds:
    """A registered run, without its references: how many artifacts it needs, how many are there, and their bytes."""

    entry: RunEntry
    needed: int
    there: int
    bytes: int


@dataclass(frozen=True)
class Contents:
    """What lies in a cache.

    Attributes:
        artifacts: All of them, sorted by kind and key.
        orphans: Data that no manifest describes and no run refers to: a run was killed before it wrote the manifest,
            or another artifact has taken the place.
        temporaries: What runs that were killed were about to write.
        runs: The registered runs, sorted by results_dir and flow.
        missing: What they need and is not there, sorted.
        damaged: Entries of the register that nobody can read any more.
        register: The files of the register.
        foreign: How many other files there are.
    """

    artifacts: tuple[StoredArtifact, ...] = ()
    orphans: tuple[StoredFile, ...] = ()
    temporaries: tuple[StoredFile, ...] = ()
    runs: tuple[RunNeeds, ...] = ()
    missing: tuple[ArtifactRef, ...] = ()
    damaged: tuple[DamagedEntry, ...] = ()
    register: tuple[StoredFile, ...] = ()
    foreign: int = 0

    @property
    def unfinished_since(self) -> float | None:
        """When the first of the runs began that did not finish; None where all have finished."""
        return min((run.entry.since for run in self.runs if run.entry.since is not None), default=None)

    @property
    def unreferenced(self) -> list[StoredArtifact]:
        """The artifacts that no registered run needs, but for those that an unfinished run may have made."""
        return [artifact for artifact in self.artifacts if not artifact.is_needed and not self._is_recent(artifact)]

    @property
    def recent(self) -> list[StoredArtifact]:
        """The artifacts that no run says it needs, and that are younger than a run that did not finish."""
        return [artifact for artifact in self.artifacts if not artifact.is_needed and self._is_recent(artifact)]

    @property
    def left_behind(self) -> tuple[StoredFile, ...]:
        """What is no part of an artifact: orphans and temporary files."""
        return (*self.orphans, *self.temporaries)

    @property
    def bytes(self) -> int:
        """The size of everything but the foreign files."""
        return total_bytes((*self.left_behind, *self.register)) + sum(artifact.bytes for artifact in self.artifacts)

    def _is_recent(self, artifact: StoredArtifact) -> bool:
        since = self.unfinished_since
        return since is not None and artifact.modified >= since


@dataclass(frozen=True)
class Holding:
    """So many artifacts, their bytes, and when the oldest and the newest of them were written (POSIX seconds).

    The times are 0 where the backend tells none.
    """

    artifacts: int
    bytes: int
    oldest: float
    newest: float


def by_kind(artifacts: Iterable[StoredArtifact]) -> dict[str, Holding]:
    """What there is of each kind, sorted by its name."""
    kinds: dict[str, list[StoredArtifact]] = {}
    for artifact in artifacts:
        kinds.setdefault(artifact.kind, []).append(artifact)
    return {kind: holding_of(kinds[kind]) for kind in sorted(kinds)}


def holding_of(artifacts: Sequence[StoredArtifact]) -> Holding:
    """What there is of some artifacts; no artifacts have no age."""
    times = [artifact.modified for artifact in artifacts] or [0.0]
    return Holding(len(artifacts), sum(artifact.bytes for artifact in artifacts), min(times), max(times))


def total_bytes(files: Iterable[StoredFile]) -> int:
    """The size of all files together."""
    return sum(file.bytes for file in files)


def digest_in_name(file: StoredFile) -> str:
    """The first hexadecimal digits of the SHA-256 that the data of an artifact have to have."""
    return file.path.rsplit(".", 2)[1]


def survey(store: ArtifactStore, forgotten: Collection[str] = ()) -> Contents:
    """What lies in a cache, as if the files `forgotten` of its register were not there.

    Raises ArtifactError for what a newer autolabel-flow has written, and where the cache cannot be read.
    """
    folder = Folder(store.uri, store.storage_options)
    shelf = _Shelf()
    others = [file for file in folder.files() if not shelf.takes(file)]
    register = [file for file in others if REGISTER_FILE.fullmatch(file.path)]
    claims = [file for file in others if file.path.startswith((LOCK_FILE, f"{CLAIMS}/"))]
    known = _known(RunRegister(store), shelf, forgotten)  # before what lies on the shelf is sorted out by it
    artifacts, orphans = shelf.sorted_out(store)
    return replace(
        known,
        artifacts=artifacts,
        orphans=orphans,
        temporaries=tuple(file for file in folder.temporaries() if shelf.has_place_for(file)),
        register=tuple(file for file in register if file.path not in forgotten),
        foreign=len(others) - len(register) - len(claims),
    )


def _known(register: RunRegister, shelf: "_Shelf", forgotten: Collection[str]) -> Contents:
    """What the register knows, told to the shelf, too."""
    runs: list[RunNeeds] = []
    damaged: list[DamagedEntry] = []
    missing: set[ArtifactRef] = set()
    for entry in register.entries():
        if entry.path in forgotten:
            continue
        if isinstance(entry, DamagedEntry):
            damaged.append(entry)
            continue
        there = {ref: found for ref in entry.needs if (found := shelf.refer(ref)) is not None}
        missing |= entry.needs - there.keys()
        runs.append(RunNeeds(replace(entry, needs=frozenset()), len(entry.needs), len(there), sum(there.values())))
    runs.sort(key=lambda run: (run.entry.results_dir, run.entry.flow, run.entry.path))
    return Contents(runs=tuple(runs), damaged=tuple(damaged), missing=tuple(sorted(missing, key=astuple)))


@dataclass
class _Parts:
    """The files under one kind and key, the data by the digest in their names, and the digests that runs refer to."""

    manifest: StoredFile | None = None
    data: dict[str, StoredFile] = field(default_factory=dict)
    referred: set[str] = field(default_factory=set)


class _Shelf:
    """The files of all artifacts, under their kind and key."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], _Parts] = {}

    def takes(self, file: StoredFile) -> bool:
        """Whether the file is one of an artifact, and is here now."""
        if match := _MANIFEST.fullmatch(file.path):
            self._at(match).manifest = file
        elif match := _DATA.fullmatch(file.path):
            self._at(match).data[match["digest"]] = file
        return match is not None

    def refer(self, ref: ArtifactRef) -> int | None:
        """Note that a run needs an artifact: its bytes, or None where it is not there."""
        parts = self._parts.get((ref.kind, ref.key))
        if parts is None:
            return None
        parts.referred.add(ref.sha256[:_DIGEST])
        data = parts.data.get(ref.sha256[:_DIGEST])
        return total_bytes(filter(None, (data, parts.manifest))) if data else None

    def has_place_for(self, file: StoredFile) -> bool:
        """Whether this is where the files of artifacts, or those of the register, are before they are whole."""
        match = _TEMPORARY.fullmatch(file.path)
        return match is not None and match["kind"] in {RUNS, *(kind for kind, _ in self._parts)}

    def sorted_out(self, store: ArtifactStore) -> tuple[tuple[StoredArtifact, ...], tuple[StoredFile, ...]]:
        """The artifacts, sorted, and the data that are no part of any."""
        described = self._described(store)
        artifacts: list[StoredArtifact] = []
        orphans: list[StoredFile] = []
        for (kind, key), parts in sorted(self._parts.items()):
            counting = described.get((kind, key), set(parts.data) if parts.manifest else set()) | parts.referred
            data = tuple(file for digest, file in sorted(parts.data.items()) if digest in counting)
            orphans += (file for digest, file in sorted(parts.data.items()) if digest not in counting)
            if parts.manifest or data:
                artifacts.append(StoredArtifact(kind, key, parts.manifest, data, is_needed=bool(parts.referred)))
        return tuple(artifacts), tuple(orphans)

    def _described(self, store: ArtifactStore) -> dict[tuple[str, str], set[str]]:
        """The data that the manifests describe, of kinds with several data under one key; read only for those."""
        kinds = {kind for (kind, _), parts in self._parts.items() if parts.manifest and len(parts.data) > 1}
        manifests = (manifest.ref for kind in sorted(kinds) for manifest in store.manifests(kind))
        return {(ref.kind, ref.key): {ref.sha256[:_DIGEST]} for ref in manifests}

    def _at(self, match: re.Match[str]) -> _Parts:
        return self._parts.setdefault((match["kind"], match["key"]), _Parts())
