"""COCO files and results lists of any tool, checked as far as an evaluation needs; `coco` reads our own exactly."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from tasks.domain.boxes import Box
from tasks.domain.errors import FormatError
from tasks.formats.coco import box_xyxy
from tasks.formats.coco_boxes import told_row
from tasks.formats.rle import MOST_PIXELS, Rle, checked_rle, mask_bbox

Row: TypeAlias = dict[str, Any]  # an image, a category, an annotation or a result, as COCO has it

_FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
_SCORED = (*_FIELDS["annotations"], "score")
_MASKED = ("image_id", "category_id")  # what lies around a mask is a box, too
# What annotations may lack, and what it is where they have it.
_OPTIONAL = {
    "area": "a finite number, not negative",
    "iscrowd": "0 or 1",
    "iteration": "0, 1, 2, ...",
    "bbox": "four finite numbers, the last two not negative",
    "score": "a finite number, not negative",
}
_IDS = {"images": ("id",), "categories": ("id",), "annotations": ("image_id", "category_id")}

_LARGEST = 2.0**53  # beyond it a float64 cannot tell one pixel from the next


def load_coco_file(data: bytes, what: str) -> Row:
    """The object of a COCO file: its images, categories and annotations, which refer to each other.

    Args:
        data: The file.
        what: What it is to the user ("ground truth out/truth.json"), for the message.

    Raises:
        FormatError: A part or a field is missing or of a wrong kind (numbers are finite, sizes and scores not negative,
            ids of a part all numbers or all text, and each once), or an annotation refers to what is not there.
    """
    document = _parse(data, what)
    if not isinstance(document, dict):
        raise FormatError(f"the {what}: found no object with {', '.join(_FIELDS)}; expected a COCO file")
    _check_file(document, what, _FIELDS["annotations"])
    _check_optional(document["annotations"], f"`annotations` of the {what}", ("area", "iscrowd"))
    return {part: document[part] for part in _FIELDS}


def load_scored_coco(data: bytes, what: str) -> Row | list[Row]:
    """A COCO file with a score on every annotation, as an object, or a COCO results list, as a list.

    Raises:
        FormatError: As `load_coco_file`, or a score is missing.
    """
    labels: Row | list[Row] = _parts(_load_labels(data, what, _SCORED, ("iteration",)))
    return labels


def load_coco_with_masks(data: bytes, what: str) -> Row | list[Row]:
    """As `load_scored_coco`, of labels with masks: `score` and `bbox` may be missing, and masks are not looked at yet.

    `read_mask` does that, once it is known which image is meant. Every row has its place in the file as `entry`.

    Raises:
        FormatError: As `load_coco_file`.
    """
    labels: Row | list[Row] = _with_entries(_load_labels(data, what, _MASKED, ("bbox", "score", "iscrowd")))
    return labels


def _load_labels(data: bytes, what: str, fields: Sequence[str], optional: Sequence[str]) -> Any:
    document = _parse(data, what)
    where = labels_place(document, what)
    if isinstance(document, dict):
        _check_file(document, what, fields)
    else:
        _check_rows(document, where, fields)
        _check_kinds(document, where, _IDS["annotations"])
    _check_optional(document["annotations"] if isinstance(document, dict) else document, where, optional)
    return document


def _parts(document: Any) -> Any:
    """A COCO file without what it has beside its three parts; a results list as it is."""
    return {part: document[part] for part in _FIELDS} if isinstance(document, dict) else document


def load_truth_with_masks(data: bytes, what: str) -> Row:
    """As `load_coco_file`; every annotation has its place in the file as `entry`, for `read_mask`.

    Raises:
        FormatError: As `load_coco_file`.
    """
    truth: Row = _with_entries(load_coco_file(data, what))
    return truth


def _with_entries(document: Any) -> Any:
    if isinstance(document, list):
        return [{**row, "entry": place} for place, row in enumerate(document)]
    return {**_parts(document), "annotations": _with_entries(document["annotations"])}


def labels_place(document: object, what: str) -> str:
    """What the rows of a COCO file, or of a results list, are called in messages."""
    return f"`annotations` of the {what}" if isinstance(document, dict) else f"the {what}"


def image_sizes(document: Row, what: str) -> dict[int | str, tuple[int, int]]:
    """The height and width in pixels of every image of a COCO file, by its id.

    Raises:
        FormatError: An image does not tell them, or they are none.
    """
    sizes = {}
    for position, row in enumerate(document["images"]):
        size = row.get("height"), row.get("width")
        if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MOST_PIXELS:
            raise FormatError(
                f"`images` of the {what}: entry {position} has the height and width {json.dumps(size)[:60]}; expected "
                f"whole numbers of pixels, at least 1, and at most {MOST_PIXELS:,} pixels in all: masks need them"
            )
        sizes[row["id"]] = size
    return sizes


def read_mask(row: Row, height: int, width: int, where: str) -> Rle | None:
    """The mask of a row, in an image of `height` x `width` pixels; None where it has none, or one without a pixel.

    Args:
        row: Of `load_coco_with_masks` or `load_truth_with_masks`.
        height: In pixels.
        width: In pixels.
        where: What the rows are called in messages, from `labels_place`.

    Raises:
        FormatError: `segmentation` is neither polygons nor run-length code, or not of this image.
    """
    try:
        return checked_rle(row.get("segmentation"), height, width)
    except ValueError as error:
        raise FormatError(f"{where}: the `segmentation` of entry {row['entry']} cannot be read: {error}") from error


def read_box(row: Row, mask: Rle | None, where: str) -> Box:
    """The box of a row, or where it has none, the smallest around its mask.

    Raises:
        FormatError: It has neither.
    """
    if "bbox" in row:
        return box_xyxy(row["bbox"])
    if mask is None:
        raise FormatError(
            f"{where}: entry {row['entry']} has neither a box nor a mask; expected `bbox`, to compare it by"
        )
    return box_xyxy(mask_bbox(mask))


def _parse(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {what}: not JSON ({error}); expected a COCO file") from error


def _check_file(document: Row, what: str, annotation_fields: Sequence[str]) -> None:
    for part, fields in {**_FIELDS, "annotations": annotation_fields}.items():
        where = f"`{part}` of the {what}"
        _check_rows(document.get(part), where, fields)
        _check_kinds(document[part], where, _IDS[part])
    for part in ("images", "categories"):
        _check_distinct(document[part], f"`{part}` of the {what}")
    _check_references(document, what)


def _check_rows(rows: object, where: str, fields: Sequence[str]) -> None:
    if not isinstance(rows, list):
        raise FormatError(f"{where}: found {json.dumps(rows)[:60]}, expected a list of objects, as in COCO")
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or not all(_is_sound(row, name) for name in fields):
            raise FormatError(
                f"{where}: entry {position} is {told_row(row)}, expected an object with {', '.join(fields)} "
                "(a bbox is four finite numbers, the last two not negative; a score is one, not negative; an id is a "
                "whole number or text; a name is text)"
            )


def _check_optional(rows: Sequence[Row], where: str, names: Sequence[str]) -> None:
    for position, row in enumerate(rows):
        for name in names:
            if name in row and not _is_sound(row, name):
                found = json.dumps(row[name])[:60]
                raise FormatError(f"{where}: entry {position} has the {name} {found}, expected {_OPTIONAL[name]}")


def _is_sound(row: Row, name: str) -> bool:
    value = row.get(name)
    match name:
        case "bbox":
            return isinstance(value, list) and len(value) == 4 and _are_numbers(value) and _are_numbers(value[2:], 0)
        case "score" | "area":
            return _are_numbers([value], 0)
        case "iscrowd":
            return value in (0, 1)  # true and false, too: some tools write them
        case "iteration":
            return isinstance(value, int) and _are_numbers([value], 0)
        case "file_name" | "name":
            return isinstance(value, str)
    return isinstance(value, str) or (isinstance(value, int) and _are_numbers([value]))


def _are_numbers(values: Sequence[object], least: float = -_LARGEST) -> bool:
    """Whether all are finite numbers, `least` or more, that a float64 holds well; JSON's true is none."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _LARGEST
        for value in values
    )


