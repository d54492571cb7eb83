"""Step: what the detector answers about the images of a batch of shards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, tee
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.cached import told
from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import Answers, ArtifactRef, Json, answer_id, content_key, digest_of
from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError, ImageError
from tasks.domain.images import Failure, Image
from tasks.domain.iteration import Reprompt, next_prompt
from tasks.formats.candidates import LookedAt, dump_candidates, load_candidates
from tasks.formats.coco import load_coco
from tasks.forwarding import Place, may_pass
from tasks.image_files import decode_unchanged
from tasks.models import Detector, DetectorConfig, load_detector
from tasks.progress import advance
from tasks.recall import Recall
from tasks.store import ArtifactStore

VERSION = 2
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

    @property
    def about(self) -> str:
        """What names the detector's answers among those of others (see tasks/recall.py)."""
        return digest_of(["infer", VERSION, self.digest, self.keep_floor])


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
    recall: Recall,
    iteration: int,
    batch: str,
) -> list[AnsweredShard]:
    """The answers about every (annotations, earlier candidates) pair of a batch of shards."""
    del iteration  # it names the task run
    done = infer_shards(store, shards, question, place, recall)
    forwards = sum(shard.forwards for shard in done)
    return told(done, batch, reused=sum(shard.reused for shard in done), cost=f"{forwards} forwards")


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

    @property
    def answer_id(self) -> str:
        """What names the answer in the store: the image by content, under whatever name, and the prompt."""
        return answer_id(self.image.sha256, self.prompt)


def looks(images: Sequence[LabelledImage], reprompt: Reprompt) -> list[Look]:
    """Every record that still has something to ask; one with an empty prompt is not looked at again."""
    found = [Look(i.image, record, next_prompt(record, reprompt)) for i in images for record in i.records]
    return [look for look in found if look.prompt]


def candidates_key(wanted: Sequence[Look], question: Question) -> str:
    """The content key of the answers: detector, keep floor, and every image and prompt; nothing about where."""
    asked: Json = [[*look.id, look.image.sha256, list(look.prompt)] for look in wanted]
    inputs: dict[str, Json] = {"detector": question.digest, "keep_floor": question.keep_floor, "asked": asked}
    return content_key("infer", VERSION, inputs)


@dataclass(frozen=True)
class Outlook:
    """What is known about a shard before the detector is asked.

    `candidates` is the whole answer where the store has it; else `known` holds the answers that can be taken over, and
    `wanted` all records to look at. `incomplete` is an answer under the same key that tells of failed images.
    """

    key: str
    images: int
    candidates: ArtifactRef | None = None
    incomplete: ArtifactRef | None = None
    wanted: tuple[Look, ...] = ()
    known: Mapping[RecordId, Candidates] = field(default_factory=dict)

    @property
    def todo(self) -> dict[str, list[Look]]:
        """By image, the records that only the detector can answer."""
        by_image: dict[str, list[Look]] = {}
        for look in self.wanted:
            if look.id not in self.known:
                by_image.setdefault(look.image.key, []).append(look)
        return by_image


def look_ahead(
    store: ArtifactStore, annotations: ArtifactRef, earlier: ArtifactRef | None, question: Question, recall: Recall
) -> Outlook:
    """What is known about a shard: from an earlier run, or from the iteration before where the prompt is the same.

    An artifact that lists failed images is not the last word: those images are tried again, the others are reused.
    """
    images, _ = load_coco(store.read(annotations))
    wanted = tuple(looks(images, question.reprompt))
    key = candidates_key(wanted, question)
    found = store.lookup("candidates", key)
    if found and not store.counts(found)["failures"]:
        return Outlook(key, len(images), found)
    near = [store.read(ref) for ref in (earlier, found) if ref]
    return Outlook(key, len(images), None, found, wanted, known_answers(wanted, near, question, recall))


def known_answers(
    wanted: Sequence[Look], near: Sequence[bytes], question: Question, recall: Recall
) -> dict[RecordId, Candidates]:
    """The answers to exactly the prompts that are wanted: from candidates at hand, then from any that the store has."""
    known = _taken_over(wanted, near)
    left = [look for look in wanted if look.id not in known]
    if not left:
        return known
    held = recall.payloads("candidates", question.about, {look.answer_id for look in left})
    return known | _taken_over(left, (payload for payload, _ in held))


