"""Step: the masks of the boxes of a batch of shards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.boxed_shards import BoxedShard, read_boxed
from tasks.cached import cached
from tasks.domain.artifacts import ArtifactRef, Json, content_key
from tasks.domain.errors import CheckpointError, ImageError
from tasks.domain.images import Failure
from tasks.domain.mask_outcomes import AskedImage
from tasks.formats.masks import Masks, dump_masks, load_masks
from tasks.forwarding import Place, may_pass
from tasks.image_files import decode_unchanged
from tasks.models import Segmenter, SegmenterConfig, load_segmenter
from tasks.progress import advance
from tasks.store import ArtifactStore

VERSION = 1
BATCHES_AT_A_TIME = 4  # small images are put together until their boxes fill so many batches,
PIXELS_AT_A_TIME = 2**25  # or they have so many pixels: 100 MB of RGB
# Boxes of one image that are asked about at once. More wait for the next call, which looks at the image again: masks
# of 1 kB each are then no matter of memory, and Segment Anything's image encoder runs once in so many boxes.
BOXES_AT_A_TIME = 1024

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class MaskQuestion:
    """Which segmenter makes the masks; `digest` is its own as the run found it, and another one is not asked."""

    segmenter: SegmenterConfig
    digest: str


@dataclass(frozen=True)
class SegmentedShard:
    """The masks of a shard, the boxes that were forwarded for them, and the images that failed."""

    masks: ArtifactRef
    forwarded: int
    failures: int
    reused: bool


@task(
    name="segment",
    task_run_name="segment {batch}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
    tags=["gpu"],
)
def segment(
    store: ArtifactStore, shards: Sequence[BoxedShard], question: MaskQuestion, place: Place, batch: str
) -> list[SegmentedShard]:
    """The masks of every shard of a batch."""
    done = [segment_shard(store, shard, question, place) for shard in shards]
    if all(shard.reused for shard in done):
        return cached(done, f"{batch}: all {len(done)} reused")
    return done


def masks_key(asked: Sequence[AskedImage], question: MaskQuestion) -> str:
    """The content key of the masks: what the segmenter sees, and nothing else of the labels.

    A label whose score or attributes change costs no forward pass.
    """
    boxes: Json = [[image.image.key, image.image.sha256, [list(box) for box in image.boxes]] for image in asked]
    return content_key("segment", VERSION, {"segmenter": question.digest, "asked": boxes})


@dataclass(frozen=True)
class MaskOutlook:
    """What is known about a shard before the segmenter is asked.

    `masks` is the whole answer where the store has it; `incomplete` is one that tells of failed images, and `known` the
    masks of the others, which are taken over. `asked` are the boxes that can get a mask, `boxes` counts all.
    """

    key: str
    images: int
    boxes: int
    asked: tuple[AskedImage, ...]
    masks: ArtifactRef | None = None
    incomplete: ArtifactRef | None = None
    known: Mapping[str, Masks] = field(default_factory=dict)

    @property
    def todo(self) -> list[AskedImage]:
        """The images that only the segmenter can answer."""
        return [] if self.masks else [asked for asked in self.asked if asked.image.key not in self.known]


def look_ahead_at_masks(store: ArtifactStore, shard: BoxedShard, question: MaskQuestion) -> MaskOutlook:
    """What is known about the masks of a shard from an earlier run."""
    images = read_boxed(store, shard)
    asked = tuple(filter(None, (boxed.asked for boxed in images)))
    fresh = MaskOutlook(masks_key(asked, question), len(images), sum(len(i.rows.annotations) for i in images), asked)
    found = store.lookup("masks", fresh.key)
    if found is None:
        return fresh
    if not store.counts(found)["failures"]:
        return replace(fresh, masks=found)
    return replace(fresh, incomplete=found, known=load_masks(store.read(found))[0])


def segment_shard(store: ArtifactStore, shard: BoxedShard, question: MaskQuestion, place: Place) -> SegmentedShard:
    """The masks of one shard: from the store, or from the segmenter where nobody has asked it yet."""
    outlook = look_ahead_at_masks(store, shard, question)
    if outlook.masks:
        advance("segment", outlook.images)
        return SegmentedShard(outlook.masks, forwarded=0, failures=0, reused=True)
    fresh = Segmentation(question, place)
    masks = {**outlook.known, **fresh.answer(outlook.todo)}
    answers = [(asked, masks[asked.image.key]) for asked in outlook.asked if asked.image.key in masks]
    made = store.publish(
        "masks",
        outlook.key,
        dump_masks(answers, fresh.failures),
        {"failures": len(fresh.failures)},
        replaces=outlook.incomplete,
    )
    advance("segment", outlook.images - fresh.images)
    # Another run may have been faster, with failures of its own: what counts is what the artifact says.
    return SegmentedShard(made, fresh.forwarded, int(str(store.counts(made)["failures"])), reused=False)


@dataclass(frozen=True)
class _View:
    """The pixels of an image, and the boxes of it that one call asks about."""

    pixels: Pixels
    asked: AskedImage
    start: int
    stop: int

    @property
    def boxes(self) -> int:
        return self.stop - self.start


class Segmentation:
    """Runs the segmenter over images, each decoded once, and keeps account of images, boxes and failures."""

    def __init__(self, question: MaskQuestion, place: Place) -> None:
        self.failures: list[Failure] = []
        self.forwarded = 0
        self.images = 0
        self._question = question
        self._place = place

    def answer(self, wanted: Sequence[AskedImage]) -> dict[str, Masks]:
        """The masks of every image by its key, but for images that cannot be read."""
        answers: dict[str, Masks] = {}
        if not wanted:
            return answers
        segmenter = self._load()
        for group in in_groups(self._views(wanted), BATCHES_AT_A_TIME * self._place.batch_size):
            made = segmenter.segment(
                [view.pixels for view in group],
                [view.asked.boxes_from(view.start, view.stop) for view in group],
                batch_size=self._place.batch_size,
            )
            for view, masks in zip(group, made, strict=True):
                key = view.asked.image.key
                answers[key] = (*answers.get(key, ()), *masks)
                self.forwarded += view.boxes
                self._done_with(1 if view.stop == len(view.asked.boxes) else 0)
        return answers

    def _load(self) -> Segmenter:
        segmenter = load_segmenter(self._question.segmenter, device=self._place.device)
        if segmenter.digest != self._question.digest:
            raise CheckpointError(f"{self._question.segmenter.checkpoint} changed while the run went on; run again")
        return segmenter

    def _views(self, wanted: Sequence[AskedImage]) -> Iterator[_View]:
        """Every image, read ahead and decoded once, with BOXES_AT_A_TIME of its boxes; more views hold the others."""
        by_key = {asked.image.key: asked for asked in wanted}
        for key, data in self._place.source.read_ahead(list(by_key), self._place.read_ahead):
            asked = by_key[key]
            try:
                pixels = decode_unchanged(data, asked.image)
            except ImageError as error:
                self.failures.append(Failure(key, "segment", str(error)))
                self._done_with(1)
                continue
            for start in range(0, len(asked.boxes), BOXES_AT_A_TIME):
                yield _View(pixels, asked, start, min(start + BOXES_AT_A_TIME, len(asked.boxes)))

    def _done_with(self, images: int) -> None:
        self.images += images
        advance("segment", images)


def in_groups(views: Iterator[_View], enough_boxes: int) -> Iterator[list[_View]]:
    """Views that are asked about together: as many as fill a few batches, few enough to hold their pixels."""
    group: list[_View] = []
    for view in views:
        group.append(view)
        pixels = sum(view.pixels.shape[0] * view.pixels.shape[1] for view in group)
        if sum(view.boxes for view in group) >= enough_boxes or pixels >= PIXELS_AT_A_TIME:
            yield group
            group = []
    if group:
        yield group
