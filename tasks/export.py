"""Step: the labels of all shards, written under the names that people and trainers look for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.annotations import LabelledImage
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.images import Failure
from tasks.domain.summary import ImageStates
from tasks.formats.candidates import load_candidates
from tasks.formats.coco import load_coco
from tasks.image_files import ImageSource, decode
from tasks.progress import advance, begin
from tasks.results import delete_pictures, delete_stale_iterations, write_iteration, write_labels, write_pictures
from tasks.store import ArtifactStore, Folder


@dataclass(frozen=True)
class Export:
    """From which store to which folder labels go, the class names (empty in grounding mode), and whether to draw."""

    store: ArtifactStore
    results: Folder
    source: ImageSource
    classes: tuple[str, ...]
    visualize: bool


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


@task(name="export labels", cache_policy=NO_CACHE, persist_result=False)
def export_labels(
    export: Export,
    failures: Sequence[Failure],
    shards: Sequence[ArtifactRef],
    failed: Sequence[ArtifactRef],
    iterations: int,
) -> ImageStates:
    """Write the delivered labels, failures and pictures; in which states the images ended.

    `failures` are known from the index, and `failed` are the candidates that tell of images that failed at inference.
    What an earlier, longer run left is deleted.
    """
    delete_stale_iterations(export.results, iterations)
    images = _reader(export.store, shards)
    lost = {failure for ref in failed for failure in load_candidates(export.store.read(ref))[1]}
    undrawn = _draw(export, shards, None)
    write_labels(export.results, images, export.classes, sorted([*failures, *lost, *undrawn]))
    labelled = [bool(image.annotations) for shard in images() for image in shard]
    return ImageStates(sum(labelled), len(labelled) - sum(labelled), len(failures) + len(lost))


def _reader(store: ArtifactStore, shards: Sequence[ArtifactRef]) -> Callable[[], Iterator[Sequence[LabelledImage]]]:
    """Reads the labels shard by shard, anew at each call."""
    return lambda: (load_coco(store.read(ref))[0] for ref in shards)


def _draw(export: Export, shards: Sequence[ArtifactRef], iteration: int | None) -> tuple[Failure, ...]:
    delete_pictures(export.results, iteration)
    if not export.visualize:
        return ()
    return write_pictures(export.results, _drawn(export.store, shards), _pixels(export.source), iteration)


def _drawn(store: ArtifactStore, shards: Sequence[ArtifactRef]) -> Iterator[LabelledImage]:
    """Every image, telling the progress as each has been drawn."""
    images = [image for shard in _reader(store, shards)() for image in shard]
    begin("draw", len(images))
    for image in images:
        yield image
        advance("draw", 1)


def _pixels(source: ImageSource) -> Callable[[str], NDArray[np.uint8]]:
    return lambda key: decode(source.read(key))