def _check_kinds(rows: Sequence[Row], where: str, fields: Sequence[str]) -> None:
    """Refuse a field that is a number in one row and text in another: such ids have no order."""
    for name in fields:
        for position, row in enumerate(rows):
            if isinstance(row[name], str) != isinstance(rows[0][name], str):
                raise FormatError(
                    f"{where}: entry {position} has the {name} {json.dumps(row[name])[:60]} and entry 0 has "
                    f"{json.dumps(rows[0][name])[:60]}; expected whole numbers everywhere, or text everywhere"
                )


def _check_distinct(rows: Sequence[Row], where: str) -> None:
    places: dict[int | str, int] = {}
    for position, row in enumerate(rows):
        if (first := places.setdefault(row["id"], position)) != position:
            raise FormatError(
                f"{where}: entry {position} has the id {json.dumps(row['id'])[:60]} of entry {first}; expected every "
                "id once"
            )


def _check_references(document: Row, what: str) -> None:
    images, categories = ({row["id"] for row in document[part]} for part in ("images", "categories"))
    for position, row in enumerate(document["annotations"]):
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise FormatError(
                f"`annotations` of the {what}: entry {position} has image_id {row['image_id']} and category_id "
                f"{row['category_id']}; expected ids that `images` and `categories` list"
            )
