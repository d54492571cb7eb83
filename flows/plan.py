"""What a run would do now: images, prompts, captions, and forwards of each iteration, without a forward pass."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flows.prospects import Prospect, Why, foresee
from flows.run_inputs import RunInputs, inputs_of
from tasks.aggregate import Bar
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.iteration import Progress, StopReason, stop_reason
from tasks.domain.prompts import caption_text
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import ShardCounts, summarise
from tasks.formats.coco import load_coco
from tasks.index_images import build_index
from tasks.shard_images import build_dataset


@dataclass(frozen=True)
class PlannedIteration:
    """The forwards of an iteration: `least` are certain, for the reasons in `why`, and `most` are possible.

    They differ where what is asked depends on answers that are not known yet.
    """

    iteration: int
    threshold: float
    least: int
    most: int
    why: Mapping[Why, int]
    reused_shards: int

    @property
    def exact(self) -> bool:
        """Whether the run will make exactly that many."""
        return self.least == self.most


@dataclass(frozen=True)
class Plan:
    """What a run would do now.

    `captions` says how many prompts need how many captions, as (captions, prompts) pairs; `caption_texts` are those of
    the class names with their lengths in tokens, none in grounding mode, where every image has its own;
    `stop` is the reason for which the loop would end, None where that depends on answers that are not known yet; else
    `labels` are the shards that it would deliver.
    """

    images: int
    failures: int
    without_prompt: int
    shards: int
    phrases: int
    captions: tuple[tuple[int, int], ...]
    caption_texts: tuple[tuple[str, int], ...]
    iterations: tuple[PlannedIteration, ...]
    stop: StopReason | None
    labels: tuple[ArtifactRef, ...] | None

    @property
    def least(self) -> int:
        """Forwards of all iterations, at least."""
        return sum(iteration.least for iteration in self.iterations)

    @property
    def most(self) -> int:
        """Forwards of all iterations, at most."""
        return sum(iteration.most for iteration in self.iterations)


def plan_run(spec: ExperimentSpec) -> Plan:
    """Index the images, and follow the loop as far as the cache knows the detector's answers.

    It reads the images and fills the cache with the index and what follows from known answers; it asks no detector.
    """
    run = inputs_of(spec)
    index = [ref for ref, _ in build_index(run.indexer)]
    dataset = build_dataset(run.store, index, run.records, run.classes, spec.shard_size)
    captions = _captions(run, [shard.annotations for shard in dataset.shards])
    iterations, stop, labels = _foresee(run, [Prospect(shard.annotations) for shard in dataset.shards])
    return Plan(
        images=sum(shard.images for shard in dataset.shards),
        failures=len(dataset.failures),
        without_prompt=dataset.without_prompt,
        shards=len(dataset.shards),
        phrases=len(
            run.classes or {p for records in run.records.values() for record in records for p in record.phrases}
        ),
        captions=tuple(sorted(captions.items())),
        caption_texts=tuple(
            (caption_text([run.classes[i] for i in caption.phrases]), len(caption.input_ids))
            for caption in run.prompter.captions(run.classes)
        ),
        iterations=tuple(iterations),
        stop=stop,
        labels=labels,
    )


def _captions(run: RunInputs, shards: Sequence[ArtifactRef]) -> Counter[int]:
    """How many records need how many captions when every phrase is asked."""
    known: dict[tuple[str, ...], int] = {}
    records: Counter[int] = Counter()
    for shard in shards:
        for image in load_coco(run.store.read(shard))[0]:
            for record in image.records:
                if record.phrases not in known:
                    known[record.phrases] = len(run.prompter.captions(record.phrases))
                records[known[record.phrases]] += 1
    return records


def _foresee(
    run: RunInputs, prospects: list[Prospect]
) -> tuple[list[PlannedIteration], StopReason | None, tuple[ArtifactRef, ...] | None]:
    """Follow the loop until it ends, or until its last iteration at the latest where its end is not known."""
    planned: list[PlannedIteration] = []
    history: list[Progress] = []
    fewest: list[Progress] = []  # the history with no more labels than are known
    while True:
        iteration = len(planned)
        may_be_over = bool(fewest) and stop_reason(fewest, run.termination, at_floor=False) is not None
        prospects, step = _next(run, prospects, iteration)
        planned.append(replace(step, least=0, why={}) if may_be_over else step)
        counts = [prospect.counts for prospect in prospects if prospect.counts]
        known = len(counts) == len(prospects)
        # What is not known yet may always bring labels: the loop goes on then for as long as the schedule lets it.
        history.append(_progress(run, iteration, counts) if known else Progress(1, 1, 1))
        fewest.append(history[-1] if known else Progress(sum(of_shard.new_labels for of_shard in counts), 1, 1))
        termination = run.termination if known else replace(run.termination, min_new_labels=None)
        stop = stop_reason(history, termination, at_floor=run.schedule.ends_after(iteration))
        if stop is not None:
            labels = tuple(prospect.annotations for prospect in prospects if prospect.annotations)
            return planned, stop if known else None, labels if known else None


def _progress(run: RunInputs, iteration: int, counts: Sequence[ShardCounts]) -> Progress:
    threshold = run.schedule.threshold(iteration)
    return summarise(iteration, threshold, counts, run.classes, forwards=0, reused=0, seconds=0.0).progress


def _next(run: RunInputs, prospects: Sequence[Prospect], iteration: int) -> tuple[list[Prospect], PlannedIteration]:
    bars = _bars_from(run, iteration)
    foreseen = [foresee(run, prospect, bars) for prospect in prospects]
    least = sum(cost.forwards for _, cost in foreseen)
    return [after for after, _ in foreseen], PlannedIteration(
        iteration=iteration,
        threshold=bars[0].threshold,
        least=least,
        most=least + sum(cost.maybe for _, cost in foreseen),
        why=sum((cost.why for _, cost in foreseen), Counter[Why]()),
        reused_shards=sum(after.counts is not None for after, _ in foreseen),
    )


def _bars_from(run: RunInputs, iteration: int) -> list[Bar]:
    """The bars of this iteration and of all that may follow."""
    bars: list[Bar] = []
    while not bars or not _is_last(run, iteration + len(bars) - 1):
        at = iteration + len(bars)
        bars.append(Bar(at, run.schedule.threshold(at), run.rules(at), run.classes))
    return bars


def _is_last(run: RunInputs, iteration: int) -> bool:
    """Whether no iteration follows, whatever this one brings."""
    most = run.termination.max_iterations
    return run.schedule.ends_after(iteration) or (most is not None and iteration + 1 >= most)
