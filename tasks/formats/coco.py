"""COCO: how the annotations of a shard are kept, and the annotations.json of the whole data set.

One JSON object in ASCII (pycocotools opens files in the platform's encoding), an entry a line:

* `categories`: `id` from 1 in their order, `name`.
* `annotations`: `id` from 1, `image_id`, `category_id`, `bbox` [x, y, width, height] in pixels, `area`, `iscrowd` 0,
  `segmentation` (empty: no mask yet), and beside COCO's own keys `score`, `iteration`, `threshold`, `phrase`,
  `caption_id` (where the image has `records`) and `merged_from`, the detections that it came from.
* `images`: `id` from 1, `file_name` (the image key), `width`, `height`, `sha256`, and `records`, one for each caption,
  with the `noun_chunks` asked. An image without `records` was asked for the categories.

An entry begins with its ids, so that shards can be joined without a look at the rest of the line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self, TypeAlias

from tasks.domain.aggregation import BOX_DECIMALS
from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.boxes import Box
from tasks.domain.detections import Detection
from tasks.domain.errors import FormatError
from tasks.domain.images import Image
from tasks.formats.labelmap import category_id, labels_of

# Reads shards anew, one after the other, each as `dump_coco` wrote it. What is made of all of them walks over them more
# than once, so that no more than one is in memory.
CocoShards: TypeAlias = Callable[[], Iterable[bytes]]

_INFO = {"description": "Labels made by AutoLabel Flow"}  # no date: equal labels are equal bytes
# No entry holds a newline: JSON writes the one of a file name or phrase as an escape.
_BETWEEN_PARTS = re.compile(rb'\n"categories":\[\n|\n\],\n"annotations":\[\n|\n\],\n"images":\[\n|\n\]\}\n')
_ANNOTATION = re.compile(rb'\{"id":\d+,"image_id":(\d+),"category_id":(\d+),')
_IMAGE = re.compile(rb'\{"id":\d+,')


def box_xywh(box: Box) -> list[float]:
    """COCO's [x, y, width, height] of a box, in thousandths of a pixel.

    A box whose coordinates are thousandths already comes back exactly from `box_xyxy`.
    """
    left, top, right, bottom = (round(coordinate, BOX_DECIMALS) for coordinate in box)
    return [left, top, round(right - left, BOX_DECIMALS), round(bottom - top, BOX_DECIMALS)]


def box_xyxy(bbox: Sequence[float]) -> Box:
    """The box of a COCO `bbox` in thousandths of a pixel."""
    x, y, width, height = bbox
    return x, y, round(x + width, BOX_DECIMALS), round(y + height, BOX_DECIMALS)


def distinct_phrases(images: Iterable[LabelledImage]) -> tuple[str, ...]:
    """The categories of grounding mode: every phrase that is asked anywhere, once, sorted."""
    return tuple(sorted({phrase for image in images for record in image.records for phrase in record.phrases}))


def dump_coco(images: Sequence[LabelledImage], class_names: Sequence[str]) -> bytes:
    """The COCO file of these images, which come sorted by key.

    `class_names` are the categories in detection mode; empty means grounding mode, and the categories are the distinct
    phrases. `load_coco` gives equal images back, as long as boxes are in thousandths of a pixel, as all artifacts hold
    them.
    """
    categories = class_names or distinct_phrases(images)
    annotations = enumerate(_annotation_entries(images, categories), start=1)
    annotation_lines = (_line({"id": number, **entry}) for number, entry in annotations)
    image_lines = (_line(_image_entry(image, number, categories)) for number, image in enumerate(images, start=1))
    return b"".join(_document(categories, annotation_lines, image_lines))


def join_coco(shards: CocoShards, categories: Sequence[str]) -> Iterator[bytes]:
    """The bytes of `dump_coco` of the images of all shards together, piece by piece, from those of each.

    `categories` are those of detection mode, which all shards share, or `joined_categories`. Raises FormatError for a
    shard that `dump_coco` has not written.
    """
    return _document(categories, _joined_annotations(shards(), categories), _joined_images(shards()))


def joined_categories(shards: CocoShards) -> tuple[str, ...]:
    """The categories of all shards of grounding mode together: every phrase that is asked anywhere, once, sorted."""
    return tuple(sorted({name for data in shards() for name in _Lines.of(data).categories}))


def _document(categories: Sequence[str], annotations: Iterable[bytes], images: Iterable[bytes]) -> Iterator[bytes]:
    yield b'{"info":%b,\n"categories":[\n%b\n],\n"annotations":[\n' % (_line(_INFO), _category_lines(categories))
    yield from _separated(annotations)
    yield b'\n],\n"images":[\n'
    yield from _separated(images)
    yield b"\n]}\n"


def _separated(lines: Iterable[bytes]) -> Iterator[bytes]:
    for position, line in enumerate(lines):
        yield b",\n" + line if position else line


@dataclass(frozen=True)
class _Lines:
    """The names of the categories of a shard, and its entries as they are written."""

    categories: tuple[str, ...]
    annotations: list[bytes]
    images: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The lines of what `dump_coco` wrote; raises FormatError for anything else."""
        parts = _BETWEEN_PARTS.split(data)
        if len(parts) != 5:
            raise FormatError("not the labels of a shard: expected COCO with an entry a line; run again")
        categories, annotations, images = (part.split(b",\n") if part else [] for part in parts[1:4])
        return cls(tuple(json.loads(line)["name"] for line in categories), annotations, images)


