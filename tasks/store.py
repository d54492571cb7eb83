"""The content-addressed store of artifacts, on any fsspec backend."""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Answers, ArtifactRef, Json, canonical_json, digest_of
from tasks.domain.errors import ArtifactError
from tasks.in_order import in_order
from tasks.storage.folder import Folder, MissingFileError

logger = logging.getLogger(__name__)

MANIFEST = ".manifest.json"  # how the names of manifests end
CHECKSUM = "checksum"  # the digest of all else in a manifest: its counts steer a run, and its answers what is asked
READERS = 8  # threads: an object store answers after some 30 ms, and 16 artifacts of 200 kB are 3 MB
MANIFEST_FORMAT = 1  # raised when an older autolabel-flow would misread what is written


class DamagedArtifactError(ArtifactError):
    """An artifact is not, or no longer, what its manifest or its reference says; its argument says what was found."""

    def __str__(self) -> str:
        return f"{self.args[0]}; run the same command again and it is made anew"


@dataclass(frozen=True)
class Manifest:
    """What the manifest of an artifact says: its reference, its size in bytes, and which questions it answers."""

    ref: ArtifactRef
    bytes: int
    answers: Answers | None


@dataclass(frozen=True)
class ArtifactStore:
    """Artifacts named by what they are made of: the cache between runs, and what references refer to.

    An artifact is data and a manifest, `<kind>/<key[:2]>/<key>.<sha256[:16]>.json` and `<key>.manifest.json` under
    `uri` (see Folder for `uri` and `storage_options`). The data is written first and the manifest last, and every
    reader checks the digest, so that an artifact exists whole or not at all on every backend and without a lock. Two
    runs may publish other bytes under one key (GPUs round differently): each reference keeps its own data, and the
    next run finds the one whose manifest stands.
    """

    uri: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    _told: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    def tell(self, damage: DamagedArtifactError, what_follows: str) -> None:
        """Warn of a damaged artifact, once however many meet it in a run."""
        if damage.args[0] not in self._told:
            self._told.add(damage.args[0])
            logger.warning("%s; %s", damage.args[0], what_follows)

    def lookup(self, kind: str, key: str) -> ArtifactRef | None:
        """The artifact under `key`, or None where it has to be made, or made again because it is damaged.

        Raises ArtifactError for a manifest that a newer autolabel-flow wrote, and when the store cannot be reached.
        """
        try:
            return self._whole(kind, key)
        except DamagedArtifactError as damage:
            self.tell(damage, "it is made again")
            return None

    def publish(
        self,
        kind: str,
        key: str,
        payload: bytes,
        counts: Mapping[str, Json] | None = None,
        replaces: ArtifactRef | None = None,
        answers: Answers | None = None,
    ) -> ArtifactRef:
        """Store `payload` under `key`, with the `counts` that sum it up, and return the reference to it.

        `answers` are those in it that other artifacts may take over (see tasks/recall.py).

        Where another run was faster, its artifact stands and is returned: both answer to the same key. Only an
        artifact that the caller knows and has made better, `replaces`, gives way. Raises ArtifactError when the store
        cannot be written.
        """
        with suppress(DamagedArtifactError):
            faster = self._whole(kind, key)
            if faster is not None and faster != replaces:
                return faster
        ref = ArtifactRef(kind, key, hashlib.sha256(payload).hexdigest())
        manifest: dict[str, Json] = {
            "format": MANIFEST_FORMAT,
            "sha256": ref.sha256,
            "bytes": len(payload),
            "counts": counts or {},
            **({"answers": {"about": answers.about, "to": answers.to}} if answers else {}),
        }
        self._folder.write(_data_path(ref), payload)
        self._folder.write(_manifest_path(kind, key), canonical_json({**manifest, CHECKSUM: digest_of(manifest)}))
        return ref

    def manifests(self, kind: str) -> Iterator[Manifest]:
        """What the manifests of all artifacts of a kind say, sorted by key; damaged ones are left out."""
        paths = [file.path for file in self._folder.files(kind) if file.path.endswith(MANIFEST)]
        for path, payload in self._folder.read_all(paths):
            with suppress(DamagedArtifactError):
                found = self._parse_manifest(path, payload)
                key = path.rpartition("/")[2].removesuffix(MANIFEST)
                answers = found.get("answers")
                yield Manifest(
                    ArtifactRef(kind, key, found["sha256"]),
                    found["bytes"],
                    Answers(answers["about"], tuple(answers["to"])) if answers else None,
                )

    def read(self, ref: ArtifactRef) -> bytes:
        """The bytes that `ref` refers to; raises DamagedArtifactError when they are gone or others."""
        path = _data_path(ref)
        try:
            payload = self._folder.read(path)
        except MissingFileError as error:
            raise DamagedArtifactError(_found(self.uri, path, "is missing")) from error
        if (found := hashlib.sha256(payload).hexdigest()) != ref.sha256:
            raise DamagedArtifactError(_found(self.uri, path, f"has sha256 {found}, expected {ref.sha256}"))
        return payload

    def read_each(self, refs: Iterable[ArtifactRef]) -> Iterator[bytes]:
        """The bytes of every artifact, in their order; a few are read ahead. Raises in its place what `read` raises."""
        for _, payload in in_order(self.read, refs, READERS):
            yield payload

    def counts(self, ref: ArtifactRef) -> dict[str, Json]:
        """What was counted when `ref` was published; raises DamagedArtifactError when its manifest is gone."""
        manifest = self._manifest(ref.kind, ref.key)
        if manifest is None or manifest["sha256"] != ref.sha256:
            path = _manifest_path(ref.kind, ref.key)
            raise DamagedArtifactError(_found(self.uri, path, f"does not describe the bytes with sha256 {ref.sha256}"))
        return dict(manifest["counts"])

    def _whole(self, kind: str, key: str) -> ArtifactRef | None:
        manifest = self._manifest(kind, key)
        if manifest is None:
            return None
        ref = ArtifactRef(kind, key, manifest["sha256"])
        self.read(ref)
        return ref

    def _manifest(self, kind: str, key: str) -> dict[str, Any] | None:
        path = _manifest_path(kind, key)
        try:
            return self._parse_manifest(path, self._folder.read(path))
        except MissingFileError:
            return None

    def _parse_manifest(self, path: str, payload: bytes) -> dict[str, Any]:
        try:
            manifest = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise DamagedArtifactError(_found(self.uri, path, "is not JSON")) from error
        if _is_newer(manifest):
            raise ArtifactError(
                _found(self.uri, path, f"is of format {manifest['format']}, newer than {MANIFEST_FORMAT}, which this ")
                + "autolabel-flow reads; upgrade autolabel-flow or set another cache_dir"
            )
        if not _is_manifest(manifest):
            raise DamagedArtifactError(_found(self.uri, path, f"is not a manifest of format {MANIFEST_FORMAT}"))
        if not _is_whole(manifest):
            raise DamagedArtifactError(_found(self.uri, path, f"is changed: its {CHECKSUM} does not fit"))
        return manifest  # type: ignore[no-any-return]

    @property
    def _folder(self) -> Folder:
        return Folder(self.uri, self.storage_options)


