"""COCO files of any tool whose boxes are to get masks: read once, kept shard by shard, every field as it came.

Rows (images, annotations, categories) stay the objects that they are in the file, NaN and unknown fields included:
what is not understood here is handed on.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tasks.domain.errors import FormatError

Row: TypeAlias = dict[str, Any]

# The fields of a row that are judged. In COCO files as they are in use, others stand before them, polygons above all.
_JUDGED = ("id", "image_id", "category_id", "bbox", "iscrowd", "score", "width", "height", "file_name", "name")
_LONGEST = 200  # characters of a row in a message: six fields or so

_ID = "an id is a finite number or text"
_IMAGE = f"an object with id and file_name ({_ID}; width and height, where given, are numbers)"
_CATEGORY = f"an object with id and name ({_ID}; a name is text)"
_ANNOTATION = f"an object with image_id, category_id and bbox ({_ID}; a bbox is four numbers; iscrowd is 0 or 1)"


@dataclass(frozen=True)
class ImageRows:
    """The row of an image, and those of its annotations in the order of the file."""

    row: Row
    annotations: tuple[Row, ...]

    @property
    def key(self) -> str:
        """The image's key: its file_name."""
        return str(self.row["file_name"])


@dataclass(frozen=True)
class BoxesFile:
    """A COCO file: its images, sorted by file name, and all of it but images and annotations as `head`.

    `repeated_ids` are the ids that several annotations share.
    """

    head: Row
    images: tuple[ImageRows, ...]
    repeated_ids: tuple[Any, ...]


def read_boxes_file(data: bytes, what: str) -> BoxesFile:
    """The COCO file in `data`; `what` names it in messages.

    Where no annotation has an id, they are numbered from 1 in the order of the file.

    Raises:
        FormatError: A part or a field is missing or of a wrong kind, two images have one id or one file name, two
            categories one id, or an annotation refers to what is not there.
    """
    document = _parse(data, what)
    images = _rows(document, "images", what, _is_image, _IMAGE)
    categories = _rows(document, "categories", what, _is_category, _CATEGORY)
    annotations = _numbered(_rows(document, "annotations", what, _is_annotation, _ANNOTATION), what)
    _refuse_repeated(images, "id", f"`images` of the {what}")
    _refuse_repeated(images, "file_name", f"`images` of the {what}")
    _refuse_repeated(categories, "id", f"`categories` of the {what}")
    _refuse_strangers(annotations, images, categories, what)
    return BoxesFile(
        head={name: value for name, value in document.items() if name not in ("images", "annotations")},
        images=tuple(sorted(_grouped(images, annotations), key=lambda rows: rows.key)),
        repeated_ids=tuple(found for found, count in Counter(row["id"] for row in annotations).items() if count > 1),
    )


def dump_image_rows(images: Sequence[ImageRows]) -> bytes:
    """A shard of a COCO file: these images and their annotations, a row a line."""
    annotations = [row for rows in images for row in rows.annotations]
    return b'{"annotations":[\n%b\n],\n"images":[\n%b\n]}\n' % (
        b",\n".join(map(_line, annotations)),
        b",\n".join(_line(rows.row) for rows in images),
    )


