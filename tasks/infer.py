"""Step: what the detector answers about the images of a batch of shards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.cached import cached
from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef, Json, content_key
from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError, ImageError
from tasks.domain.images import Failure, Image
from tasks.domain.iteration import Reprompt, next_prompt
from tasks.formats.candidates import dump_candidates, load_candidates
from tasks.formats.coco import load_coco
from tasks.forwarding import Place, may_pass
from tasks.image_files import decode_unchanged
from tasks.models import Detector, DetectorConfig, load_detector
from tasks.progress import advance
from tasks.store import ArtifactStore

VERSION = 1
BATCHES_AT_A_TIME = 4

T = TypeVar("T")
Pixels: TypeAlias = NDArray[np.uint8]
RecordId: TypeAlias = tuple[str, int]  # the image's key and the caption's number


@dataclass(frozen=True)
class Question:
    """What is asked: which detector, which phrases, and down to which score its candidates are kept.

    `digest` is that of the detector as the run found it; another one under the same name is not asked.
    """

    detector: DetectorConfig
    digest: str
    keep_floor: float
    reprompt: Reprompt


@dataclass(frozen=True)
class AnsweredShard:
    """The candidates of a shard, what they cost, and the images that failed at inference."""

    candidates: ArtifactRef
    forwards: int
    failures: int
    reused: bool


@task(
    name="infer",
    task_run_name="iteration {iteration} / infer {batch}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
    tags=["gpu"],
)
def infer(
    store: ArtifactStore,
    shards: Sequence[tuple[ArtifactRef, ArtifactRef | None]],
    question: Question,
    place: Place,
    iteration: int,
    batch: str,
) -> list[AnsweredShard]:
    """The answers about every (annotations, earlier candidates) pair of a batch of shards."""
    del iteration  # it names the task run
    done = [infer_shard(store, annotations, earlier, question, place) for annotations, earlier in shards]
    if all(shard.reused for shard in done):
        return cached(done, f"{batch}: all {len(done)} reused")
    return done


@dataclass(frozen=True)
class Look:
    """One record of an image that is to be looked at, and the prompt to ask."""

    image: Image
    record: Record
    prompt: tuple[str, ...]

    @property
    def id(self) -> RecordId:
        """What names the record within a shard."""
        return self.image.key, self.record.caption_id


def looks(images: Sequence[LabelledImage], reprompt: Reprompt) -> list[Look]:
    """Every record that still has something to ask; one with an empty prompt is not looked at again."""
    found = [Look(i.image, record, next_prompt(record, reprompt)) for i in images for record in i.records]
    return [look for look in found if look.prompt]


def candidates_key(wanted: Sequence[Look], question: Question) -> str:
    """The content key of the answers: detector, keep floor, and every image and prompt; nothing about where."""
    asked: Json = [[*look.id, look.image.sha256, list(look.prompt)] for look in wanted]
    inputs: dict[str, Json] = {"detector": question.digest, "keep_floor": question.keep_floor, "asked": asked}
    return content_key("infer", VERSION, inputs)


def known_answers(
    store: ArtifactStore, wanted: Sequence[Look], candidates: Sequence[ArtifactRef | None]
) -> dict[RecordId, Candidates]:
    """The answers of earlier artifacts to exactly the prompts that are wanted now."""
    prompts = {look.id: look.prompt for look in wanted}
    known: dict[RecordId, Candidates] = {}
    for ref in filter(None, candidates):
        looked_at, _ = load_candidates(store.read(ref))
        known |= {(key, number): found for key, number, found in looked_at if prompts.get((key, number)) == found.asked}
    return known


@dataclass(frozen=True)
class Outlook:
    """What is known about a shard before the detector is asked.

    `candidates` is the whole answer where the store has it; else `known` holds the answers that can be taken over, and
    `todo` the records to look at. `incomplete` is an answer under the same key that tells of failed images.
    """

    key: str
    images: int
    candidates: ArtifactRef | None
    incomplete: ArtifactRef | None
    wanted: tuple[Look, ...]
    known: Mapping[RecordId, Candidates]

    @property
    def todo(self) -> list[Look]:
        """The records that only the detector can answer."""
        return [] if self.candidates else [look for look in self.wanted if look.id not in self.known]


def look_ahead(
    store: ArtifactStore, annotations: ArtifactRef, earlier: ArtifactRef | None, question: Question
) -> Outlook:
    """What is known about a shard: from an earlier run, or from the iteration before where the prompt is the same.

    An artifact that lists failed images is not the last word: those images are tried again, the others are reused.
    """
    images, _ = load_coco(store.read(annotations))
    wanted = tuple(looks(images, question.reprompt))
    key = candidates_key(wanted, question)
    found = store.lookup("candidates", key)
    if found and not store.counts(found)["failures"]:
        return Outlook(key, len(images), found, None, wanted, {})
    return Outlook(key, len(images), None, found, wanted, known_answers(store, wanted, [earlier, found]))


def infer_shard(
    store: ArtifactStore,
    annotations: ArtifactRef,
    earlier: ArtifactRef | None,
    question: Question,
    place: Place,
) -> AnsweredShard:
    """The answers about one shard: from the store, or from the detector where nobody has asked it yet."""
    outlook = look_ahead(store, annotations, earlier, question)
    if outlook.candidates:
        advance("infer", outlook.images)
        return AnsweredShard(outlook.candidates, forwards=0, failures=0, reused=True)
    fresh = Inference(question, place)
    answers = {**outlook.known, **fresh.answer(outlook.todo)}
    looked_at = [(*look.id, answers[look.id]) for look in outlook.wanted if look.id in answers]
    made = store.publish(
        "candidates",
        outlook.key,
        dump_candidates(looked_at, fresh.failures),
        {"failures": len(fresh.failures)},
        replaces=outlook.incomplete,
    )
    advance("infer", outlook.images - fresh.images)
    # Another run may have been faster, with failures of its own: what counts is what the artifact says.
    return AnsweredShard(made, fresh.forwards, int(str(store.counts(made)["failures"])), reused=False)


class Inference:
    """Runs the detector over images, each decoded once, and keeps account of images, forwards and failures."""

    def __init__(self, question: Question, place: Place) -> None:
        self.failures: list[Failure] = []
        self.forwards = 0
        self.images = 0
        self._question = question
        self._place = place

    def answer(self, wanted: Sequence[Look]) -> dict[RecordId, Candidates]:
        """The candidates of every record that is wanted, but for images that cannot be read."""
        answers: dict[RecordId, Candidates] = {}
        if not wanted:
            return answers
        detector = self._load()
        for group in self._groups(self._seen(wanted)):
            asked = [look for _, looks_at in group for look in looks_at]
            found = detector.detect(
                [pixels for pixels, looks_at in group for _ in looks_at],
                [look.prompt for look in asked],
                keep_floor=self._question.keep_floor,
                batch_size=self._place.batch_size,
            )
            self.forwards += sum(len(detector.captions(look.prompt)) for look in asked)
            answers |= {look.id: answer for look, answer in zip(asked, found, strict=True)}
            self._done_with(len(group))
        return answers

    def _load(self) -> Detector:
        detector = load_detector(self._question.detector, device=self._place.device)
        if detector.digest != self._question.digest:
            raise CheckpointError(f"{self._question.detector.checkpoint} changed while the run went on; run again")
        return detector

    def _seen(self, wanted: Sequence[Look]) -> Iterator[tuple[Pixels, list[Look]]]:
        """The pixels of every image with what is asked about it; images are read ahead, and decoded once each."""
        by_image: dict[str, list[Look]] = {}
        for look in wanted:
            by_image.setdefault(look.image.key, []).append(look)
        for key, data in self._place.source.read_ahead(list(by_image), self._place.read_ahead):
            try:
                yield decode_unchanged(data, by_image[key][0].image), by_image[key]
            except ImageError as error:
                self.failures.append(Failure(key, "infer", str(error)))
                self._done_with(1)

    def _groups(self, seen: Iterator[T]) -> Iterator[list[T]]:
        """On a GPU a few batches at a time: enough to find images of equal size, few enough to hold their pixels."""
        size = 1 if self._place.device == "cpu" else BATCHES_AT_A_TIME * self._place.batch_size
        while group := list(islice(seen, size)):
            yield group

    def _done_with(self, images: int) -> None:
        self.images += images
        advance("infer", images)
