"""Shards as far as they can be foreseen: what the detector would be asked about them, and why it has no answer yet."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from flows.run_inputs import RunInputs
from tasks.aggregate import Bar, aggregate_shard, label
from tasks.domain.annotations import LabelledImage
from tasks.domain.artifacts import ArtifactRef, subject_id
from tasks.domain.detections import Candidates
from tasks.domain.summary import ShardCounts
from tasks.formats.coco import load_coco
from tasks.infer import Inference, Look, Outlook, RecordId, infer_shard, known_answers, look_ahead, looks


class Why(StrEnum):
    """Why an image has to be looked at."""

    NEW = "new images"
    OTHER_PROMPT = "other phrases than before: a score depends on the whole caption"
    OTHER_DETECTOR = "another detector, preprocessing or keep floor than before"


@dataclass(frozen=True)
class Cost:
    """What an iteration asks of a shard: the forwards that are certain, with the reasons, and how many may follow."""

    forwards: int = 0
    maybe: int = 0
    why: Counter[Why] = field(default_factory=Counter)


@dataclass(frozen=True)
class Prospect:
    """A shard after an iteration.

    Where all its labels are known they are `annotations` in the store, with the `candidates` behind them and `counts`
    of this iteration. Otherwise `ahead` is what the iterations to come cost: they are foreseen all at once, so that no
    image of the shard has to be kept for them.
    """

    annotations: ArtifactRef | None = None
    candidates: ArtifactRef | None = None
    counts: ShardCounts | None = None
    ahead: tuple[Cost, ...] = ()


def foresee(run: RunInputs, before: Prospect, bars: Sequence[Bar]) -> tuple[Prospect, Cost]:
    """The shard after the iteration of the first of `bars`, and what it costs; the others are those to come."""
    if before.annotations is None:
        cost, *ahead = before.ahead
        return Prospect(ahead=tuple(ahead)), cost
    outlook = look_ahead(run.store, before.annotations, before.candidates, run.question, run.recall)
    if outlook.todo:
        images, _ = load_coco(run.store.read(before.annotations))
        cost, *ahead = _partly(run, images, outlook.known, bars)
        return Prospect(ahead=tuple(ahead)), cost
    candidates = outlook.candidates or _put_together(run, outlook)
    done = aggregate_shard(run.store, before.annotations, candidates, bars[0])
    return Prospect(done.annotations, candidates, done.counts), Cost()


def _put_together(run: RunInputs, outlook: Outlook) -> ArtifactRef:
    """The candidates of a shard of which every answer is known; the detector is not loaded."""
    return infer_shard(run.store, outlook, Inference(run.question, run.place, iter(()))).candidates


def _partly(
    run: RunInputs, images: Sequence[LabelledImage], answers: Mapping[RecordId, Candidates], bars: Sequence[Bar]
) -> Iterator[Cost]:
    """Follow the images whose answers are known; the others are asked once, and no one knows what they ask later."""
    most = 0  # forwards that it takes to ask every phrase of those
    for bar in bars:
        wanted = looks(images, run.question.reprompt)
        at_hand = {look.id: answers[look.id] for look in wanted if _answers(answers.get(look.id), look)}
        left = [look for look in wanted if look.id not in at_hand]
        answers = at_hand | known_answers(left, [], run.question, run.recall)
        todo = [look for look in wanted if look.id not in answers]
        yield Cost(
            forwards=sum(_forwards(run, look.prompt) for look in todo),
            maybe=0 if run.question.reprompt == "all" else most,
            why=_reasons(run, todo),
        )
        # By content: what is asked about an image may answer for another of equal bytes, in the iteration that follows.
        asked = {look.image.sha256 for look in todo}
        most += sum(_forwards(run, r.phrases) for i in images if i.image.sha256 in asked for r in i.records)
        images, _ = label([image for image in images if image.image.sha256 not in asked], answers, (), bar)


def _answers(found: Candidates | None, look: Look) -> bool:
    return found is not None and found.asked == look.prompt


def _forwards(run: RunInputs, prompt: tuple[str, ...]) -> int:
    return len(run.prompter.captions(prompt))


def _reasons(run: RunInputs, todo: Iterable[Look]) -> Counter[Why]:
    reasons: Counter[Why] = Counter()
    for look in todo:
        answered = run.recall.abouts("candidates", subject_id(look.image.sha256))
        why = Why.OTHER_PROMPT if run.question.about in answered else Why.OTHER_DETECTOR if answered else Why.NEW
        reasons[why] += _forwards(run, look.prompt)
    return reasons
