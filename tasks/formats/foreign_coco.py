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


def load_coco_file(data: bytes, what: str) -> Row:
    """The object of a COCO file: its images, categories and annotations, which refer to each other.

    Args:
        data: The file.
        what: What it is to the user ("ground truth"), for the message.

    Raises:
        FormatError: A part or a field is missing, or an annotation refers to what is not there.
    """
    document = _parse(data, what)
    if not isinstance(document, dict):
        raise FormatError(f"the {what}: found no object with {', '.join(_FIELDS)}; expected a COCO file")
    return _check_file(document, what)


def load_scored_coco(data: bytes, what: str) -> Row | list[Row]:
    """A COCO file with a score on every annotation, as an object, or a COCO results list, as a list.

    Raises:
        FormatError: As `load_coco_file`, or a score is missing.
    """
    document = _parse(data, what)
    if isinstance(document, dict):
        document = _check_file(document, what)
        _check_rows(document["annotations"], f"`annotations` of the {what}", _RESULT)
        return document
    _check_rows(document, f"the {what}", _RESULT)
    return list(document)


def _parse(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise FormatError(f"the {what}: not JSON ({error}); expected a COCO file") from error


def _check_file(document: Row, what: str) -> Row:
    """The three parts of a COCO file, once they are found to be sound."""
    for part, fields in _FIELDS.items():
        _check_rows(document.get(part), f"`{part}` of the {what}", fields)
    _check_references(document, what)
    return {part: document[part] for part in _FIELDS}


def _check_rows(rows: object, where: str, fields: Sequence[str]) -> None:
    if not isinstance(rows, list):
        raise FormatError(f"{where}: found {json.dumps(rows)[:60]}, expected a list of objects, as in COCO")
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or not all(_is_sound(row, name) for name in fields):
            raise FormatError(
                f"{where}: entry {position} is {json.dumps(row)[:200]}, expected an object with {', '.join(fields)} "
                "(a bbox is four numbers, a score is one)"
            )


def _is_sound(row: Row, name: str) -> bool:
    value = row.get(name)
    if name == "bbox":
        return isinstance(value, list) and len(value) == 4 and all(isinstance(side, int | float) for side in value)
    return isinstance(value, int | float) if name == "score" else isinstance(value, int | str)


def _check_references(document: Row, what: str) -> None:
    images, categories = ({row["id"] for row in document[part]} for part in ("images", "categories"))
    for position, row in enumerate(document["annotations"]):
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise FormatError(
                f"`annotations` of the {what}: entry {position} has image_id {row['image_id']} and category_id "
                f"{row['category_id']}; expected ids that `images` and `categories` list"
            )