def _taken_over(wanted: Sequence[Look], payloads: Iterable[bytes]) -> dict[RecordId, Candidates]:
    askers: dict[tuple[str, tuple[str, ...]], list[Look]] = {}
    for look in wanted:
        askers.setdefault((look.image.sha256, look.prompt), []).append(look)
    known: dict[RecordId, Candidates] = {}
    for payload in payloads:
        for answer in load_candidates(payload)[0]:
            for look in askers.get((answer.sha256, answer.found.asked), ()):
                known.setdefault(look.id, answer.found)
    return known


def infer_shards(
    store: ArtifactStore,
    shards: Sequence[tuple[ArtifactRef, ArtifactRef | None]],
    question: Question,
    place: Place,
    recall: Recall,
) -> list[AnsweredShard]:
    """The answers about every shard: from the store, or from the detector where nobody has asked it yet.

    Images are read ahead across the shards, so that the detector does not wait where a shard begins.
    """
    outlooks, to_read = tee(look_ahead(store, *shard, question, recall) for shard in shards)
    keys = (key for outlook in to_read for key in outlook.todo)
    with closing(place.source.read_ahead(keys, place.read_ahead)) as files:
        return [infer_shard(store, outlook, Inference(question, place, files)) for outlook in outlooks]


def infer_shard(store: ArtifactStore, outlook: Outlook, fresh: "Inference") -> AnsweredShard:
    """The answers about one shard: what is known of it, and what `fresh` finds out."""
    if outlook.candidates:
        advance("infer", outlook.images)
        return AnsweredShard(outlook.candidates, forwards=0, failures=0, reused=True)
    answers = {**outlook.known, **fresh.answer(outlook.todo)}
    failed = {failure.image for failure in fresh.failures}  # no answer of theirs counts, nor one of another caption
    answered = [look for look in outlook.wanted if look.id in answers and look.image.key not in failed]
    looked_at = [LookedAt(look.image.key, look.image.sha256, look.id[1], answers[look.id]) for look in answered]
    made = store.publish(
        "candidates",
        outlook.key,
        dump_candidates(looked_at, fresh.failures),
        {"failures": len(fresh.failures)},
        replaces=outlook.incomplete,
        answers=Answers(fresh.question.about, tuple(look.answer_id for look in answered)),
    )
    advance("infer", outlook.images - fresh.images)
    # Another run may have been faster, with failures of its own: what counts is what the artifact says.
    return AnsweredShard(made, fresh.forwards, int(str(store.counts(made)["failures"])), reused=False)


class Inference:
    """Runs the detector over images, each decoded once, and keeps account of images, forwards and failures.

    `files` gives the images that are to be looked at, in their order, with their bytes; others may follow.
    """

    def __init__(self, question: Question, place: Place, files: Iterator[tuple[str, bytes | ImageError]]) -> None:
        self.question = question
        self.failures: list[Failure] = []
        self.forwards = 0
        self.images = 0
        self._place = place
        self._files = files

    def answer(self, wanted: Mapping[str, Sequence[Look]]) -> dict[RecordId, Candidates]:
        """The candidates of every record that is wanted, given by image, but for images that cannot be read."""
        answers: dict[RecordId, Candidates] = {}
        if not wanted:
            return answers
        detector = self._load()
        for group in self._groups(self._seen(wanted)):
            asked = [look for _, looks_at in group for look in looks_at]
            found = detector.detect(
                [pixels for pixels, looks_at in group for _ in looks_at],
                [look.prompt for look in asked],
                keep_floor=self.question.keep_floor,
                batch_size=self._place.batch_size,
            )
            self.forwards += sum(len(detector.captions(look.prompt)) for look in asked)
            answers |= {look.id: answer for look, answer in zip(asked, found, strict=True)}
            self._done_with(len(group))
        return answers

    def _load(self) -> Detector:
        detector = load_detector(self.question.detector, device=self._place.device)
        if detector.digest != self.question.digest:
            raise CheckpointError(f"{self.question.detector.checkpoint} changed while the run went on; run again")
        return detector

    def _seen(self, wanted: Mapping[str, Sequence[Look]]) -> Iterator[tuple[Pixels, Sequence[Look]]]:
        """The pixels of every image with what is asked about it; images are decoded once each."""
        for key, data in islice(self._files, len(wanted)):
            try:
                yield decode_unchanged(data, wanted[key][0].image), wanted[key]
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
