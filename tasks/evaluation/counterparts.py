"""Which images and classes of labels are which of the ground truth, and what has no counterpart there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.domain.errors import FormatError
from tasks.formats.foreign_coco import Row


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


def without_classes(document: Any) -> Any:
    """The same COCO file, or results list, with one class for everything."""
    if isinstance(document, list):
        return [{**row, "category_id": 1} for row in document]
    annotations = without_classes(document["annotations"])
    return {**document, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def refuse_strangers(labels: Row | list[Row], truth: Row) -> None:
    """Refuse files that have no image or no class in common: they are not about the same things.

    Raises:
        FormatError: Shows names of both. A list of COCO results has none, and passes.
    """
    if isinstance(labels, list):
        return
    for part, name, what in (("images", "file_name", "image"), ("categories", "name", "class")):
        ours, theirs = (sorted(row[name] for row in document[part]) for document in (labels, truth))
        if ours and theirs and not set(ours) & set(theirs):
            raise FormatError(
                f"labels and ground truth have no {what} in common: labels have {_some(ours)}, the truth has "
                f"{_some(theirs)}; expected the same names (an image is called by its path below the image folder)"
            )


def refuse_twins(truth: Row) -> None:
    """Raise FormatError where two classes of the truth have the same name."""
    _ids(truth["categories"], "name")


def matched(labels: Row | list[Row], truth: Row) -> tuple[list[Row], Coverage]:
    """Our annotations under the truth's ids of the same image and class, and what has no counterpart.

    Raises:
        FormatError: The truth has two images or two classes of the same name.
    """
    return _match_names(labels, truth) if isinstance(labels, dict) else _match_ids(labels, truth)


def _match_names(labels: Row, truth: Row) -> tuple[list[Row], Coverage]:
    """A COCO file, which has names of its own."""
    image_of, class_of = _names(labels["images"], "file_name"), _names(labels["categories"], "name")
    image_ids, class_ids = _ids(truth["images"], "file_name"), _ids(truth["categories"], "name")
    named = [(row, image_of[row["image_id"]], class_of[row["category_id"]]) for row in labels["annotations"]]
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
