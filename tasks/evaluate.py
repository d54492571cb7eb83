"""How good labels are against ground truth: COCO's twelve numbers, and precision and recall of what was delivered.

AP ranks labels by their scores and so judges a detector at every bar; whoever trains on labels gets all of them, right
or wrong, which precision and recall tell. Both are here: over all classes, per class, and per iteration.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from itertools import count, takewhile
from typing import Any, Literal, TypeAlias

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Json
from tasks.domain.errors import FormatError
from tasks.domain.matching import Counts, count_matches
from tasks.formats.coco import box_xyxy
from tasks.formats.foreign_coco import Row, load_coco_file, load_scored_coco
from tasks.store import Folder

# Whose scores those of iteration k are. "after iteration": the labels as they stood then, from the files that a run
# leaves. "labels up to iteration": of the final labels those that iterations up to k brought, without what a later
# iteration has replaced or joined.
IterationsAre: TypeAlias = Literal["after iteration", "labels up to iteration"]

_LABELS = "annotations.json"  # in a results_dir, and in the folder of each of its iterations

# The order of pycocotools' `COCOeval.stats`, under the names of https://cocodataset.org/#detection-eval.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


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
class Coverage:
    """What could not be compared: images and classes that only one side has, and the labels left out for it.

    Images and classes that only the truth has are evaluated: their objects are missed. A list of COCO results has no
    images and classes of its own, just ids: classes that it does not use count as not in it, images do not.
    """

    images: int
    images_only_in_labels: tuple[str, ...]
    images_only_in_truth: tuple[str, ...]
    classes_only_in_labels: tuple[str, ...]
    classes_only_in_truth: tuple[str, ...]
    labels_left_out: int


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


def evaluate(
    labels: str, truth: str, *, class_agnostic: bool = False, storage_options: Mapping[str, object] | None = None
) -> BoxReport:
    """`evaluate_boxes` on files: `labels` and `truth` are each a JSON file or a results_dir, local or an fsspec URL.

    Of a results_dir that holds the labels after each iteration (`auto_label0/annotations.json` and so on), these files
    are evaluated as the iterations; of a lone file, its labels up to each iteration.

    Raises:
        ArtifactError: A file is missing or cannot be read.
        FormatError: As `evaluate_boxes`; names the file.
    """
    options = storage_options or {}
    folder, name = _place(labels, options)
    ours = load_scored_coco(*_read(folder, name, "labels"))
    theirs = load_coco_file(*_read(*_place(truth, options), "ground truth"))
    paths = () if labels.endswith(".json") else _iterations_in(folder)
    after = [load_scored_coco(*_read(folder, path, "labels")) for path in paths]
    return _compare(ours, theirs, after, class_agnostic=class_agnostic)


def _place(location: str, storage_options: Mapping[str, object]) -> tuple[Folder, str]:
    """The folder of a JSON file and its name; for a results_dir, that of its labels."""
    if not location.endswith(".json"):
        return Folder(location, storage_options), _LABELS
    folder, slash, name = location.rpartition("/")
    return Folder(folder or slash or ".", storage_options), name


def _read(folder: Folder, path: str, what: str) -> tuple[bytes, str]:
    """The bytes of a file, and what it is with its address, for messages."""
    return folder.read(path), f"{what} {_address(folder, path)}"


def _address(folder: Folder, path: str) -> str:
    return path if folder.uri == "." else without_password(f"{folder.uri.rstrip('/')}/{path}")


def _iterations_in(results: Folder) -> tuple[str, ...]:
    """The files with the labels after iteration 0, 1, ...: of as many iterations as the run's record lists.

    Without a record, as after a run that was interrupted, of all that are there.
    """
    listed = _listed_iterations(results)
    numbers = count() if listed is None else range(listed)
    return tuple(takewhile(results.exists, (f"auto_label{k}/{_LABELS}" for k in numbers)))


def _listed_iterations(results: Folder) -> int | None:
    if not results.exists("run.json"):
        return None
    try:
        return len(json.loads(results.read("run.json"))["iterations"])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise FormatError(
            f"{_address(results, 'run.json')}: found no list of iterations, expected the record of a run; delete the "
            "file, and every iteration that has a folder is evaluated"
        ) from error


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
    return _compare(ours, theirs, (), class_agnostic=class_agnostic)


def _compare(ours: Row | list[Row], truth: Row, after: Sequence[Row | list[Row]], *, class_agnostic: bool) -> BoxReport:
    """The report of labels against the truth; `after` holds the labels after each iteration, where files have them."""
    theirs = _truth_of(truth)
    if class_agnostic:
        ours, theirs, after = _without_classes(ours), _without_classes(theirs), list(map(_without_classes, after))
    if isinstance(ours, dict):
        _refuse_strangers(ours, theirs)
    rows, coverage = _matched(ours, theirs)
    overall = _report(rows, theirs, coverage)
    if not after:
        up_to = {k: _score(found, theirs) for k, found in _by_iteration(rows).items()}
        return replace(overall, iterations=up_to)
    scores = [_score(_matched(document, theirs)[0], theirs) for document in after]
    return replace(overall, iterations=dict(enumerate(scores)), iterations_are="after iteration")


def _matched(ours: Row | list[Row], truth: Row) -> tuple[list[Row], Coverage]:
    """Our annotations under the truth's ids of the same image and class, and what has no counterpart."""
    return _match_names(ours, truth) if isinstance(ours, dict) else _match_ids(ours, truth)


def _truth_of(document: Row) -> Row:
    """The truth with what pycocotools wants on every annotation, and with its own ids.

    pycocotools takes the id 0 for "matched with nothing", so annotations are numbered from 1.
    """
    _ids(document["categories"], "name")
    annotations = [
        {"iscrowd": 0, "area": _area(row), **row, "id": number} for number, row in enumerate(document["annotations"], 1)
    ]
    return {**document, "annotations": annotations}


