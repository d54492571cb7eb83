"""Keeping a cache in order: whether everything in it is sound, and what may go."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from tasks.cache_contents import Contents, StoredArtifact, digest_in_name, survey, total_bytes
from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError
from tasks.in_order import in_order
from tasks.progress import advance, begin
from tasks.registered_runs import DamagedEntry, RunEntry, RunRegister
from tasks.storage.claims import Claim, claim, owner_of
from tasks.storage.folder import READERS, Folder, MissingFileError, StoredFile
from tasks.store import ArtifactStore

# Says which artifacts go, of what lies in a cache.
Choice = Callable[[Contents], Sequence[StoredArtifact]]


@dataclass(frozen=True)
class Verification:
    """What lies in a cache, and a line for every file in it that is not what it has to be."""

    contents: Contents
    damaged: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether runs can use all that they find here. No run finds an orphan."""
        return not (self.damaged or self.contents.missing or self.contents.damaged)


def verify(store: ArtifactStore) -> Verification:
    """Read every artifact and compare its bytes with its manifest; a few of them are in memory at a time.

    Raises ArtifactError for what a newer autolabel-flow has written, and where the cache cannot be read.
    """
    contents = survey(store)
    begin("verify", len(contents.artifacts))
    damaged: list[str] = []
    for kind, artifacts in groupby(contents.artifacts, key=lambda artifact: artifact.kind):
        described = {manifest.ref.key: manifest.ref for manifest in store.manifests(kind)}
        for _, faults in in_order(partial(_faults, _folder(store), described), artifacts, READERS):
            damaged += faults
            advance("verify", 1)
    return Verification(contents, tuple(damaged))


def _faults(folder: Folder, described: dict[str, ArtifactRef], artifact: StoredArtifact) -> list[str]:
    """What is wrong with an artifact; `described` is what the manifests say that can be read, by key."""
    ref = described.get(artifact.key)
    faults = [fault for file in artifact.data if (fault := _data_fault(folder, file, ref))]
    if artifact.manifest is None:
        return [f"{artifact.data[0].path} has no manifest, and a registered run needs it", *faults]
    if ref is None:
        return [f"{artifact.manifest.path} is not a manifest", *faults]
    if not any(ref.sha256.startswith(digest_in_name(file)) for file in artifact.data):
        return [f"{artifact.manifest.path} has lost its data", *faults]
    return faults


def _data_fault(folder: Folder, file: StoredFile, ref: ArtifactRef | None) -> str | None:
    expected = digest_in_name(file)
    if ref is not None and ref.sha256.startswith(expected):
        expected = ref.sha256
    try:
        found = hashlib.sha256(folder.read(file.path)).hexdigest()
    except MissingFileError:
        return f"{file.path} was deleted meanwhile"
    return None if found.startswith(expected) else f"{file.path} has sha256 {found}, expected {expected}"


def unreferenced(contents: Contents) -> Sequence[StoredArtifact]:
    """All artifacts that no registered run needs."""
    return contents.unreferenced


def older_than(modified: float) -> Choice:
    """The unreferenced artifacts written before that time (POSIX seconds); none of unknown age."""
    return lambda contents: [artifact for artifact in contents.unreferenced if 0 < artifact.modified < modified]


def beyond_size(most_bytes: int) -> Choice:
    """The oldest unreferenced artifacts, as many as have to go until everything that stays fits, or all of them."""

    def choice(contents: Contents) -> list[StoredArtifact]:
        stays = contents.bytes - total_bytes(contents.left_behind)
        chosen = []
        for artifact in sorted(contents.unreferenced, key=lambda one: (one.modified, one.kind, one.key)):
            if stays <= most_bytes:
                break
            chosen.append(artifact)
            stays -= artifact.bytes
        return chosen

    return choice


