"""Step: the masks of the boxes of a batch of shards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, tee
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.boxed_shards import BoxedShard, read_boxed
from tasks.cached import told
from tasks.domain.artifacts import Answers, ArtifactRef, Json, answer_id, content_key, digest_of
from tasks.domain.errors import CheckpointError, ImageError
from tasks.domain.images import Failure
from tasks.domain.mask_outcomes import AskedBox, AskedImage
from tasks.domain.masks import Mask
from tasks.formats.masks import dump_masks, load_answers
from tasks.forwarding import Place, may_pass
from tasks.image_files import decode_unchanged
from tasks.models import Segmenter, SegmenterConfig, load_segmenter
from tasks.progress import advance
from tasks.recall import Recall
from tasks.store import ArtifactStore

VERSION = 2
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

    @property
    def about(self) -> str:
        """What names the segmenter's answers among those of others (see tasks/recall.py)."""
        return digest_of(["segment", VERSION, self.digest])


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
    store: ArtifactStore,
    shards: Sequence[BoxedShard],
    question: MaskQuestion,
    place: Place,
    recall: Recall,
    batch: str,
) -> list[SegmentedShard]:
    """The masks of every shard of a batch."""
    done = segment_shards(store, shards, question, place, recall)
    forwarded = sum(shard.forwarded for shard in done)
    return told(done, batch, reused=sum(shard.reused for shard in done), cost=f"{forwarded} boxes forwarded")


def masks_key(asked: Sequence[AskedImage], question: MaskQuestion) -> str:
    """The content key of the masks: what the segmenter sees, and nothing else of the labels.

    A label whose score or attributes change costs no forward pass.
    """
    boxes: Json = [[image.image.key, image.image.sha256, [list(box) for box in image.boxes]] for image in asked]
    return content_key("segment", VERSION, {"segmenter": question.digest, "asked": boxes})


@dataclass(frozen=True)
class MaskOutlook:
    """What is known about a shard before the segmenter is asked.

    `masks` is the whole answer where the store has it; else `known` holds the answers that can be taken over, and
    `incomplete` is one under the same key that tells of failed images. `asked` are the boxes that can get a mask,
    `boxes` counts all.
    """

    key: str
    images: int
    boxes: int
    asked: tuple[AskedImage, ...]
    masks: ArtifactRef | None = None
    incomplete: ArtifactRef | None = None
    known: Mapping[AskedBox, Mask | None] = field(default_factory=dict)

    @property
    def todo(self) -> list[AskedImage]:
        """The images with the boxes that only the segmenter can answer."""
        if self.masks:
            return []
        return [left for asked in self.asked if (left := asked.without(self.known)).boxes]


def look_ahead_at_masks(store: ArtifactStore, shard: BoxedShard, question: MaskQuestion, recall: Recall) -> MaskOutlook:
    """What is known about the masks of a shard from an earlier run.

    An artifact that lists failed images is not the last word: those images are tried again, the others are reused.
    """
    images = read_boxed(store, shard)
    asked = tuple(filter(None, (boxed.asked for boxed in images)))
    size = len(images), sum(len(boxed.rows.annotations) for boxed in images)
    key = masks_key(asked, question)
    found = store.lookup("masks", key)
    if found and not store.counts(found)["failures"]:
        return MaskOutlook(key, *size, asked, masks=found)
    near = [store.read(found)] if found else []
    return MaskOutlook(key, *size, asked, incomplete=found, known=known_masks(asked, near, question, recall))


def known_masks(
    asked: Sequence[AskedImage], near: Sequence[bytes], question: MaskQuestion, recall: Recall
) -> dict[AskedBox, Mask | None]:
    """The masks of exactly the boxes that are asked: from artifacts at hand, then from any that the store has."""
    wanted = {box for image in asked for box in image.questions}
    known = _taken_over(wanted, near)
    left = wanted - known.keys()
    if left:
        held = recall.payloads("masks", question.about, {answer_id(*box) for box in left})
        known |= _taken_over(left, (payload for payload, _ in held))
    return known


def _taken_over(wanted: set[AskedBox], payloads: Iterable[bytes]) -> dict[AskedBox, Mask | None]:
    return {box: mask for payload in payloads for box, mask in load_answers(payload).items() if box in wanted}


def segment_shards(
    store: ArtifactStore, shards: Sequence[BoxedShard], question: MaskQuestion, place: Place, recall: Recall
) -> list[SegmentedShard]:
    """The masks of every shard: from the store, or from the segmenter where nobody has asked it yet.

    Images are read ahead across the shards, so that the segmenter does not wait where a shard begins.
    """
    outlooks, to_read = tee(look_ahead_at_masks(store, shard, question, recall) for shard in shards)
    keys = (asked.image.key for outlook in to_read for asked in outlook.todo)
    with closing(place.source.read_ahead(keys, place.read_ahead)) as files:
        return [_segment_shard(store, outlook, Segmentation(question, place, files)) for outlook in outlooks]