def _area(row: Row) -> float:
    _, _, width, height = row["bbox"]
    return float(width) * float(height)


def _without_classes(document: Any) -> Any:
    """The same COCO file, or results list, with one class for everything."""
    if isinstance(document, list):
        return [{**row, "category_id": 1} for row in document]
    annotations = _without_classes(document["annotations"])
    return {**document, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _match_names(ours: Row, truth: Row) -> tuple[list[Row], Coverage]:
    """A COCO file, which has names of its own."""
    image_of, class_of = _names(ours["images"], "file_name"), _names(ours["categories"], "name")
    image_ids, class_ids = _ids(truth["images"], "file_name"), _ids(truth["categories"], "name")
    named = [(row, image_of[row["image_id"]], class_of[row["category_id"]]) for row in ours["annotations"]]
    rows = [
        {**row, "image_id": image_ids[image], "category_id": class_ids[name]}
        for row, image, name in named
        if image in image_ids and name in class_ids
    ]
    coverage = Coverage(
        images=len(image_ids),
        images_only_in_labels=_without(image_of.values(), image_ids),
        images_only_in_truth=_without(image_ids, image_of.values()),
        classes_only_in_labels=_without(class_of.values(), class_ids),
        classes_only_in_truth=_without(class_ids, class_of.values()),
        labels_left_out=len(named) - len(rows),
    )
    return rows, coverage


def _match_ids(results: Sequence[Row], truth: Row) -> tuple[list[Row], Coverage]:
    """A results list, which speaks in the truth's ids."""
    images, classes = _names(truth["images"], "file_name"), _names(truth["categories"], "name")
    rows = [row for row in results if row["image_id"] in images and row["category_id"] in classes]
    used = {row["category_id"] for row in results}
    coverage = Coverage(
        images=len(images),
        images_only_in_labels=tuple(f"id {i}" for i in _without((row["image_id"] for row in results), images)),
        images_only_in_truth=(),
        classes_only_in_labels=tuple(f"id {i}" for i in _without(used, classes)),
        classes_only_in_truth=tuple(sorted(name for i, name in classes.items() if i not in used)),
        labels_left_out=len(results) - len(rows),
    )
    return rows, coverage


def _names(rows: Iterable[Row], name: str) -> dict[int, str]:
    return {row["id"]: row[name] for row in rows}


def _ids(rows: Sequence[Row], name: str) -> dict[str, int]:
    ids = {row[name]: row["id"] for row in rows}
    if len(ids) < len(rows):
        raise FormatError(f"the ground truth has the same `{name}` twice; expected every {name} once, to compare by it")
    return ids


def _without(these: Iterable[Any], those: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(set(these) - set(those)))


def _refuse_strangers(labels: Row, truth: Row) -> None:
    """Refuse files that have no image or no class in common: they are not about the same things."""
    for part, name, what in (("images", "file_name", "image"), ("categories", "name", "class")):
        ours, theirs = (sorted(row[name] for row in document[part]) for document in (labels, truth))
        if ours and theirs and not set(ours) & set(theirs):
            raise FormatError(
                f"labels and ground truth have no {what} in common: labels have {_some(ours)}, the truth has "
                f"{_some(theirs)}; expected the same names (an image is called by its path below the image folder)"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _report(rows: Sequence[Row], truth: Row, coverage: Coverage) -> BoxReport:
    """The report without iterations."""
    evaluation = _run_cocoeval(rows, truth)
    per_class = _count_by_class(rows, truth)
    labels, truths = (Counter(row["category_id"] for row in of) for of in (rows, _objects(truth)))
    classes = {
        row["name"]: Scores(labels[row["id"]], truths[row["id"]], per_class[row["id"]], *_class_ap(evaluation, k))
        for k, row in enumerate(sorted(truth["categories"], key=lambda row: row["id"]))
    }
    return BoxReport(
        coco=dict(zip(STATS, map(_present, evaluation.stats.tolist()), strict=True)),
        overall=_overall(evaluation, rows, truth),
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
    return _overall(_run_cocoeval(rows, truth), rows, truth)


def _overall(evaluation: COCOeval, rows: Sequence[Row], truth: Row) -> Scores:
    ap, ap50 = map(_present, evaluation.stats[:2].tolist())
    counts = sum(_count_by_class(rows, truth).values(), Counts())
    return Scores(len(rows), len(_objects(truth)), counts, ap, ap50)


def _run_cocoeval(rows: Sequence[Row], truth: Row) -> COCOeval:
    """The evaluation by pycocotools, which prints, and writes into the rows: it gets its own copies."""
    results = [
        {
            **{key: row[key] for key in ("image_id", "category_id", "bbox", "score")},
            "id": i,
            "area": _area(row),
            "iscrowd": 0,
        }
        for i, row in enumerate(rows, 1)
    ]
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth), _index({**truth, "annotations": results}), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _index(document: Row) -> COCO:
    coco = COCO()
    coco.dataset = {**document, "annotations": [dict(row) for row in document["annotations"]]}
    coco.createIndex()
    return coco


def _class_ap(evaluation: COCOeval, k: int) -> tuple[float | None, float | None]:
    """AP and AP50 of the k-th class, over all areas and the 100 best labels."""
    precision = evaluation.eval["precision"][:, :, k, 0, -1]  # (IoUs, recalls)
    return _mean(precision), _mean(precision[0])


def _mean(precision: np.ndarray) -> float | None:
    return float(precision.mean()) if (precision > -1).all() else None


def _present(stat: float) -> float | None:
    """None for -1, pycocotools' word for "no truth"."""
    return None if stat == -1 else stat


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
