"""What a run would do now: images, prompts, captions, and forwards of each iteration, without a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flows.run_inputs import RunInputs, inputs_of
from tasks.aggregate import Bar, aggregate_shard
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.iteration import Progress, StopReason, stop_reason
from tasks.domain.prompts import caption_text
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import ShardCounts, summarise
from tasks.formats.coco import load_coco
from tasks.formats.image_index import read_image_index
from tasks.index_images import build_index
from tasks.infer import look_ahead
from tasks.shard_images import build_dataset


@dataclass(frozen=True)
class PlannedIteration:
    """The forwards of an iteration: exactly so many, or at most where they depend on answers not known yet."""

    iteration: int
    threshold: float
    forwards: int
    exact: bool
    reused_shards: int


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
    def forwards(self) -> int:
        """Forwards of all iterations, at most."""
        return sum(iteration.forwards for iteration in self.iterations)

    @property
    def exact(self) -> bool:
        """Whether the run will make exactly that many."""
        return all(iteration.exact for iteration in self.iterations)


@dataclass(frozen=True)
class Prospect:
    """A shard as far as it can be foreseen after an iteration.

    Without `annotations` its labels depend on answers that nobody knows yet. `most` are the forwards that it takes to
    ask every phrase of every record.
    """

    most: int
    annotations: ArtifactRef | None
    candidates: ArtifactRef | None = None
    counts: ShardCounts | None = None


def plan_run(spec: ExperimentSpec) -> Plan:
    """Index the images, and follow the loop as far as the cache knows the detector's answers.

    It reads the images and fills the cache with the index and what follows from known answers; it asks no detector.
    """
    run = inputs_of(spec)
    index_ref, _ = build_index(run.place.source, run.store)
    dataset = build_dataset(
        run.store, read_image_index(run.store.read(index_ref)), run.records, run.classes, spec.shard_size
    )
    captions = _captions(run, [shard.annotations for shard in dataset.shards])
    prospects = [
        Prospect(sum(n * images for n, images in counts.items()), shard.annotations)
        for shard, counts in zip(dataset.shards, captions, strict=True)
    ]
    iterations, stop, labels = _foresee(run, prospects)
    return Plan(
        images=sum(shard.images for shard in dataset.shards),
        failures=len(dataset.failures),
        without_prompt=dataset.without_prompt,
        shards=len(dataset.shards),
        phrases=len(
            run.classes or {p for records in run.records.values() for record in records for p in record.phrases}
        ),
        captions=tuple(sorted(_total(captions).items())),
        caption_texts=tuple(
            (caption_text([run.classes[i] for i in caption.phrases]), len(caption.input_ids))
            for caption in run.prompter.captions(run.classes)
        ),
        iterations=tuple(iterations),
        stop=stop,
        labels=labels,
    )


def _captions(run: RunInputs, shards: Sequence[ArtifactRef]) -> list[dict[int, int]]:
    """For every shard, how many records need how many captions when every phrase is asked."""
    known: dict[tuple[str, ...], int] = {}
    counts: list[dict[int, int]] = []
    for shard in shards:
        of_shard: dict[int, int] = {}
        for image in load_coco(run.store.read(shard))[0]:
            for record in image.records:
                if record.phrases not in known:
                    known[record.phrases] = len(run.prompter.captions(record.phrases))
                of_shard[known[record.phrases]] = of_shard.get(known[record.phrases], 0) + 1
        counts.append(of_shard)
    return counts


def _total(counts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for of_shard in counts:
        for captions, records in of_shard.items():
            total[captions] = total.get(captions, 0) + records
    return total


def _foresee(
    run: RunInputs, prospects: list[Prospect]
) -> tuple[list[PlannedIteration], StopReason | None, tuple[ArtifactRef, ...] | None]:
    """Follow the loop until it ends, or until its last iteration at the latest where its end is not known."""
    planned: list[PlannedIteration] = []
    history: list[Progress] = []
    while True:
        iteration = len(planned)
        prospects, step = _next(run, prospects, iteration)
        planned.append(step)
        counts = [prospect.counts for prospect in prospects if prospect.counts]
        known = len(counts) == len(prospects)
        # What is not known yet may always bring labels: the loop goes on then for as long as the schedule lets it.
        history.append(_progress(run, iteration, counts) if known else Progress(1, 1, 1))
        termination = run.termination if known else replace(run.termination, min_new_labels=None)
        stop = stop_reason(history, termination, at_floor=run.schedule.ends_after(iteration))
        if stop is not None:
            labels = tuple(prospect.annotations for prospect in prospects if prospect.annotations)
            return planned, stop if known else None, labels if known else None


def _progress(run: RunInputs, iteration: int, counts: Sequence[ShardCounts]) -> Progress:
    threshold = run.schedule.threshold(iteration)
    return summarise(iteration, threshold, counts, run.classes, forwards=0, reused=0, seconds=0.0).progress


def _next(run: RunInputs, prospects: Sequence[Prospect], iteration: int) -> tuple[list[Prospect], PlannedIteration]:
    threshold = run.schedule.threshold(iteration)
    bar = Bar(iteration, threshold, run.rules(iteration), run.classes)
    steps = [_step(run, prospect, bar) for prospect in prospects]
    return [prospect for prospect, _ in steps], PlannedIteration(
        iteration=iteration,
        threshold=threshold,
        forwards=sum(forwards for _, forwards in steps),
        exact=all(prospect.annotations for prospect in prospects),
        reused_shards=sum(prospect.counts is not None for prospect, _ in steps),
    )


def _step(run: RunInputs, prospect: Prospect, bar: Bar) -> tuple[Prospect, int]:
    """The shard after an iteration, and the forwards that it takes, at most where its labels are not known."""
    if prospect.annotations is None:
        return prospect, 0 if run.question.reprompt == "all" else prospect.most
    outlook = look_ahead(run.store, prospect.annotations, prospect.candidates, run.question)
    if outlook.candidates is None:
        return Prospect(prospect.most, None), sum(len(run.prompter.captions(look.prompt)) for look in outlook.todo)
    after = aggregate_shard(run.store, prospect.annotations, outlook.candidates, bar)
    return Prospect(prospect.most, after.annotations, outlook.candidates, after.counts), 0
