"""The `grounding_dino` block: what is asked about which images, how the threshold falls, and how labels are joined."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, StrictBool, StrictStr, Tag, model_validator

from tasks.domain.prompts import clean_phrase
from tasks.domain.schedule import CosineSchedule, ExponentialSchedule, ListSchedule, Schedule, StepSchedule
from tasks.domain.spec_fields import (
    Count,
    PathOrName,
    PositiveShare,
    Refusal,
    Share,
    ShareWithin,
    SpecBlock,
    Tao,
    Text,
    Unused,
    refuse,
)
from tasks.domain.spec_tao import AugmentationSpec, GroundingDinoModelSpec, GroundingDinoTrainSpec

# What TAO does without a scheduler: one iteration, NMS off.
_TAO_CONF_THRESHOLD = 0.5
_TAO_NMS_THRESHOLD = 0.0


class IterationSpec(SpecBlock):
    """One iteration of TAO's scheduler."""

    conf_threshold: Tao[Share]
    """A candidate with a score above it becomes a detection."""
    nms_threshold: Tao[Share | None] = None
    """IoU above which the weaker of two boxes of a class is suppressed; 0 is off, as in TAO. Empty:
    `aggregation.iou`. Read by `aggregation.method: nms` only."""


class StepAnnealing(SpecBlock):
    """`max(floor, start - drop * (iteration // every))`, iterations counted from 0."""

    schedule: Literal["step"]
    """Which formula."""
    start: Share
    """Threshold of the first iteration."""
    drop: PositiveShare
    """What is subtracted each time."""
    every: Count = 1
    """Iterations between two drops."""
    floor: Share
    """Lowest threshold; the run ends there."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        refuse(_rising(self.start, self.floor))
        return self


class ExponentialAnnealing(SpecBlock):
    """`max(floor, start * gamma ** iteration)`, iterations counted from 0."""

    schedule: Literal["exponential"]
    """Which formula."""
    start: Share
    """Threshold of the first iteration."""
    gamma: ShareWithin
    """What the threshold is multiplied by in each iteration."""
    floor: PositiveShare
    """Lowest threshold; the run ends there. A product never comes to 0, so the floor is above it."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        refuse(_rising(self.start, self.floor))
        return self


class CosineAnnealing(SpecBlock):
    """Half a cosine from `start` in the first to `floor` in the last of `iterations` iterations."""

    schedule: Literal["cosine"]
    """Which formula."""
    start: Share
    """Threshold of the first iteration."""
    floor: Share
    """Threshold of the last iteration."""
    iterations: Count
    """How many iterations."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        refuse(_rising(self.start, self.floor))
        return self


def _rising(start: float, floor: float) -> Iterator[Refusal]:
    if floor > start:
        yield Refusal(("floor",), floor, f"at most `start`, {start:g}")


class NmsAggregation(SpecBlock):
    """Greedy non-maximum suppression per class: of two boxes that overlap, the better score stays."""

    method: Literal["nms"] = "nms"
    """Which method."""
    iou: PositiveShare = 0.7
    """IoU above which two boxes of a class are one object (0.7 is NVIDIA's value in TAO's tutorial). An
    `iteration_scheduler` entry's `nms_threshold` goes before it."""
    cross_class_iou: PositiveShare | None = None
    """IoU above which boxes of different classes are one object, and the better score keeps it. Empty: off."""


class DbscanAggregation(SpecBlock):
    """DBSCAN per class on the distance 1 - IoU: a cluster of boxes is one object."""

    method: Literal["dbscan"]
    """Which method."""
    eps: ShareWithin = 0.3
    """Largest distance 1 - IoU of neighbours (0.3: an IoU of at least 0.7, as with `nms`). At 1 boxes that do not touch
    would be neighbours."""
    min_samples: Count = 1
    """Boxes that make a cluster; a box of none is dropped and counted as noise (1: no box is noise)."""
    box: Literal["best", "mean"] = "best"
    """The cluster's box: that of the best score, or the mean weighted by the scores."""
    cross_class_iou: PositiveShare | None = None
    """IoU above which boxes of different classes are one object, and the better score keeps it. Empty: off."""


