"""COCO: how the annotations of a shard are kept, and the annotations.json of the whole data set.

One JSON object in ASCII (pycocotools opens files in the platform's encoding), an entry a line:

* `categories`: `id` from 1 in their order, `name`.
* `annotations`: `id` from 1, `image_id`, `category_id`, `bbox` [x, y, width, height] in pixels, `area`, `iscrowd` 0,
  `segmentation` (empty: no mask yet), and beside COCO's own keys `score`, `iteration`, `threshold`, `phrase`,
  `caption_id` (where the image has `records`) and `merged_from`, the detections that it came from.
* `images`: `id` from 1, `file_name` (the image key), `width`, `height`, `sha256`, and `records`, one for each caption,
  with the `noun_chunks` asked. An image without `records` was asked for the categories.

`images` come last, so that a data set can be written shard by shard.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tasks.domain.aggregation import BOX_DECIMALS
from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.boxes import Box
from tasks.domain.detections import Detection
from tasks.domain.errors import FormatError
from tasks.domain.images import Image
from tasks.formats.labelmap import category_id, labels_of

_INFO = {"description": "Labels made by AutoLabel Flow"}  # no date: equal labels are equal bytes


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
    return b"".join(write_coco([images], class_names or distinct_phrases(images)))


def write_coco(shards: Iterable[Sequence[LabelledImage]], categories: Sequence[str]) -> Iterator[bytes]:
    """The bytes of `dump_coco` of all shards together, piece by piece; every annotation's phrase is in `categories`.

    One shard's annotations and a line per image are all that it holds in memory.
    """
    labels = labels_of(categories)
    image_lines: list[bytes] = []
    written = 0
    yield b'{"info":%b,\n"categories":[\n%b\n],\n"annotations":[\n' % (_line(_INFO), _category_lines(categories))
    for shard in shards:
        for labelled in shard:
            image_lines.append(_line(_image_entry(labelled, len(image_lines) + 1, categories)))
            for entry in _annotation_entries(labelled, labels, caption_ids=not _is_told_by(categories, labelled)):
                written += 1
                yield (b",\n" if written > 1 else b"") + _line({"id": written, "image_id": len(image_lines)} | entry)
    yield b'\n],\n"images":[\n%b\n]}\n' % b",\n".join(image_lines)


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


def _annotation_entries(
    labelled: LabelledImage, labels: Mapping[str, int], *, caption_ids: bool
) -> Iterator[dict[str, Any]]:
    for record in labelled.records:
        caption_id = {"caption_id": record.caption_id} if caption_ids else {}
        for annotation in record.annotations:
            yield _annotation_entry(annotation, category_id(labels[annotation.phrase])) | caption_id


def _annotation_entry(annotation: Annotation, category: int) -> dict[str, Any]:
    found = _detection_entry(annotation)
    _, _, width, height = found["bbox"]
    return {
        "category_id": category,
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
