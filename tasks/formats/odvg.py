"""ODVG, the JSON lines that TAO's trainers read, and remaining.jsonl, the phrases that nothing was found for.

A line is an image in detection mode, a caption of an image in grounding mode; without labels it has an empty list:

    {"file_name", "height", "width", "detection": {"instances": [{"bbox", "category", "label", "score"}]}}
    {"file_name", "height", "width", "grounding": {"caption", "caption_id", "regions": [{"bbox", "phrase", "score"}]}}

`bbox` is [left, top, right, bottom] in pixels; `label` counts from 0, as in labelmap.json. `score` and `caption_id` are
ours: TAO writes neither, and its readers pass over them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.boxes import Box
from tasks.domain.images import Image
from tasks.formats.json_lines import dump_line, field, parse_lines
from tasks.formats.labelmap import labels_of


@dataclass(frozen=True)
class Region:
    """A labelled box: `label` is None in grounding mode, `score` where the file has none."""

    box: Box
    name: str
    label: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class OdvgEntry:
    """One line: an image, or one caption of it; `caption` is None in detection mode, and may be empty."""

    file_name: str
    height: int
    width: int
    regions: tuple[Region, ...]
    caption: str | None = None
    caption_id: int = 0


def odvg_entries(images: Iterable[LabelledImage], categories: Sequence[str]) -> Iterator[OdvgEntry]:
    """The lines of these images, in their order; `categories` number the labels of detection mode."""
    labels = labels_of(categories)
    for labelled in images:
        for record in labelled.records:
            yield _entry(labelled.image, record, labels if record.caption is None else {})


def _entry(image: Image, record: Record, labels: Mapping[str, int]) -> OdvgEntry:
    regions = tuple(Region(a.box, a.phrase, labels.get(a.phrase), a.score) for a in record.annotations)
    return OdvgEntry(image.key, image.height, image.width, regions, record.caption, record.caption_id)


def dump_odvg(entries: Iterable[OdvgEntry]) -> Iterator[bytes]:
    """The lines as bytes, one by one."""
    for entry in entries:
        size = {"file_name": entry.file_name, "height": entry.height, "width": entry.width}
        yield dump_line(size | (_detection(entry) if entry.caption is None else _grounding(entry)))


def _detection(entry: OdvgEntry) -> dict[str, Any]:
    instances = [
        {"bbox": list(region.box), "category": region.name, "label": region.label} | _score(region)
        for region in entry.regions
    ]
    return {"detection": {"instances": instances}}


def _grounding(entry: OdvgEntry) -> dict[str, Any]:
    regions = [{"bbox": list(region.box), "phrase": region.name} | _score(region) for region in entry.regions]
    return {"grounding": {"caption": entry.caption, "caption_id": entry.caption_id, "regions": regions}}


def _score(region: Region) -> dict[str, float]:
    return {} if region.score is None else {"score": region.score}


def load_odvg(data: bytes, source: str) -> tuple[OdvgEntry, ...]:
    """The lines of an ODVG file, ours or TAO's; `source` is its name, for the message.

    Captions without `caption_id` are numbered per image in the order of the file. TAO's merged files say `captions`
    for `caption`, and are read.

    Raises:
        FormatError: Lists the bad lines with their numbers.
    """
    seen: Counter[str] = Counter()
    entries: list[OdvgEntry] = []
    for entry, caption_id in parse_lines(data, _parse, source):
        entries.append(replace(entry, caption_id=seen[entry.file_name] if caption_id is None else caption_id))
        seen[entry.file_name] += 1
    return tuple(entries)


def _parse(line: Mapping[str, Any]) -> tuple[OdvgEntry, int | None]:
    """The entry of a line, and its caption id where it has one."""
    size = field(line, "file_name", str), field(line, "height", int), field(line, "width", int)
    if "detection" in line:
        instances = field(field(line, "detection", dict), "instances", list)
        return OdvgEntry(*size, tuple(_region(i, "category", field(i, "label", int)) for i in instances)), 0
    grounding = field(line, "grounding", dict)
    caption = field(grounding, "captions" if "captions" in grounding else "caption", str)
    regions = tuple(_region(region, "phrase", None) for region in field(grounding, "regions", list))
    return OdvgEntry(*size, regions, caption), grounding.get("caption_id")


def _region(region: Mapping[str, Any], name: str, label: int | None) -> Region:
    bbox = field(region, "bbox", list)
    if len(bbox) != 4 or not all(isinstance(coordinate, int | float) for coordinate in bbox):
        raise ValueError(f"'bbox' is {bbox}, expected [left, top, right, bottom]")
    left, top, right, bottom = map(float, bbox)
    score = field(region, "score", float) if "score" in region else None
    return Region((left, top, right, bottom), field(region, name, str), label, score)


def dump_remaining(images: Iterable[LabelledImage]) -> Iterator[bytes]:
    """The lines of remaining.jsonl: for every image or caption with a phrase that has no label yet, those phrases.

    `{"file_name", "caption", "noun_chunks"}`, the form of a prompt file: it can be given as one to a later run. The
    caption of detection mode is the class names joined by " . ", as TAO writes it.
    """
    for labelled in images:
        for record in labelled.records:
            if record.undetected:
                caption = " . ".join(record.phrases) if record.caption is None else record.caption
                chunks = list(record.undetected)
                yield dump_line({"file_name": labelled.image.key, "caption": caption, "noun_chunks": chunks})