def _segment_shard(store: ArtifactStore, outlook: MaskOutlook, fresh: "Segmentation") -> SegmentedShard:
    if outlook.masks:
        advance("segment", outlook.images)
        return SegmentedShard(outlook.masks, forwarded=0, failures=0, reused=True)
    masks = {**outlook.known, **fresh.answer(outlook.todo)}
    failed = {failure.image for failure in fresh.failures}
    answered = [asked for asked in outlook.asked if asked.image.key not in failed]
    made = store.publish(
        "masks",
        outlook.key,
        dump_masks([(asked, tuple(masks[box] for box in asked.questions)) for asked in answered], fresh.failures),
        {"failures": len(fresh.failures)},
        replaces=outlook.incomplete,
        answers=Answers(fresh.question.about, _answer_ids(answered)),
    )
    advance("segment", outlook.images - fresh.images)
    # Another run may have been faster, with failures of its own: what counts is what the artifact says.
    return SegmentedShard(made, fresh.forwarded, int(str(store.counts(made)["failures"])), reused=False)


def _answer_ids(answered: Sequence[AskedImage]) -> tuple[str, ...]:
    """What names the answers in the store, each once: two images, and two boxes of one, may be the same."""
    return tuple(answer_id(*box) for box in dict.fromkeys(box for asked in answered for box in asked.questions))


@dataclass(frozen=True)
class _View:
    """The pixels of an image, with the boxes of it that one call asks about; others of it follow unless `is_last`."""

    pixels: Pixels
    asked: AskedImage
    is_last: bool


class Segmentation:
    """Runs the segmenter over images, each decoded once, and keeps account of images, boxes and failures.

    `files` gives the images that are to be looked at, in their order, with their bytes; others may follow.
    """

    def __init__(self, question: MaskQuestion, place: Place, files: Iterator[tuple[str, bytes | ImageError]]) -> None:
        self.question = question
        self.failures: list[Failure] = []
        self.forwarded = 0
        self.images = 0
        self._place = place
        self._files = files

    def answer(self, wanted: Sequence[AskedImage]) -> dict[AskedBox, Mask | None]:
        """The mask of every box that is wanted, but for images that cannot be read."""
        answers: dict[AskedBox, Mask | None] = {}
        if not wanted:
            return answers
        segmenter = self._load()
        for group in in_groups(self._views(wanted), BATCHES_AT_A_TIME * self._place.batch_size):
            made = segmenter.segment(
                [view.pixels for view in group],
                [view.asked.array for view in group],
                batch_size=self._place.batch_size,
            )
            for view, masks in zip(group, made, strict=True):
                answers |= zip(view.asked.questions, masks, strict=True)
                self.forwarded += len(masks)
            self._done_with(sum(view.is_last for view in group))
        return answers

    def _load(self) -> Segmenter:
        segmenter = load_segmenter(self.question.segmenter, device=self._place.device)
        if segmenter.digest != self.question.digest:
            raise CheckpointError(f"{self.question.segmenter.checkpoint} changed while the run went on; run again")
        return segmenter

    def _views(self, wanted: Sequence[AskedImage]) -> Iterator[_View]:
        """Every image, decoded once, with BOXES_AT_A_TIME of its boxes; more views hold the others."""
        for asked, (key, data) in zip(wanted, islice(self._files, len(wanted)), strict=True):
            try:
                pixels = decode_unchanged(data, asked.image)
            except ImageError as error:
                self.failures.append(Failure(key, "segment", str(error)))
                self._done_with(1)
                continue
            *parts, last = asked.in_parts(BOXES_AT_A_TIME)
            yield from (_View(pixels, part, is_last=False) for part in parts)
            yield _View(pixels, last, is_last=True)

    def _done_with(self, images: int) -> None:
        self.images += images
        advance("segment", images)


def in_groups(views: Iterator[_View], enough_boxes: int) -> Iterator[list[_View]]:
    """Views that are asked about together: as many as fill a few batches, few enough to hold their pixels."""
    group: list[_View] = []
    for view in views:
        group.append(view)
        pixels = sum(view.pixels.shape[0] * view.pixels.shape[1] for view in group)
        if sum(len(view.asked.boxes) for view in group) >= enough_boxes or pixels >= PIXELS_AT_A_TIME:
            yield group
            group = []
    if group:
        yield group