def _data_path(ref: ArtifactRef) -> str:
    return f"{ref.kind}/{ref.key[:2]}/{ref.key}.{ref.sha256[:16]}.json"


def _manifest_path(kind: str, key: str) -> str:
    return f"{kind}/{key[:2]}/{key}{MANIFEST}"


def _found(uri: str, path: str, what: str) -> str:
    return f"{path} under {without_password(uri)} {what}"


def _is_newer(manifest: object) -> bool:
    version = manifest.get("format") if isinstance(manifest, dict) else None
    return isinstance(version, int) and version > MANIFEST_FORMAT


def _is_manifest(manifest: object) -> bool:
    return (
        isinstance(manifest, dict)
        and manifest.get("format") == MANIFEST_FORMAT
        and re.fullmatch("[0-9a-f]{64}", str(manifest.get("sha256"))) is not None
        and isinstance(manifest.get("bytes"), int)
        and isinstance(manifest.get("counts"), dict)
        and _is_answers(manifest.get("answers"))
    )


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest is, but for the checksum, what the checksum was taken of."""
    try:
        return manifest.get(CHECKSUM) == digest_of({name: manifest[name] for name in manifest if name != CHECKSUM})
    except ValueError:  # NaN, or half a surrogate pair, which no manifest holds that was written here
        return False


def _is_answers(answers: object) -> bool:
    return answers is None or (
        isinstance(answers, dict)
        and isinstance(answers.get("about"), str)
        and isinstance(answers.get("to"), list)
        and all(isinstance(answer, str) for answer in answers["to"])
    )
