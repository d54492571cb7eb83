"""Step: the labels of all shards, written under the names that people and trainers look for."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.annotations import LabelledImage
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.images import Failure
from tasks.domain.summary import ImageStates
from tasks.formats.candidates import load_candidates
from tasks.formats.coco import CocoShards, joined_categories
from tasks.formats.label_shards import LabelShards, dump_label_shards
from tasks.image_files import ImageSource, decode
from tasks.progress import advance, begin, stop_if_abandoned
from tasks.results import (
    delete_pictures,
    delete_stale_iterations,
    images_of,
    write_iteration,
    write_labels,
    write_pictures,
)
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 1  # of the labels artifact


@dataclass(frozen=True)
class Export:
    """From which store to which folder labels go, the class names (empty in grounding mode), and whether to draw.

    With `masks_follow`, the pictures of the delivered labels are left to the step that adds the masks.
    """

    store: ArtifactStore
    results: Folder
    source: ImageSource
    classes: tuple[str, ...]
    visualize: bool
    masks_follow: bool = False


@task(
    name="export iteration",
    task_run_name="iteration {iteration} / export",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def export_iteration(export: Export, iteration: int, shards: Sequence[ArtifactRef]) -> None:
    """Write the folder of an iteration, with pictures of the labels so far if asked to."""
    write_iteration(export.results, iteration, _reader(export.store, shards), export.classes)
    _draw(export, shards, iteration)


@dataclass(frozen=True)
class Delivered:
    """Which labels were delivered, in which states the images ended, and how many pictures could not be made."""

    labels: ArtifactRef
    images: ImageStates
    undrawn: int


@task(name="export labels", cache_policy=NO_CACHE, persist_result=False)
def export_labels(
    export: Export,
    failures: Sequence[Failure],
    shards: Sequence[ArtifactRef],
    failed: Sequence[ArtifactRef],
    iterations: int,
) -> Delivered:
    """Write the delivered labels, failures and pictures; what an earlier, longer run left is deleted.

    `failures` are known from the index, and `failed` are the candidates that tell of images that failed at inference.
    One that has labels of an iteration before its failure is labelled, and no failure.
    """
    delete_stale_iterations(export.results, iterations)
    told = {failure.image: failure for ref in failed for failure in sorted(load_candidates(export.store.read(ref))[1])}
    labelled = empty = 0
    for image in images_of(_reader(export.store, shards)):
        told.pop(image.image.key, None)
        labelled += bool(image.annotations)
        empty += not image.annotations
    write_labels(export.results, _reader(export.store, shards), export.classes, [*failures, *told.values()])
    undrawn = 0 if export.masks_follow else _draw(export, shards, None)
    states = ImageStates(labelled, empty, len(failures) + len(told))
    return Delivered(_publish(export, shards, labelled + empty), states, undrawn)


def _publish(export: Export, shards: Sequence[ArtifactRef], images: int) -> ArtifactRef:
    """The reference to the labels of all shards, for whoever goes on with them."""
    categories = export.classes or joined_categories(_reader(export.store, shards))
    labels = LabelShards(tuple(shards), categories, images)
    payload = dump_label_shards(labels)
    key = content_key("labels", VERSION, {"sha256": hashlib.sha256(payload).hexdigest()})
    return export.store.lookup("labels", key) or export.store.publish("labels", key, payload)


def _reader(store: ArtifactStore, shards: Sequence[ArtifactRef]) -> CocoShards:
    def read() -> Iterator[bytes]:
        for payload in store.read_each(shards):
            stop_if_abandoned()
            yield payload

    return read


def _draw(export: Export, shards: Sequence[ArtifactRef], iteration: int | None) -> int:
    """Draw what is asked for; how many pictures could not be made."""
    delete_pictures(export.results, iteration)
    if not export.visualize:
        return 0
    begin("draw", sum(int(str(export.store.counts(ref)["images"])) for ref in shards))
    images = _told(images_of(_reader(export.store, shards)))
    failures = write_pictures(export.results, images, _pixels(export.source), iteration)
    for failure in failures:
        logger.warning("no picture of %s: it %s", failure.image, failure.reason)
    return len(failures)


def _told(images: Iterable[LabelledImage]) -> Iterator[LabelledImage]:
    """Every image, telling the progress when it has been drawn."""
    for image in images:
        yield image
        advance("draw", 1)


def _pixels(source: ImageSource) -> Callable[[str], NDArray[np.uint8]]:
    return lambda key: decode(source.read(key))