def _joined_annotations(shards: Iterable[bytes], categories: Sequence[str]) -> Iterator[bytes]:
    labels = labels_of(categories)
    written = images = 0
    for shard in map(_Lines.of, shards):
        category_ids = {category_id(label): category_id(labels[name]) for label, name in enumerate(shard.categories)}
        for line in shard.annotations:
            written += 1
            image, category, rest = _split(_ANNOTATION, line)
            ids = written, images + int(image), category_ids[int(category)]
            yield b'{"id":%d,"image_id":%d,"category_id":%d,%b' % (*ids, rest)
        images += len(shard.images)


def _joined_images(shards: Iterable[bytes]) -> Iterator[bytes]:
    lines = chain.from_iterable(_Lines.of(data).images for data in shards)
    for number, line in enumerate(lines, start=1):
        (rest,) = _split(_IMAGE, line)
        yield b'{"id":%d,%b' % (number, rest)


def _split(beginning: re.Pattern[bytes], line: bytes) -> tuple[bytes, ...]:
    """What the groups of `beginning` matched, and the rest of the line behind it."""
    if (match := beginning.match(line)) is None:
        raise FormatError(f"not an entry of a shard: {line[:60]!r}, expected one that begins with its ids; run again")
    return (*match.groups(), line[match.end() :])


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()


def _category_lines(categories: Sequence[str]) -> bytes:
    entries = ({"id": category_id(label), "name": name, "supercategory": ""} for label, name in enumerate(categories))
    return b",\n".join(map(_line, entries))


def _image_entry(labelled: LabelledImage, image_id: int, categories: Sequence[str]) -> dict[str, Any]:
    image = labelled.image
    entry = {"id": image_id, "file_name": image.key, "width": image.width, "height": image.height}
    entry["sha256"] = image.sha256
    if not _is_told_by(categories, labelled):
        entry["records"] = [
            {"caption_id": record.caption_id, "caption": record.caption, "noun_chunks": list(record.phrases)}
            for record in labelled.records
        ]
    return entry


def _is_told_by(categories: Sequence[str], labelled: LabelledImage) -> bool:
    """Whether the image has the one record of detection mode, so that the categories say what was asked."""
    asked = [(record.caption_id, record.caption, record.phrases) for record in labelled.records]
    return asked == [(0, None, tuple(categories))]


def _annotation_entries(images: Sequence[LabelledImage], categories: Sequence[str]) -> Iterator[dict[str, Any]]:
    labels = labels_of(categories)
    for image_id, labelled in enumerate(images, start=1):
        is_told = _is_told_by(categories, labelled)
        for record in labelled.records:
            for annotation in record.annotations:
                ids = {"image_id": image_id, "category_id": category_id(labels[annotation.phrase])}
                yield ids | _annotation_entry(annotation) | ({} if is_told else {"caption_id": record.caption_id})


def _annotation_entry(annotation: Annotation) -> dict[str, Any]:
    found = _detection_entry(annotation)
    _, _, width, height = found["bbox"]
    return {
        **found,
        # Rounded to the six decimals that the product of two thousandths has.
        "area": round(width * height, 2 * BOX_DECIMALS),
        "iscrowd": 0,
        "segmentation": [],
        "merged_from": [_detection_entry(detection) for detection in annotation.merged_from],
    }


def _detection_entry(found: Annotation | Detection) -> dict[str, Any]:
    return {
        "phrase": found.phrase,
        "bbox": box_xywh(found.box),
        "score": found.score,
        "iteration": found.iteration,
        "threshold": found.threshold,
    }


def load_coco(data: bytes) -> tuple[tuple[LabelledImage, ...], tuple[str, ...]]:
    """The images with their records and annotations, and the categories, of a file that `dump_coco` wrote.

    Raises:
        FormatError: It is not JSON, or lacks what only our own files hold.
    """
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"not an annotations.json of a labelling run: {type(error).__name__} {error}; expected COCO with `sha256` "
            "on images and `score`, `iteration`, `threshold`, `phrase`, `merged_from` on annotations; run again"
        ) from error


def _parse(document: Mapping[str, Any]) -> tuple[tuple[LabelledImage, ...], tuple[str, ...]]:
    categories = tuple(entry["name"] for entry in document["categories"])
    annotations: dict[tuple[int, int], list[Annotation]] = {}
    for entry in document["annotations"]:
        of_record = annotations.setdefault((entry["image_id"], entry.get("caption_id", 0)), [])
        of_record.append(_parse_annotation(entry))
    detection_mode = [{"caption_id": 0, "caption": None, "noun_chunks": categories}]
    images = tuple(
        LabelledImage(
            Image(entry["file_name"], entry["sha256"], entry["width"], entry["height"]),
            tuple(
                _parse_record(record, annotations.get((entry["id"], record["caption_id"]), ()))
                for record in entry.get("records", detection_mode)
            ),
        )
        for entry in document["images"]
    )
    return images, categories


def _parse_record(entry: Mapping[str, Any], annotations: Sequence[Annotation]) -> Record:
    return Record(entry["caption_id"], entry["caption"], tuple(entry["noun_chunks"]), tuple(annotations))


def _parse_annotation(entry: Mapping[str, Any]) -> Annotation:
    merged_from = tuple(
        Detection(found["phrase"], box_xyxy(found["bbox"]), found["score"], found["iteration"], found["threshold"])
        for found in entry["merged_from"]
    )
    return Annotation(
        entry["phrase"], box_xyxy(entry["bbox"]), entry["score"], entry["iteration"], entry["threshold"], merged_from
    )
