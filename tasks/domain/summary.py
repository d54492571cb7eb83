"""Counts of shards and iterations, and the record of a run that `run.json` holds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tasks.domain.aggregation import Aggregated
from tasks.domain.annotations import LabelledImage
from tasks.domain.artifacts import ArtifactRef, Json
from tasks.domain.detections import Candidates
from tasks.domain.iteration import Progress
from tasks.domain.mask_outcomes import NoMask


@dataclass(frozen=True)
class ShardCounts:
    """What aggregation counted in a shard, or in all of them: labels, and why candidates are not labels.

    `candidates` of this iteration that fell `below_threshold` may pass a later one; `degenerate` boxes had a side
    under one pixel, and `noise` belongs to no DBSCAN cluster. `merged` and `cross_class` count detections of all
    iterations so far.
    `undetected` counts (record, phrase) pairs without a label. `labels_per_phrase` tells of the class names in
    detection mode and stays empty in grounding mode; in a shard only those with a label are named.
    """

    images: int = 0
    labelled_images: int = 0
    labels: int = 0
    new_labels: int = 0
    undetected: int = 0
    candidates: int = 0
    below_threshold: int = 0
    degenerate: int = 0
    merged: int = 0
    noise: int = 0
    cross_class: int = 0
    labels_per_phrase: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The counts as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardCounts":
        """The counts of a JSON object that `to_json` made."""
        return cls(**data)


def sum_counts(shards: Iterable[ShardCounts]) -> ShardCounts:
    """The counts of all shards together."""
    totals: dict[str, int] = {}
    per_phrase: dict[str, int] = {}
    for shard in shards:
        for name, value in asdict(shard).items():
            if name != "labels_per_phrase":
                totals[name] = totals.get(name, 0) + value
        for phrase, count in shard.labels_per_phrase.items():
            per_phrase[phrase] = per_phrase.get(phrase, 0) + count
    return ShardCounts(**totals, labels_per_phrase=per_phrase)


def count_labels(images: Sequence[LabelledImage], iteration: int, classes: Sequence[str]) -> ShardCounts:
    """The counts of labels in `images` after `iteration`; `classes` is empty in grounding mode."""
    labels = [annotation for image in images for annotation in image.annotations]
    records = [record for image in images for record in image.records]
    of_phrase = Counter(label.phrase for label in labels)
    return ShardCounts(
        images=len(images),
        labelled_images=sum(bool(image.annotations) for image in images),
        labels=len(labels),
        new_labels=sum(label.iteration == iteration for label in labels),
        undetected=sum(len(record.undetected) for record in records),
        labels_per_phrase={name: of_phrase[name] for name in classes if of_phrase[name]},
    )


def count_drops(answers: Iterable[Candidates], threshold: float, aggregated: Iterable[Aggregated]) -> ShardCounts:
    """The counts of candidates of this iteration, and of detections that are no labels of their own."""
    answers, aggregated = list(answers), list(aggregated)
    return ShardCounts(
        candidates=sum(len(answer.scores) for answer in answers),
        below_threshold=sum(int((answer.scores <= threshold).sum()) for answer in answers),
        degenerate=sum(answer.degenerate for answer in answers),
        merged=sum(result.merged for result in aggregated),
        noise=sum(result.noise for result in aggregated),
        cross_class=sum(result.cross_class for result in aggregated),
    )


@dataclass(frozen=True)
class IterationSummary:
    """One iteration of a run: its threshold, its counts, and what it cost.

    `forwards` counts (image, caption) pairs that went through the detector in this run; `seconds` is wall time.
    `missing` names the classes without a label in detection mode; in grounding mode it is None, and `undetected` of
    the counts says how many chunks have none.
    """

    iteration: int
    threshold: float
    counts: ShardCounts
    missing: tuple[str, ...] | None
    forwards: int
    shards: int
    reused_shards: int
    seconds: float

    @property
    def progress(self) -> Progress:
        """What the termination rules look at."""
        missing = self.counts.undetected if self.missing is None else len(self.missing)
        return Progress(self.counts.new_labels, self.counts.labels, missing)

    def to_json(self) -> dict[str, Json]:
        """The object in `run.json`, the counts flat beside the rest."""
        counts = self.counts.to_json()
        rest = {name: value for name, value in asdict(self).items() if name != "counts"}
        return {**rest, **counts}


def summarise(
    iteration: int,
    threshold: float,
    shards: Sequence[ShardCounts],
    classes: Sequence[str],
    *,
    forwards: int,
    reused: int,
    seconds: float,
) -> IterationSummary:
    """One iteration from what its shards counted; `classes` is empty in grounding mode."""
    total = sum_counts(shards)
    counts = replace(total, labels_per_phrase={name: total.labels_per_phrase.get(name, 0) for name in classes})
    return IterationSummary(
        iteration=iteration,
        threshold=threshold,
        counts=counts,
        missing=tuple(name for name in classes if not counts.labels_per_phrase[name]) if classes else None,
        forwards=forwards,
        shards=len(shards),
        reused_shards=reused,
        seconds=seconds,
    )


@dataclass(frozen=True)
class ImageStates:
    """In which state every image of the data set ended; the three add up to all of them."""

    labelled: int
    empty: int
    failed: int


# The fields of a RunRecord that stand in `run.json` as they are.
_PLAIN = ("spec", "digests", "versions", "device", "stop_reason", "without_prompt", "undrawn")


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds: what was asked, with what, what each iteration brought, and why the loop stopped.

    `spec` has its secrets masked; `digests` name the models by content; `versions` the packages that took part.
    `without_prompt` counts images that no line of the prompt file names: they were not part of the data set.
    `undrawn` counts images whose picture could not be made; their labels stand. `device` is where inference ran.
    `labels` refers to the labels in the store: masks are made from them, and not from the file in `results_dir`.
    """

    spec: Mapping[str, Json]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    iterations: tuple[IterationSummary, ...]
    stop_reason: str
    images: ImageStates
    device: str
    without_prompt: int
    undrawn: int
    labels: ArtifactRef

    def to_json(self) -> dict[str, Json]:
        """The JSON object of `run.json`."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "images": asdict(self.images),
            "labels": asdict(self.labels),
            "iterations": [iteration.to_json() for iteration in self.iterations],
        }


@dataclass(frozen=True)
class MaskCounts:
    """How many boxes there were, how many got a mask, and for which kinds of reasons the others have none."""

    boxes: int
    masks: int
    without_mask: Mapping[NoMask, int]


@dataclass(frozen=True)
class MaskSummary:
    """What making masks brought and cost: `boxes_forwarded` went through the segmenter in this run."""

    counts: MaskCounts
    boxes_forwarded: int
    shards: int
    reused_shards: int
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """The object in `run.json`, the counts flat beside the rest."""
        rest = {name: value for name, value in asdict(self).items() if name != "counts"}
        return {**asdict(self.counts), **rest}


@dataclass(frozen=True)
class MaskRecord:
    """What `run.json` holds of a run that makes masks; after a detection it is added to what that left there.

    `spec`, `digests`, `versions`, `device` and `undrawn` are as in RunRecord. `images` counts an image as failed that
    could not be used for masks, with or without labels.
    """

    spec: Mapping[str, Json]
    digests: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    masks: MaskSummary
    images: ImageStates
    undrawn: int

    def added_to(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object of `run.json`, where `before` is what a detection left; empty where there was none."""
        return {
            **before,
            "spec": self.spec,
            "digests": {**before.get("digests", {}), **self.digests},
            "versions": self.versions,
            "device": self.device,
            "undrawn": self.undrawn,
            "masks": self.masks.to_json(),
            "images": asdict(self.images),
        }
