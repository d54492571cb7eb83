"""COCO files and results lists of any tool, checked as far as an evaluation needs; `coco` reads our own exactly."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from tasks.domain.errors import FormatError

Row: TypeAlias = dict[str, Any]  # an image, a category, an annotation or a result, as COCO has it

_FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
_RESULT = (*_FIELDS["annotations"], "score")
# What annotations may lack, and what it is where they have it.
_OPTIONAL = {
    "area": "a finite number, not negative",
    "iscrowd": "0 or 1",
    "iteration": "0, 1, 2, ...",
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
    _check_file(document, what)
    _check_optional(document["annotations"], f"`annotations` of the {what}", ("area", "iscrowd"))
    return {part: document[part] for part in _FIELDS}


def load_scored_coco(data: bytes, what: str) -> Row | list[Row]:
    """A COCO file with a score on every annotation, as an object, or a COCO results list, as a list.

    Raises:
        FormatError: As `load_coco_file`, or a score is missing.
    """
    document = _parse(data, what)
    rows, where = document, f"the {what}"
    if isinstance(document, dict):
        _check_file(document, what)
        rows, where = document["annotations"], f"`annotations` of the {what}"
    _check_rows(rows, where, _RESULT)
    _check_kinds(rows, where, _IDS["annotations"])
    _check_optional(rows, where, ("iteration",))
    return {part: document[part] for part in _FIELDS} if isinstance(document, dict) else list(rows)


def _parse(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {what}: not JSON ({error}); expected a COCO file") from error


def _check_file(document: Row, what: str) -> None:
    for part, fields in _FIELDS.items():
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
                f"{where}: entry {position} is {json.dumps(row)[:200]}, expected an object with {', '.join(fields)} "
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
