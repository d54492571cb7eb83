"""Step: an iteration's candidates, joined with the labels so far."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cached import told
from tasks.domain.aggregation import Aggregated, AggregationRules
from tasks.domain.aggregation import aggregate as join
from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.detections import Candidates, pass_threshold
from tasks.domain.summary import ShardCounts, count_drops, count_labels, sum_counts
from tasks.formats.candidates import load_candidates
from tasks.formats.coco import dump_coco, load_coco
from tasks.in_order import in_order
from tasks.progress import stop_if_abandoned
from tasks.store import READERS, ArtifactStore

VERSION = 1


@dataclass(frozen=True)
class Bar:
    """What a candidate has to pass in an iteration (counted from 0), and how those that do are joined."""

    iteration: int
    threshold: float
    rules: AggregationRules
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelledShard:
    """The labels of a shard after an iteration, its counts, and whether the artifact was there already."""

    annotations: ArtifactRef
    counts: ShardCounts
    reused: bool


@task(
    name="aggregate",
    task_run_name="iteration {bar.iteration} / aggregate {batch}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def aggregate(
    store: ArtifactStore, shards: Sequence[tuple[ArtifactRef, ArtifactRef]], bar: Bar, batch: str
) -> list[LabelledShard]:
    """The labels of every (annotations, candidates) pair of a batch of shards after this iteration."""
    # A run over known labels does little else than wait for the store: several shards are looked up at a time.
    known = in_order(lambda shard: _known(store, *shard, bar), shards, READERS)
    done = [found or _made(store, *shard, bar) for shard, found in known]
    return told(done, batch, reused=sum(shard.reused for shard in done))


def aggregate_shard(store: ArtifactStore, annotations: ArtifactRef, candidates: ArtifactRef, bar: Bar) -> LabelledShard:
    """The labels of one shard after this iteration; read from the store where the same inputs met before."""
    return _known(store, annotations, candidates, bar) or _made(store, annotations, candidates, bar)


def _known(store: ArtifactStore, annotations: ArtifactRef, candidates: ArtifactRef, bar: Bar) -> LabelledShard | None:
    found = store.lookup("annotations", aggregate_key(annotations, candidates, bar))
    return LabelledShard(found, ShardCounts.from_json(store.counts(found)), reused=True) if found else None


def _made(store: ArtifactStore, annotations: ArtifactRef, candidates: ArtifactRef, bar: Bar) -> LabelledShard:
    stop_if_abandoned()
    images, _ = load_coco(store.read(annotations))
    looked_at, failures = load_candidates(store.read(candidates))
    answers = {(look.image, look.caption_id): look.found for look in looked_at}
    labelled, counts = label(images, answers, {failure.image for failure in failures}, bar)
    key = aggregate_key(annotations, candidates, bar)
    made = store.publish("annotations", key, dump_coco(labelled, bar.classes), counts.to_json())
    return LabelledShard(made, counts, reused=False)


def aggregate_key(annotations: ArtifactRef, candidates: ArtifactRef, bar: Bar) -> str:
    """The content key of the labels: both inputs by content, and the rules; two methods may have equal numbers."""
    inputs = [annotations.sha256, candidates.sha256]
    return content_key("aggregate", VERSION, {"in": inputs, "method": type(bar.rules.method).__name__, **asdict(bar)})


def label(
    images: Sequence[LabelledImage],
    answers: Mapping[tuple[str, int], Candidates],
    failed: Collection[str],
    bar: Bar,
) -> tuple[list[LabelledImage], ShardCounts]:
    """The images with their records joined with the answers, by image key and caption id, and what came of them.

    An image that failed at inference keeps the labels of earlier iterations; without any it leaves the data set.
    """
    labelled: list[LabelledImage] = []
    joined: list[Aggregated] = []
    for image in images:
        if image.image.key in failed and not image.annotations:
            continue
        results = [_join(record, answers.get((image.image.key, record.caption_id)), bar) for record in image.records]
        joined += results
        labelled.append(replace(image, records=tuple(map(_with, image.records, results))))
    counts = [
        count_labels(labelled, bar.iteration, bar.classes),
        count_drops(answers.values(), bar.threshold, joined),
    ]
    return labelled, sum_counts(counts)


def _join(record: Record, answer: Candidates | None, bar: Bar) -> Aggregated:
    found = pass_threshold(answer, bar.threshold, bar.iteration) if answer else ()
    return join(record.annotations, found, record.phrases, bar.rules)


def _with(record: Record, result: Aggregated) -> Record:
    return replace(record, annotations=result.annotations)