def load_image_rows(data: bytes) -> tuple[ImageRows, ...]:
    """The images of a shard in their order, from `dump_image_rows` or from `coco.dump_coco`.

    Raises:
        FormatError: It is neither.
    """
    try:
        document = json.loads(data)
        return tuple(_grouped(document["images"], document["annotations"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"not a shard of a COCO file: {type(error).__name__} {error}; run again") from error


def dump_head(head: Row) -> bytes:
    """A COCO file without its images and annotations, as the rows of those are kept elsewhere."""
    return _line(head) + b"\n"


def load_head(data: bytes) -> Row:
    """What `dump_head` wrote; raises FormatError where it is anything else."""
    try:
        head = json.loads(data)
    except ValueError as error:
        raise FormatError(f"not the head of a COCO file: {error}; run again") from error
    if not isinstance(head, dict):
        raise FormatError(f"not the head of a COCO file: found {str(head)[:60]}, expected an object; run again")
    return head


def write_document(head: Row, images: Callable[[], Iterable[ImageRows]]) -> Iterator[bytes]:
    """The bytes of a COCO file, piece by piece: `head`, then the annotations, then the images, a row a line.

    `images` gives them anew at each call. It is called twice, so that no more than one row is held here.
    """
    yield b"{" + b"".join(b"%b:%b,\n" % (_line(name), _line(value)) for name, value in head.items())
    yield b'"annotations":[\n'
    yield from _joined(row for rows in images() for row in rows.annotations)
    yield b'\n],\n"images":[\n'
    yield from _joined(rows.row for rows in images())
    yield b"\n]}\n"


def renumbered(images: Iterable[ImageRows], categories: Sequence[Row]) -> Iterator[ImageRows]:
    """The images of all shards of our own labels, with the ids that they have in one file of all.

    Images and annotations count from 1 in their order; the category of a label is the one called as its phrase.
    """
    category_ids = {row["name"]: row["id"] for row in categories}
    written = 0
    for image_id, rows in enumerate(images, start=1):
        numbered = [
            row | {"id": written + position, "image_id": image_id, "category_id": category_ids[row["phrase"]]}
            for position, row in enumerate(rows.annotations, start=1)
        ]
        written += len(numbered)
        yield ImageRows(rows.row | {"id": image_id}, tuple(numbered))


def _line(value: object) -> bytes:
    # NaN and infinities pass: a box that has them came so, and is handed on as it came.
    return json.dumps(value, separators=(",", ":")).encode()


def _joined(rows: Iterable[Row]) -> Iterator[bytes]:
    for position, row in enumerate(rows):
        yield (b",\n" if position else b"") + _line(row)


def _grouped(images: Iterable[Row], annotations: Iterable[Row]) -> Iterator[ImageRows]:
    by_image: dict[Any, list[Row]] = {}
    for row in annotations:
        by_image.setdefault(row["image_id"], []).append(row)
    for row in images:
        yield ImageRows(row, tuple(by_image.get(row["id"], ())))


def _parse(data: bytes, what: str) -> Row:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {what}: not JSON ({error}); expected a COCO file") from error
    if not isinstance(document, dict):
        raise FormatError(
            f"the {what}: found {json.dumps(document)[:60]}, expected a COCO file: an object with images, annotations "
            "and categories"
        )
    return document


def _rows(document: Row, part: str, what: str, is_sound: Callable[[Row], bool], expected: str) -> list[Row]:
    rows = document.get(part)
    if not isinstance(rows, list):
        found = f"found {json.dumps(rows)[:60]} as `{part}`" if part in document else f"found no `{part}`"
        raise FormatError(f"the {what}: {found}, expected a list of objects, as in COCO")
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or not is_sound(row):
            raise FormatError(f"`{part}` of the {what}: entry {position} is {told_row(row)}, expected {expected}")
    return rows


def told_row(row: object) -> str:
    """What a message shows of a row that is refused: the fields that are judged, "..." where it is cut."""
    judged = {name: row[name] for name in _JUDGED if name in row} if isinstance(row, dict) else row
    told = json.dumps(judged)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def _is_image(row: Row) -> bool:
    sizes = [row[name] for name in ("width", "height") if row.get(name) is not None]
    return _is_id(row.get("id")) and _is_file_name(row.get("file_name")) and all(map(_is_number, sizes))


def _is_file_name(value: object) -> bool:
    # JSON can hold half a character (a lone surrogate), which is in no file name and in no UTF-8.
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()


def _is_category(row: Row) -> bool:
    return _is_id(row.get("id")) and isinstance(row.get("name"), str)


def _is_annotation(row: Row) -> bool:
    bbox = row.get("bbox")
    return (
        _is_id(row.get("image_id"))
        and _is_id(row.get("category_id"))
        and isinstance(bbox, list)
        and len(bbox) == 4
        and all(map(_is_number, bbox))
        and row.get("iscrowd", 0) in (0, 1)  # true and false, too: some tools write them
    )


def _is_id(value: object) -> bool:
    return isinstance(value, str) or (_is_number(value) and math.isfinite(as_float(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    """The number as a float64, infinite where it is a whole number beyond all of them."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _numbered(annotations: list[Row], what: str) -> list[Row]:
    without = [position for position, row in enumerate(annotations) if not _is_id(row.get("id"))]
    if not without:
        return annotations
    if any("id" in row for row in annotations):
        found = annotations[without[0]]
        raise FormatError(
            f"`annotations` of the {what}: entry {without[0]} is {told_row(found)}, expected an id as in other "
            f"entries ({_ID}), or no id in any"
        )
    return [{"id": number, **row} for number, row in enumerate(annotations, start=1)]


def _refuse_repeated(rows: Sequence[Row], name: str, where: str) -> None:
    places: dict[Any, int] = {}
    for position, row in enumerate(rows):
        if (first := places.setdefault(row[name], position)) != position:
            raise FormatError(
                f"{where}: entry {position} has the {name} {json.dumps(row[name])[:200]} of entry {first}, so that it "
                f"cannot be told which of them is meant; expected every {name} once"
            )


def _refuse_strangers(annotations: Sequence[Row], images: Sequence[Row], categories: Sequence[Row], what: str) -> None:
    known = {"image_id": {row["id"] for row in images}, "category_id": {row["id"] for row in categories}}
    for position, row in enumerate(annotations):
        for name, ids in known.items():
            if row[name] not in ids:
                part = "images" if name == "image_id" else "categories"
                raise FormatError(
                    f"`annotations` of the {what}: entry {position} has {name} {json.dumps(row[name])[:60]}; expected "
                    f"an id that `{part}` lists"
                )


def box_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The xyxy box in pixels of an annotation; its coordinates may be anything that is a number."""
    left, top, width, height = map(as_float, row["bbox"])
    return left, top, left + width, top + height
