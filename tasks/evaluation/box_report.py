"""How good boxes are: COCO's twelve numbers, and precision and recall of what was delivered.

AP ranks labels by their scores and so judges a detector at every bar; whoever trains on labels gets all of them, right
or wrong, which precision and recall tell. Both are here: over all classes, per class, and per iteration.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from tasks.domain.artifacts import Json
from tasks.domain.matching import Counts, count_matches
from tasks.evaluation.average_precision import AveragePrecision, average_precision
from tasks.evaluation.counterparts import Coverage, matched, refuse_strangers, refuse_twins, without_classes
from tasks.formats.coco import box_xyxy
from tasks.formats.foreign_coco import Row, load_coco_file, load_scored_coco

# Whose scores those of iteration k are. "after iteration": the labels as they stood then, from the files that a run
# leaves. "labels up to iteration": of the final labels those that iterations up to k brought, without what a later
# iteration has replaced or joined.
IterationsAre: TypeAlias = Literal["after iteration", "labels up to iteration"]


@dataclass(frozen=True)
class Scores:
    """How a set of labels does: `ap` (IoU 0.5 to 0.95) and `ap50` are None where there is no truth to find."""

    labels: int
    truths: int
    counts: Counts
    ap: float | None
    ap50: float | None

    def to_json(self) -> dict[str, Json]:
        """The scores as a JSON object, with precision, recall and F1."""
        counts = self.counts
        rates: dict[str, Json] = {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
        sizes: dict[str, Json] = {"labels": self.labels, "truths": self.truths}
        return {**sizes, **rates, **asdict(counts), "AP": self.ap, "AP50": self.ap50}


@dataclass(frozen=True)
class BoxReport:
    """How good boxes are.

    `coco` holds COCO's twelve numbers under the names of `STATS`, None where there is no truth of that size; they look
    at the 100 best labels of an image and class. `overall` and `classes` (in the order of the truth's categories) count
    every label delivered. `iterations` holds the scores of each iteration, of what `iterations_are` says; it is empty
    where neither a file nor the labels tell.
    """

    coco: Mapping[str, float | None]
    overall: Scores
    classes: Mapping[str, Scores]
    iterations: Mapping[int, Scores]
    iterations_are: IterationsAre
    coverage: Coverage

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        return {
            "coco": dict(self.coco),
            "overall": self.overall.to_json(),
            "classes": {name: scores.to_json() for name, scores in self.classes.items()},
            "iterations": [{"iteration": k, **scores.to_json()} for k, scores in self.iterations.items()],
            "iterations_are": self.iterations_are,
            "coverage": asdict(self.coverage),
        }


def evaluate_boxes(labels: bytes, truth: bytes, *, class_agnostic: bool = False) -> BoxReport:
    """Compare labels with ground truth, and where they tell their iteration, those up to each iteration.

    Args:
        labels: A COCO file with a `score` on every annotation, whose images and classes are those of the truth with
            the same `file_name` and `name`; or a COCO results list, whose ids are those of the truth.
        truth: A COCO file.
        class_agnostic: Ask only whether something is boxed, not what it is called.

    Raises:
        FormatError: A file is not COCO, or the two have no image or no class in common.
    """
    ours, theirs = load_scored_coco(labels, "labels"), load_coco_file(truth, "ground truth")
    return compare_boxes(ours, theirs, (), class_agnostic=class_agnostic)


def compare_boxes(
    ours: Row | list[Row], truth: Row, after: Sequence[Row | list[Row]], *, class_agnostic: bool
) -> BoxReport:
    """The report of labels against the truth; `after` holds the labels after each iteration, where files have them.

    Raises:
        FormatError: The two have no image or no class in common.
    """
    theirs = _truth_of(truth)
    if class_agnostic:
        ours, theirs, after = without_classes(ours), without_classes(theirs), list(map(without_classes, after))
    refuse_strangers(ours, theirs)
    rows, coverage = matched(ours, theirs)
    overall = _report(rows, theirs, coverage)
    if not after:
        up_to = {k: _score(found, theirs) for k, found in _by_iteration(rows).items()}
        return replace(overall, iterations=up_to)
    scores = [_score(matched(document, theirs)[0], theirs) for document in after]
    return replace(overall, iterations=dict(enumerate(scores)), iterations_are="after iteration")


def _truth_of(document: Row) -> Row:
    """The truth with what pycocotools wants on every annotation, and with its own ids, from 1."""
    refuse_twins(document)
    annotations = [
        {"iscrowd": 0, "area": _area(row), **row, "id": number} for number, row in enumerate(document["annotations"], 1)
    ]
    return {**document, "annotations": annotations}


def _area(row: Row) -> float:
    _, _, width, height = row["bbox"]
    return float(width) * float(height)


def _report(rows: Sequence[Row], truth: Row, coverage: Coverage) -> BoxReport:
    """The report without iterations."""
    precision = _average_precision(rows, truth)
    per_class = _count_by_class(rows, truth)
    labels, truths = (Counter(row["category_id"] for row in of) for of in (rows, _objects(truth)))
    classes = {
        row["name"]: Scores(labels[row["id"]], truths[row["id"]], per_class[row["id"]], *precision.classes[row["id"]])
        for row in sorted(truth["categories"], key=lambda row: row["id"])
    }
    return BoxReport(
        coco=precision.coco,
        overall=_overall(precision, rows, truth),
        classes=classes,
        iterations={},
        iterations_are="labels up to iteration",
        coverage=coverage,
    )


def _by_iteration(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The labels up to and with each iteration; none where a label does not tell its iteration."""
    if not rows or any("iteration" not in row for row in rows):
        return {}
    last = max(row["iteration"] for row in rows)
    return {k: [row for row in rows if row["iteration"] <= k] for k in range(last + 1)}


def _score(rows: Sequence[Row], truth: Row) -> Scores:
    return _overall(_average_precision(rows, truth), rows, truth)


def _overall(precision: AveragePrecision, rows: Sequence[Row], truth: Row) -> Scores:
    counts = sum(_count_by_class(rows, truth).values(), Counts())
    return Scores(len(rows), len(_objects(truth)), counts, precision.coco["AP"], precision.coco["AP50"])


def _average_precision(rows: Sequence[Row], truth: Row) -> AveragePrecision:
    labels = [
        {
            **{key: row[key] for key in ("image_id", "category_id", "bbox", "score")},
            "id": i,
            "area": _area(row),
            "iscrowd": 0,
        }
        for i, row in enumerate(rows, 1)
    ]
    return average_precision(labels, truth, "bbox")


def _objects(truth: Row) -> list[Row]:
    return [row for row in truth["annotations"] if not row["iscrowd"]]


def _count_by_class(rows: Sequence[Row], truth: Row) -> dict[int, Counts]:
    """What was found, made up and missed of every class of the truth."""
    labels, truths = _by_place(rows), _by_place(truth["annotations"])
    counts = {row["id"]: Counts() for row in truth["categories"]}
    for place in sorted(labels.keys() | truths.keys()):
        _, category = place
        found, there = labels.get(place, []), truths.get(place, [])
        counts[category] += count_matches(
            _boxes(found),
            np.array([row["score"] for row in found], dtype=np.float64),
            _boxes(there),
            np.array([row["iscrowd"] for row in there], dtype=np.bool_),
        )
    return counts


def _by_place(rows: Iterable[Row]) -> dict[tuple[int, int], list[Row]]:
    """The rows of every image and class."""
    places: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        places.setdefault((row["image_id"], row["category_id"]), []).append(row)
    return places


def _boxes(rows: Sequence[Row]) -> np.ndarray:
    return np.array([box_xyxy(row["bbox"]) for row in rows], dtype=np.float64).reshape(-1, 4)