@dataclass(frozen=True)
class Pruning:
    """What goes from a cache: artifacts, all orphans and temporary files, and the entries of forgotten runs.

    `contents` is what lies there, as if the forgotten runs had never been.
    """

    contents: Contents
    artifacts: tuple[StoredArtifact, ...]
    forgotten: tuple[RunEntry | DamagedEntry, ...]

    @property
    def freed(self) -> int:
        """The bytes of all files that go, but for those of the register."""
        return total_bytes(self.contents.left_behind) + sum(artifact.bytes for artifact in self.artifacts)

    @property
    def stays(self) -> int:
        """The bytes that the cache takes afterwards."""
        return self.contents.bytes - self.freed


def plan_pruning(store: ArtifactStore, choice: Choice, forget: Sequence[str] = ()) -> Pruning:
    """What `prune` would delete now.

    Args:
        store: The cache.
        choice: Which artifacts go, of those that no run needs.
        forget: Each results_dir whose runs are to be forgotten, so that nothing stays on their behalf.

    Raises:
        ArtifactError: no run over a results_dir to forget is registered, an entry of the register is damaged or was
            written by a newer autolabel-flow, or the cache cannot be read.
    """
    forgotten = _entries_over(RunRegister(store), forget)
    contents = survey(store, {entry.path for entry in forgotten})
    _refuse_damaged(store, contents.damaged)
    return Pruning(contents, tuple(choice(contents)), forgotten)


def prune(store: ArtifactStore, choice: Choice, forget: Sequence[str] = ()) -> Pruning:
    """Delete what `plan_pruning` tells, while nobody else uses the cache: what went.

    A kill leaves orphans at worst, which the next one deletes.

    Raises:
        ClaimedError: a run uses the cache.
        ArtifactError: as by `plan_pruning`, or something cannot be deleted.
    """
    folder = _folder(store)
    with claim(folder, exclusive=True, owner=owner_of("autolabel cache prune")) as held:
        pruning = plan_pruning(store, choice, forget)
        for entry in pruning.forgotten:
            folder.delete_tree(entry.path)
        leftovers = [(file,) for file in pruning.contents.left_behind]
        removals = [*(artifact.files for artifact in pruning.artifacts), *leftovers]
        begin("prune", len(removals))
        for _ in in_order(partial(_remove, folder, held), removals, READERS):
            advance("prune", 1)
        return pruning


def _remove(folder: Folder, held: Claim, files: Sequence[StoredFile]) -> None:
    """Delete files in their order: an artifact's manifest goes first, and what is left is no artifact."""
    held.refuse_if_lost()
    for file in files:
        folder.delete_tree(file.path)


def _entries_over(register: RunRegister, forget: Sequence[str]) -> tuple[RunEntry | DamagedEntry, ...]:
    """The entries of all runs over any of the results_dirs `forget`, without their references."""
    entries = [_without_needs(entry) for entry in (register.entries() if forget else ())]
    over = {results_dir: [entry for entry in entries if register.is_over(results_dir, entry)] for results_dir in forget}
    unknown = [without_password(results_dir) for results_dir, found in over.items() if not found]
    if unknown:
        known = sorted({entry.results_dir for entry in entries if isinstance(entry, RunEntry)})
        raise ArtifactError(
            f"no run over {', '.join(unknown)} is registered in {without_password(register.store.uri)}, so none can be "
            f"forgotten; the registered ones are over: {', '.join(known) or 'nothing'}"
        )
    return tuple(entry for entry in entries if any(entry in found for found in over.values()))


def _without_needs(entry: RunEntry | DamagedEntry) -> RunEntry | DamagedEntry:
    return replace(entry, needs=frozenset()) if isinstance(entry, RunEntry) else entry


def _refuse_damaged(store: ArtifactStore, damaged: Sequence[DamagedEntry]) -> None:
    if damaged:
        raise ArtifactError(
            f"{', '.join(entry.path for entry in damaged)} in {without_password(store.uri)} was cut or changed: what "
            "its run needs is not known, and nothing is pruned; repeat that run, which writes it anew, or delete that "
            "file, and what the run alone needs goes"
        )


def _folder(store: ArtifactStore) -> Folder:
    return Folder(store.uri, store.storage_options)
