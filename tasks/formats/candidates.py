"""The candidates artifact of a shard: what the detector answered about every image that it looked at.

One JSON object in ASCII, an entry a line:

* `looked_at`: every record, with or without candidates: `image`, `sha256` (of the image file, which is what the answer
  holds for, under whatever name), `caption_id`, `asked` (the phrases of the prompt), `degenerate` (the number of boxes
  dropped for a side under one pixel).
* `candidates`: shaped like COCO results: `image`, `caption_id`, `phrase` (a position in `asked`), `bbox`
  [x, y, width, height] in pixels, `score`.
* `failures`: the images that failed at inference: `image`, `stage`, `reason`.

Boxes are rounded to 0.001 pixel and scores to 0.000001 when they are written. That is finer than what two batch sizes
differ by, and it is the only rounding: every later step computes on these numbers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.domain.aggregation import SCORE_DECIMALS
from tasks.domain.detections import Candidates
from tasks.domain.errors import FormatError
from tasks.domain.images import Failure
from tasks.formats.coco import box_xywh, box_xyxy
from tasks.formats.failures import failure_entry, parse_failure


class LookedAt(NamedTuple):
    """What the detector answered about a record: the image's key and digest, the number of its caption, what it saw."""

    image: str
    sha256: str
    caption_id: int
    found: Candidates


def dump_candidates(looked_at: Sequence[LookedAt], failures: Sequence[Failure]) -> bytes:
    """The candidates file of these records, in their order; failures are sorted."""
    parts = {
        "looked_at": map(_record_entry, looked_at),
        "candidates": (entry for record in looked_at for entry in _candidate_entries(record)),
        "failures": map(failure_entry, sorted(failures)),
    }
    return b"{%b}\n" % b",\n".join(b'"%b":[\n%b\n]' % (name.encode(), _lines(part)) for name, part in parts.items())


def _lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    return ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries).encode()


def _record_entry(record: LookedAt) -> dict[str, Any]:
    return {
        "image": record.image,
        "sha256": record.sha256,
        "caption_id": record.caption_id,
        "asked": list(record.found.asked),
        "degenerate": record.found.degenerate,
    }


def _candidate_entries(record: LookedAt) -> Iterator[dict[str, Any]]:
    found = record.found
    columns = zip(found.phrases.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    for phrase, box, score in columns:
        yield {
            "image": record.image,
            "caption_id": record.caption_id,
            "phrase": phrase,
            "bbox": box_xywh(box),
            "score": round(score, SCORE_DECIMALS),
        }


def load_candidates(data: bytes) -> tuple[tuple[LookedAt, ...], tuple[Failure, ...]]:
    """The records that were looked at, in their order, and the images that failed.

    Raises:
        FormatError: The bytes are no candidates file.
    """
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"not a candidates file: {type(error).__name__} {error}; delete it and run again") from error


def _parse(document: Mapping[str, Any]) -> tuple[tuple[LookedAt, ...], tuple[Failure, ...]]:
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for entry in document["candidates"]:
        found.setdefault((entry["image"], entry["caption_id"]), []).append(entry)
    looked_at = tuple(
        LookedAt(
            entry["image"],
            entry["sha256"],
            entry["caption_id"],
            _parse_record(entry, found.get((entry["image"], entry["caption_id"]), ())),
        )
        for entry in document["looked_at"]
    )
    return looked_at, tuple(map(parse_failure, document["failures"]))


def _parse_record(record: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Candidates:
    return Candidates(
        asked=tuple(record["asked"]),
        boxes=np.array([box_xyxy(entry["bbox"]) for entry in found], dtype=np.float64).reshape(-1, 4),  # (N, 4)
        scores=np.array([entry["score"] for entry in found], dtype=np.float64),
        phrases=np.array([entry["phrase"] for entry in found], dtype=np.int64),
        degenerate=record["degenerate"],
    )