class WbfAggregation(SpecBlock):
    """Weighted boxes fusion per class (Solovyev et al., arXiv 1910.13302): boxes that overlap become their mean."""

    method: Literal["wbf"]
    """Which method."""
    iou: PositiveShare = 0.55
    """IoU above which two boxes of a class are one object (0.55 is the default of the authors' ensemble-boxes)."""
    cross_class_iou: PositiveShare | None = None
    """IoU above which boxes of different classes are one object, and the better score keeps it. Empty: off."""


def _method(aggregation: object) -> str:
    if isinstance(aggregation, Mapping):
        return str(aggregation.get("method") or "nms")
    return str(getattr(aggregation, "method", "nms"))


Annealing: TypeAlias = Annotated[
    StepAnnealing | ExponentialAnnealing | CosineAnnealing, Field(discriminator="schedule")
]
Aggregation: TypeAlias = Annotated[
    Annotated[NmsAggregation, Tag("nms")]
    | Annotated[DbscanAggregation, Tag("dbscan")]
    | Annotated[WbfAggregation, Tag("wbf")],
    Discriminator(_method),
]


class TerminationSpec(SpecBlock):
    """When to stop before the schedule does. Labels for everything and none new always ends the run."""

    max_iterations: Count | None = None
    """Stop after so many iterations. Empty: no bound."""
    min_new_labels: Count | None = None
    """An iteration that adds fewer labels than this is a poor one. Empty: none is."""
    patience: Count = 1
    """Stop after so many poor iterations in a row."""


