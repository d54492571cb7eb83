"""Step: what images there are, their digests and upright sizes, and which files cannot be read."""

from collections.abc import Mapping, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cached import cached
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.errors import ImageError
from tasks.domain.images import Failure, Image, ImageIndex
from tasks.formats.image_index import write_image_index
from tasks.image_files import FetchError, ImageSource, Probe
from tasks.image_roots import ListedFile
from tasks.progress import advance, begin
from tasks.store import ArtifactStore

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


def build_index(source: ImageSource, store: ArtifactStore) -> tuple[ArtifactRef, bool]:
    """The reference to the index of all images of `source`, and whether a former run had made it.

    An index in which a file could not be fetched is kept under a key of its own, so that the next run finds none and
    tries again.
    """
    listed = source.list_images()
    key = content_key("index images", VERSION, {"files": [[file.key, file.version, file.reason] for file in listed]})
    if (ref := store.lookup(STAGE, key)) is not None:
        return ref, True
    probes = _probe(source, [file.key for file in listed if file.reason is None])
    unfetched = [image for image, probe in probes.items() if isinstance(probe, FetchError)]
    if unfetched:
        key = content_key("index images", VERSION, {"listing": key, "unfetched": unfetched})
    index = _as_index(listed, probes)
    counts = {"images": len(index.images), "failures": len(index.failures)}
    return store.publish(STAGE, key, write_image_index(index), counts), False


def _probe(source: ImageSource, keys: Sequence[str]) -> dict[str, Probe | ImageError]:
    begin("index", len(keys))
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
