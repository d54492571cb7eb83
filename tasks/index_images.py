"""Step: what images there are, their digests and upright sizes, and which files cannot be read."""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cached import cached
from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.errors import ImageError
from tasks.domain.images import Failure, Image, ImageIndex
from tasks.formats.coco_boxes import load_image_rows
from tasks.formats.image_index import write_image_index
from tasks.image_files import FetchError, ImageSource, Probe
from tasks.image_roots import NOT_INSIDE, NOT_THERE, ListedFile
from tasks.progress import advance, begin
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 1
STAGE = "index"  # of the failures, and the kind of the artifact
# Threads. An object store answers after some 30 ms and a 640 x 480 JPEG is probed in 2 ms (measured), so 8 keep half a
# core busy; more would hold more images decoded at once, 72 MB each for a 24 megapixel photo.
WORKERS = 8


@task(name="index images", cache_policy=NO_CACHE, persist_result=False)
def index_images(source: ImageSource, store: ArtifactStore) -> ArtifactRef:
    """The reference to the index of all images of `source`; raises SpecError and ArtifactError."""
    ref, reused = build_index(source, store)
    return cached(ref, "nothing changed since it was made") if reused else ref


@task(name="index named images", cache_policy=NO_CACHE, persist_result=False)
def index_named_images(source: ImageSource, store: ArtifactStore, shards: Sequence[ArtifactRef]) -> list[ArtifactRef]:
    """For every shard of a COCO file the reference to an index of the images that it names, and of no others."""
    made = build_named_indexes(source, store, shards)
    refs = [ref for ref, _ in made]
    return cached(refs, "nothing changed since they were made") if all(reused for _, reused in made) else refs


def build_index(source: ImageSource, store: ArtifactStore) -> tuple[ArtifactRef, bool]:
    """The reference to the index of all images of `source`, and whether a former run had made it."""
    listed = source.list_images()
    key = _key(listed)
    if (ref := store.lookup(STAGE, key)) is not None:
        return ref, True
    begin("index", len(_readable(listed)))
    return _make(source, store, listed, key), False


def build_named_indexes(
    source: ImageSource, store: ArtifactStore, shards: Sequence[ArtifactRef]
) -> list[tuple[ArtifactRef, bool]]:
    """For every shard the reference to the index of its images, and whether a former run had made it."""
    names = [[rows.key for rows in load_image_rows(store.read(ref))] for ref in shards]
    files = {file.key: file for file in source.list_named(chain.from_iterable(names))}
    if files and all(file.reason in (NOT_THERE, NOT_INSIDE) for file in files.values()):
        roots = ", ".join(map(without_password, source.roots))
        example = f"{min(files)!r} ({files[min(files)].reason})"
        what = "none of the %d images is in %s, such as %s; check img_dir and the file_name of the images"
        logger.warning(what, len(files), roots, example)
    listings = [[files[key] for key in keys] for keys in names]
    known = [store.lookup(STAGE, _key(listed)) for listed in listings]
    todo = [listed for listed, ref in zip(listings, known, strict=True) if ref is None]
    begin("index", sum(len(_readable(listed)) for listed in todo))
    return [
        (ref, True) if ref else (_make(source, store, listed, _key(listed)), False)
        for listed, ref in zip(listings, known, strict=True)
    ]


def _key(listed: Sequence[ListedFile]) -> str:
    return content_key("index images", VERSION, {"files": [[file.key, file.version, file.reason] for file in listed]})


def _readable(listed: Sequence[ListedFile]) -> list[str]:
    return [file.key for file in listed if file.reason is None]


def _make(source: ImageSource, store: ArtifactStore, listed: Sequence[ListedFile], key: str) -> ArtifactRef:
    """Look at the files of a listing and publish their index under the key of the listing.

    An index in which a file could not be fetched is kept under a key of its own, so that the next run finds none and
    tries again.
    """
    probes = _probe(source, _readable(listed))
    unfetched = [image for image, probe in probes.items() if isinstance(probe, FetchError)]
    if unfetched:
        key = content_key("index images", VERSION, {"listing": key, "unfetched": unfetched})
    index = _as_index(listed, probes)
    counts = {"images": len(index.images), "failures": len(index.failures)}
    return store.publish(STAGE, key, write_image_index(index), counts)


def _probe(source: ImageSource, keys: Sequence[str]) -> dict[str, Probe | ImageError]:
    probes: dict[str, Probe | ImageError] = {}
    for key, probe in source.probe_ahead(keys, WORKERS):
        probes[key] = probe
        advance("index", 1)
    return probes


def _as_index(listed: Sequence[ListedFile], probes: Mapping[str, Probe | ImageError]) -> ImageIndex:
    images = [Image(key, p.sha256, p.width, p.height) for key, p in probes.items() if isinstance(p, Probe)]
    failures = [Failure(file.key, STAGE, file.reason) for file in listed if file.reason is not None]
    failures += [Failure(key, STAGE, str(p)) for key, p in probes.items() if isinstance(p, ImageError)]
    return ImageIndex(tuple(sorted(images)), tuple(sorted(failures)))
