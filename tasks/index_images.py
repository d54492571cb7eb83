"""Step: what images there are, their digests and upright sizes, and which files cannot be read."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cached import told
from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Answers, ArtifactRef, answer_id, content_key, digest_of
from tasks.domain.errors import ImageError
from tasks.domain.images import Failure, Image, ImageIndex, into_shards
from tasks.formats.coco_boxes import load_image_rows
from tasks.formats.image_index import read_image_index, write_image_index
from tasks.image_files import FetchError, ImageSource, Probe
from tasks.image_sources.image_roots import NOT_INSIDE, NOT_THERE, ListedFile
from tasks.progress import advance, begin
from tasks.recall import Recall
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 2
STEP = "index images"
STAGE = "index"  # of the failures, and the kind of the artifact
# Threads. An object store answers after some 30 ms and a 640 x 480 JPEG is probed in 2 ms (measured), so 8 keep half a
# core busy; more would hold more images decoded at once, 72 MB each for a 24 megapixel photo.
WORKERS = 8
FILES_PER_INDEX = 1024  # on average: 150 kB each


@dataclass(frozen=True)
class Indexer:
    """Looks at images, where no earlier run has.

    An index holds the files of a part of the keys, so that it is small, however many images there are, and a new image
    changes one of them. `recall` finds what earlier runs have seen of the other files of that part.
    """

    source: ImageSource
    store: ArtifactStore
    recall: Recall

    def index(self, listed: Sequence[ListedFile]) -> tuple[ArtifactRef, bool]:
        """The reference to the index of these files, and whether a former run had made it."""
        key = self._key(listed)
        if all(file.version is not None for file in listed) and (ref := self.store.lookup(STAGE, key)) is not None:
            advance("index", len(listed))
            return ref, True
        known = self._known(listed)
        found = {file.key: Failure(file.key, STAGE, file.reason) for file in listed if file.reason is not None} | known
        probes = self._probe([file.key for file in listed if file.key not in found])
        advance("index", len(found))
        index = _as_index([*found.values(), *(_entry(key, probe) for key, probe in probes.items())])
        payload = write_image_index(index)
        passing = {key for key, probe in probes.items() if isinstance(probe, FetchError)}
        lasting = [file for file in listed if file.reason is None and file.version and file.key not in passing]
        if passing or any(file.version is None for file in listed):
            # The next run shall not find it by the listing: it looks again at what may be another then.
            key = content_key(STEP, VERSION, {"listing": key, "sha256": hashlib.sha256(payload).hexdigest()})
        counts = {"images": len(index.images), "failures": len(index.failures)}
        answers = Answers(self._about, tuple(map(_answer_id, lasting)))
        return self.store.publish(STAGE, key, payload, counts, answers=answers), False

    @property
    def _about(self) -> str:
        return digest_of([STEP, VERSION, self.source.addresses])

    def _key(self, listed: Sequence[ListedFile]) -> str:
        files = [[file.key, file.version, file.reason] for file in listed]
        return content_key(STEP, VERSION, {"addresses": self.source.addresses, "files": files})

    def _known(self, listed: Sequence[ListedFile]) -> dict[str, Image | Failure]:
        """What earlier indices say of files that have not changed since."""
        wanted = {_answer_id(file): file.key for file in listed if file.reason is None and file.version is not None}
        known: dict[str, Image | Failure] = {}
        for payload, held in self.recall.payloads(STAGE, self._about, wanted):
            index = read_image_index(payload)
            entries = {image.key: image for image in index.images} | {lost.image: lost for lost in index.failures}
            known |= {wanted[answer]: entries[wanted[answer]] for answer in held}
        return known

    def _probe(self, keys: Sequence[str]) -> dict[str, Probe | ImageError]:
        probes: dict[str, Probe | ImageError] = {}
        for key, probe in self.source.probe_ahead(keys, WORKERS):
            probes[key] = probe
            advance("index", 1)
        return probes


@task(name="index images", cache_policy=NO_CACHE, persist_result=False)
def index_images(indexer: Indexer) -> tuple[ArtifactRef, ...]:
    """The references to the indices of all images, in the order of their keys; raises SpecError and ArtifactError."""
    done = build_index(indexer)
    return told(tuple(ref for ref, _ in done), "indices", reused=sum(reused for _, reused in done))


@task(name="index named images", cache_policy=NO_CACHE, persist_result=False)
def index_named_images(indexer: Indexer, shards: Sequence[ArtifactRef]) -> tuple[ArtifactRef, ...]:
    """For every shard of a COCO file the reference to an index of the images that it names, and of no others."""
    done = build_named_indexes(indexer, shards)
    return told(tuple(ref for ref, _ in done), "indices", reused=sum(reused for _, reused in done))


def build_index(indexer: Indexer) -> list[tuple[ArtifactRef, bool]]:
    """The references to the indices of all images of the source, and whether a former run had made each."""
    begin("index", None)
    return [indexer.index(listed) for listed in into_shards(indexer.source.list_images(), FILES_PER_INDEX)]


def build_named_indexes(indexer: Indexer, shards: Sequence[ArtifactRef]) -> list[tuple[ArtifactRef, bool]]:
    """For every shard the reference to the index of its images, and whether a former run had made it."""
    names = [[rows.key for rows in load_image_rows(indexer.store.read(ref))] for ref in shards]
    files = {file.key: file for file in indexer.source.list_named(chain.from_iterable(names))}
    if files and all(file.reason in (NOT_THERE, NOT_INSIDE) for file in files.values()):
        roots = ", ".join(without_password(root) for root in indexer.source.roots)
        example = next(f"{file.key!r} ({file.reason})" for file in files.values())
        what = "none of the %d images is in %s, such as %s; check img_dir and the file_name of the images"
        logger.warning(what, len(files), roots, example)
    begin("index", len(files))
    return [indexer.index([files[key] for key in keys]) for keys in names]


def _answer_id(file: ListedFile) -> str:
    return answer_id(file.key, file.version)


def _entry(key: str, probe: Probe | ImageError) -> Image | Failure:
    if isinstance(probe, ImageError):
        return Failure(key, STAGE, str(probe))
    return Image(key, probe.sha256, probe.width, probe.height)


def _as_index(entries: Iterable[Image | Failure]) -> ImageIndex:
    of = list(entries)
    images = sorted(entry for entry in of if isinstance(entry, Image))
    return ImageIndex(tuple(images), tuple(sorted(entry for entry in of if isinstance(entry, Failure))))
