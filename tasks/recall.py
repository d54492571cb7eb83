"""What earlier runs have answered: which artifacts hold the answer to a question about one image.

A shard whose images are all as before is found under its own key. One with a new, a changed or a lost image is not;
its other images are found here, wherever earlier runs have put them: in another shard, or under another name.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tasks.domain.artifacts import ANSWER_ID, ArtifactRef
from tasks.store import ArtifactStore, DamagedArtifactError

_TEXT = f"S{ANSWER_ID}"


class Recall:
    """The answers that a store held when they were first asked for.

    It reads every manifest of a kind, once, and only when something is not found otherwise: a run over a data set
    without a change never pays for it. 100 000 answers take 3 MB. What the run itself adds is not seen, so that a plan
    made before the run foresees what it finds. May be used from several threads.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._kinds: dict[str, dict[str, _Answered]] = {}
        self._lock = Lock()

    def holding(self, kind: str, about: str, wanted: Iterable[str]) -> dict[ArtifactRef, list[str]]:
        """The artifacts of `kind` that hold any of the answers `wanted` of `about`, each with those that it holds."""
        answered = self._of(kind).get(about)
        return answered.holding(wanted) if answered else {}

    def payloads(self, kind: str, about: str, wanted: Iterable[str]) -> Iterator[tuple[bytes, list[str]]]:
        """The bytes of these artifacts; what is damaged is told and left out, for it to be answered again."""
        for ref, held in self.holding(kind, about, wanted).items():
            try:
                yield self._store.read(ref), held
            except DamagedArtifactError as damage:
                self._store.tell(damage, "what it answered is asked again")

    def abouts(self, kind: str, subject: str) -> frozenset[str]:
        """About what `kind` has any answer for a subject, the first part of an `answer_id`."""
        return frozenset(about for about, answered in self._of(kind).items() if answered.knows(subject))

    def __getstate__(self) -> ArtifactStore:
        # Another process reads for itself: the answers may be many.
        return self._store

    def __setstate__(self, store: ArtifactStore) -> None:
        self.__init__(store)  # type: ignore[misc]

    def _of(self, kind: str) -> "dict[str, _Answered]":
        with self._lock:
            if kind not in self._kinds:
                self._kinds[kind] = _read(self._store, kind)
            return self._kinds[kind]


@dataclass(frozen=True)
class _Answered:
    """Sorted answers (N,), for each the position (N,) of its artifact among `refs`."""

    answers: NDArray[np.bytes_]
    owners: NDArray[np.int32]
    refs: Sequence[ArtifactRef]

    def holding(self, wanted: Iterable[str]) -> dict[ArtifactRef, list[str]]:
        asked = np.unique(np.array(list(wanted), dtype=_TEXT))
        at = np.minimum(np.searchsorted(self.answers, asked), len(self.answers) - 1)
        held: dict[ArtifactRef, list[str]] = {}
        for found in at[self.answers[at] == asked]:
            held.setdefault(self.refs[self.owners[found]], []).append(self.answers[found].decode())
        return held

    def knows(self, subject: str) -> bool:
        at = int(np.searchsorted(self.answers, np.array(subject, dtype=_TEXT)))
        return at < len(self.answers) and self.answers[at].startswith(subject.encode())


def _read(store: ArtifactStore, kind: str) -> dict[str, _Answered]:
    refs: dict[str, list[ArtifactRef]] = {}
    answers: dict[str, list[NDArray[np.bytes_]]] = {}
    for manifest in store.manifests(kind):
        if manifest.answers and manifest.answers.to:
            refs.setdefault(manifest.answers.about, []).append(manifest.ref)
            answers.setdefault(manifest.answers.about, []).append(np.array(manifest.answers.to, dtype=_TEXT))
    return {about: _sorted(refs[about], answers[about]) for about in refs}


def _sorted(refs: Sequence[ArtifactRef], answers: Sequence[NDArray[np.bytes_]]) -> _Answered:
    together = np.concatenate(answers)
    owners = np.repeat(np.arange(len(refs), dtype=np.int32), [len(of_one) for of_one in answers])
    order = np.argsort(together, kind="stable")  # of several artifacts with an answer, that of the lowest key counts
    return _Answered(together[order], owners[order], refs)
