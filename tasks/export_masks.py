"""Step: the masks of all shards, joined with the labels that they belong to, written as one COCO file."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.boxed_shards import BoxedShard, read_boxed
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.images import Failure
from tasks.domain.mask_outcomes import NoMask, Unmasked
from tasks.domain.masks import DrawnImage
from tasks.domain.summary import ImageStates, MaskCounts
from tasks.formats.coco_boxes import ImageRows, Row, load_head, renumbered, write_document
from tasks.formats.failures import dump_failures, load_failures
from tasks.formats.masked_coco import SettledImage, drawn, masked_rows, settled
from tasks.formats.masks import load_masks
from tasks.image_files import ImageSource, decode
from tasks.progress import advance, begin, stop_if_abandoned
from tasks.results import delete_pictures, write_pictures
from tasks.storage.folder import Folder, MissingFileError
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
STAGE = "segment"  # of the failures that this step adds to those of a detection


@dataclass(frozen=True)
class MaskExport:
    """From which store to which folder masks go.

    `document` and `name` are the folder and the name of the COCO file. With `adds_to_labels` it is that of a detection:
    ids are given anew, as the detection gave them, and its failures stay. `compare` writes the `iou` with the
    segmentations that were there before.
    """

    store: ArtifactStore
    results: Folder
    document: Folder
    name: str
    source: ImageSource
    adds_to_labels: bool
    visualize: bool
    compare: bool


@dataclass(frozen=True)
class MaskedShard:
    """The boxes of a shard, and their masks."""

    boxes: BoxedShard
    masks: ArtifactRef


@dataclass(frozen=True)
class DeliveredMasks:
    """What came of the boxes and of the images, and how many pictures could not be made."""

    counts: MaskCounts
    images: ImageStates
    undrawn: int


@task(name="export masks", cache_policy=NO_CACHE, persist_result=False)
def export_masks(export: MaskExport, head: ArtifactRef, shards: Sequence[MaskedShard]) -> DeliveredMasks:
    """Write the labels with their masks, the failures, and the pictures if asked to."""
    return write_masks(export, load_head(export.store.read(head)), shards)


def write_masks(export: MaskExport, head: Row, shards: Sequence[MaskedShard]) -> DeliveredMasks:
    """Write the COCO file that begins with `head`, failures.jsonl and the pictures, walking over the shards."""
    export.document.write_stream(export.name, write_document(head, lambda: _rows(export, head, shards)))
    counts, states, lost = _survey(_settled(export.store, shards))
    before = _failures_of_detection(export)
    export.results.write(FAILURES, dump_failures([*before, *lost]))
    images = states.labelled + states.empty + states.failed
    undrawn = _draw(export, _drawn(export, head, shards), images)
    return DeliveredMasks(counts, replace(states, failed=states.failed + len(before)), undrawn)


def _settled(store: ArtifactStore, shards: Sequence[MaskedShard]) -> Iterator[SettledImage]:
    made = store.read_each(shard.masks for shard in shards)
    for shard, payload in zip(shards, made, strict=True):
        stop_if_abandoned()
        masks, failures = load_masks(payload)
        lost = {failure.image: failure for failure in failures}
        for boxed in read_boxed(store, shard.boxes):
            yield settled(boxed, masks, lost)


def _rows(export: MaskExport, head: Row, shards: Sequence[MaskedShard]) -> Iterator[ImageRows]:
    rows = (masked_rows(image, compare=export.compare) for image in _settled(export.store, shards))
    return renumbered(rows, head["categories"]) if export.adds_to_labels else rows


def _survey(images: Iterable[SettledImage]) -> tuple[MaskCounts, ImageStates, list[Failure]]:
    """What came of all boxes and all images, and the images that failed."""
    outcomes: Counter[NoMask | None] = Counter()
    states: Counter[str] = Counter()
    lost: list[Failure] = []
    for image in images:
        outcomes.update(outcome.kind if isinstance(outcome, Unmasked) else None for outcome in image.outcomes)
        if image.failure is not None:
            lost.append(image.failure)
        states["failed" if image.failure else "labelled" if image.outcomes else "empty"] += 1
    masks = outcomes.pop(None, 0)
    without_mask = {kind: outcomes[kind] for kind in NoMask if outcomes[kind]}
    counts = MaskCounts(masks + sum(without_mask.values()), masks, without_mask)
    return counts, ImageStates(states["labelled"], states["empty"], states["failed"]), lost


def _failures_of_detection(export: MaskExport) -> list[Failure]:
    if not export.adds_to_labels:
        return []
    try:
        told = load_failures(export.results.read(FAILURES))
    except MissingFileError:
        return []
    return [failure for failure in told if failure.stage != STAGE]  # those of earlier masks of these labels


def _draw(export: MaskExport, images: Iterator[DrawnImage], total: int) -> int:
    """Draw what is asked for; how many pictures could not be made."""
    delete_pictures(export.results)
    if not export.visualize:
        return 0
    begin("draw", total)
    failures = write_pictures(export.results, images, lambda key: decode(export.source.read(key)))
    for failure in failures:
        logger.warning("no picture of %s: it %s", failure.image, failure.reason)
    return len(failures)


def _drawn(export: MaskExport, head: Row, shards: Sequence[MaskedShard]) -> Iterator[DrawnImage]:
    """Every image that could be used, telling the progress when it has been drawn."""
    names = {row["id"]: row["name"] for row in head["categories"]}
    for image in _settled(export.store, shards):
        # The categories of our own labels are numbered anew in each shard; their phrases say the same.
        picture = drawn(image, lambda row: row["phrase"] if export.adds_to_labels else names[row["category_id"]])
        if picture is not None:
            yield picture
        advance("draw", 1)