def _shape_of_image_dir(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


def _distinct_names(names: tuple[str, ...]) -> tuple[str, ...]:
    stripped = tuple(name.strip() for name in names)
    refuse(_unusable_names(stripped))
    return stripped


def _unusable_names(names: tuple[str, ...]) -> Iterator[Refusal]:
    spellings: dict[str, str] = {}
    for index, name in enumerate(names):
        # A name of separators alone asks nothing, so it is no other's duplicate; the prompter refuses it in its words.
        asked = clean_phrase(name).casefold() or name
        if not name:
            yield Refusal((index,), name, "a name that is not blank")
        elif asked in spellings:
            because = "the detector reads no capitals, and `.`, `?` and spaces as what stands between words"
            yield Refusal((index,), name, f"each name once: {spellings[asked]!r} is asked already ({because})")
        spellings.setdefault(asked, name)


class DatasetSpec(SpecBlock):
    """The images, and what is asked about them: `class_names` or `noun_chunk_path`."""

    image_dir: Tao[
        Annotated[
            Annotated[StrictStr, Tag("one")]
            | Annotated[Annotated[tuple[Text, ...], Field(min_length=1)], Tag("several")],
            Discriminator(_shape_of_image_dir),
        ]
        | None
    ] = None
    """Folder of the images, or a list of folders: local paths (relative to where the command runs) or fsspec URLs such
    as `s3://bucket/images`. Searched recursively. Required."""
    class_names: Tao[Annotated[tuple[StrictStr, ...], AfterValidator(_distinct_names)]] = ()
    """Detection mode: the classes to look for, the same in every image."""
    noun_chunk_path: Tao[StrictStr | None] = None
    """Grounding mode: JSON lines with `file_name` (relative to `image_dir`), `caption` and `noun_chunks`."""
    augmentation: Tao[AugmentationSpec] = Field(default_factory=AugmentationSpec)


class GroundingDinoSpec(SpecBlock):
    """Text to boxes, in iterations: infer, aggregate, check termination, lower the threshold."""

    checkpoint: Tao[PathOrName | None] = None
    """The detector: a Hugging Face hub id (`IDEA-Research/grounding-dino-tiny`), a folder with its files, a `.pth` of
    IDEA or TAO, a `.safetensors`, `bundled:grounding_dino_scenes` (it ships, and knows the shapes of the demo), or
    `fake` (answers without a network, for tests). Required."""
    dataset: Tao[DatasetSpec] = Field(default_factory=DatasetSpec)
    iteration_scheduler: Tao[Annotated[tuple[IterationSpec, ...], Field(min_length=1)] | None] = None
    """The iterations, listed one by one, in TAO's way. Empty, and `annealing` too: one iteration at 0.5 as in TAO, with
    NMS off unless `aggregation` is given."""
    annealing: Annealing | None = None
    """The thresholds by formula, in place of `iteration_scheduler`."""
    reprompt: Literal["undetected", "all"] = "undetected"
    """What is asked after the first iteration: the phrases that have no label in the image yet (TAO's way; each change
    of the prompt is a new look at the image), or all of them (no further forward pass: the threshold falls over the
    candidates of the first)."""
    aggregation: Aggregation = Field(default_factory=NmsAggregation)
    """How an iteration's detections join the labels so far."""
    termination: TerminationSpec = Field(default_factory=TerminationSpec)
    score: Literal["mean", "max"] = "mean"
    """A phrase's score over its tokens: the mean (TAO, and the published COCO numbers), or the best token."""
    keep_floor: Share = 0.05
    """Candidates below it are not kept, unless the schedule goes lower. Kept ones can pass a lower threshold in a later
    run without the detector (0.05 is detectron2's SCORE_THRESH_TEST, the usual cut for predictions that are kept)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Arithmetic of the detector. TAO's labelling is always fp32; fp16 and bf16 are faster on a GPU and move boxes."""
    visualize: Tao[StrictBool] = True
    """Draw the labels: pictures per iteration and of the final labels."""
    model: Tao[GroundingDinoModelSpec] = Field(default_factory=GroundingDinoModelSpec)
    train: Unused[GroundingDinoTrainSpec] = Field(default_factory=GroundingDinoTrainSpec)
    results_dir: Unused[StrictStr | None] = None
    """TAO reads the top-level `results_dir` only."""

    @model_validator(mode="before")
    @classmethod
    def _tao_default_schedule(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("annealing") or data.get("iteration_scheduler") is not None:
            return data
        nms_threshold = None if data.get("aggregation") else _TAO_NMS_THRESHOLD
        entry = {"conf_threshold": _TAO_CONF_THRESHOLD, "nms_threshold": nms_threshold}
        return {**data, "iteration_scheduler": [entry]}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        refuse([*self._two_schedules(), *self._nms_of_another_method(), *self._idle_patience()])
        return self

    @property
    def schedule(self) -> Schedule:
        """The threshold of each iteration."""
        match self.annealing:
            case StepAnnealing(start=start, drop=drop, every=every, floor=floor):
                return StepSchedule(start, drop, every, floor)
            case ExponentialAnnealing(start=start, gamma=gamma, floor=floor):
                return ExponentialSchedule(start, gamma, floor)
            case CosineAnnealing(start=start, floor=floor, iterations=iterations):
                return CosineSchedule(start, floor, iterations)
            case None:
                return ListSchedule(tuple(entry.conf_threshold for entry in self.iteration_scheduler or ()))

    def nms_threshold(self, iteration: int) -> float | None:
        """The IoU above which two boxes of a class are one object in `iteration`; None where IoU does not decide.

        For `nms` the scheduler's entry goes before `aggregation.iou`, and its 0 is off: None. For `dbscan` it is None.
        """
        if isinstance(self.aggregation, DbscanAggregation):
            return None
        entry = self.iteration_scheduler[iteration].nms_threshold if self.iteration_scheduler else None
        if isinstance(self.aggregation, NmsAggregation) and entry is not None:
            return entry or None
        return self.aggregation.iou

    @property
    def floor(self) -> float:
        """The score down to which candidates are kept: nothing that any iteration may ask for is lost."""
        return min(self.keep_floor, self.schedule.lowest)

    def _two_schedules(self) -> Iterator[Refusal]:
        if self.annealing and self.iteration_scheduler:
            yield Refusal(("annealing",), self.annealing.schedule, "`annealing` or `iteration_scheduler`, not both")

    def _nms_of_another_method(self) -> Iterator[Refusal]:
        if isinstance(self.aggregation, NmsAggregation):
            return
        for index, entry in enumerate(self.iteration_scheduler or ()):
            if entry.nms_threshold:
                expected = f"none (or 0): `aggregation.method` is {self.aggregation.method}, which does not read it"
                yield Refusal(("iteration_scheduler", index, "nms_threshold"), entry.nms_threshold, expected)

    def _idle_patience(self) -> Iterator[Refusal]:
        if self.termination.patience > 1 and self.termination.min_new_labels is None:
            expected = "`min_new_labels` beside it, which says what a poor iteration is"
            yield Refusal(("termination", "patience"), self.termination.patience, expected)
