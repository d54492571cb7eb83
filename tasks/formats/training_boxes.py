"""COCO files to learn from: which of their boxes count, and why others do not; kept as JSON between the steps."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes, box_area
from tasks.domain.errors import FormatError
from tasks.domain.images import Failure, Image, ImageIndex, is_inner_path
from tasks.domain.spec_problems import Problem, spec_error
from tasks.domain.training_boxes import THINNEST, LabelledBoxes, Limits
from tasks.formats.coco import box_xyxy
from tasks.formats.foreign_coco import Row, load_coco_file
from tasks.formats.rle import checked_rle

EXAMPLES = 3  # that a message shows of many
UNREADABLE = "in an image that cannot be read"
CROWD = "a crowd (iscrowd)"
THIN = f"not wider and higher than {THINNEST:g} pixels inside the image"
SMALL = "not larger than min_obj_size"
LARGE = "not smaller than max_obj_size"


def read_labelled_boxes(
    data: bytes, index: ImageIndex, limits: Limits, *, masks: bool, learns: bool = True, what: str = "annotations"
) -> LabelledBoxes:
    """The boxes of a COCO file that count, clipped to their images.

    Args:
        data: The file.
        index: The images that there are.
        limits: The areas that count.
        masks: Whether every box has to have a mask.
        learns: Whether a network is to learn from the boxes, which takes something outside of them to tell them from.
        what: What the file is to the user ("annotations boxes.json"), for the message.

    Raises:
        FormatError: It is no COCO file.
        SpecError: Lists everything that makes it useless: files that are missing, or of another size than it says,
            masks that are missing or damaged, no box that counts, or, to learn from, none that leaves anything of its
            image outside.
    """
    document = load_coco_file(data, what)
    rows = document["annotations"]
    names = {row["id"]: row["file_name"] for row in document["images"]}
    used = {row["image_id"] for row in rows}
    images = [row for row in document["images"] if row["id"] in used]
    problems = [*_file_problems(images, index), *_size_problems(images, index)]
    if problems:
        raise spec_error(f"the {what}", problems)
    chosen, left_out = _choose(rows, names, index, limits)
    problems = [*_content_problems(chosen, rows, left_out, learns=learns)]
    counts, mask_problems = _masks(chosen, [rows[i] for i in chosen.rows]) if masks else (None, [])
    if problems or mask_problems:
        raise spec_error(f"the {what}", [*problems, *mask_problems])
    named = {row["file_name"] for row in images}
    failures = tuple(failure for failure in index.failures if failure.image in named)
    return _compact(chosen, counts, left_out, failures)


class _Chosen:
    """Boxes that count, as rows of the file and of the images that there are."""

    def __init__(self, rows: NDArray[np.int64], images: Sequence[Image], boxes: Boxes) -> None:
        self.rows, self.images, self.boxes = rows, images, boxes


def _choose(
    rows: Sequence[Row], names: Mapping[Any, str], index: ImageIndex, limits: Limits
) -> tuple[_Chosen, dict[str, int]]:
    found = {image.key: image for image in index.images}
    images = [found.get(names[row["image_id"]]) for row in rows]
    boxes = np.array([box_xyxy(row["bbox"]) for row in rows], dtype=np.float64).reshape(-1, 4)
    ends = np.array([(image.width, image.height) if image else (0, 0) for image in images], dtype=np.float64)
    boxes = np.clip(boxes, 0, np.tile(ends.reshape(-1, 2), 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = box_area(boxes)
    reasons = {
        UNREADABLE: np.array([image is None for image in images], dtype=np.bool_),
        CROWD: np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_),
        THIN: (sides <= THINNEST).any(axis=1),
        SMALL: areas <= limits.least,
        LARGE: areas >= limits.most,
    }
    kept = np.ones(len(rows), dtype=np.bool_)
    left_out = {}
    for reason, applies in reasons.items():
        left_out[reason] = int((kept & applies).sum())
        kept &= ~applies
    positions = np.flatnonzero(kept)
    there = [image for i in positions if (image := images[i]) is not None]
    return _Chosen(positions, there, boxes[positions]), {reason: n for reason, n in left_out.items() if n}


def _file_problems(images: Sequence[Row], index: ImageIndex) -> Iterator[Problem]:
    known = {image.key for image in index.images} | {failure.image for failure in index.failures}
    names = [row["file_name"] for row in images]
    outside = [name for name in names if not is_inner_path(name)]
    missing = [name for name in names if is_inner_path(name) and name not in known]
    if outside:
        yield Problem("images", f"{_some(outside)} would leave the image folder; expected paths relative to it")
    if missing:
        statement = f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} not in the image folder (no file of that "
        yield Problem("images", f"{statement}name, or none with the suffix of an image); check the folder")


def _size_problems(images: Sequence[Row], index: ImageIndex) -> Iterator[Problem]:
    """Boxes drawn on a picture of another size, or before it was turned upright, would be elsewhere."""
    sizes = {image.key: (image.width, image.height) for image in index.images}
    told = [(row["file_name"], (row.get("width"), row.get("height"))) for row in images]
    wrong = [
        f"{name} ({size[0]} x {size[1]} there, {sizes[name][0]} x {sizes[name][1]} in the file)"
        for name, size in told
        if name in sizes and None not in size and size != sizes[name]
    ]
    if wrong:
        yield Problem("images", f"another width and height than the upright image has: {_some(wrong)}")


def _content_problems(
    chosen: _Chosen, rows: Sequence[Row], left_out: Mapping[str, int], *, learns: bool
) -> Iterator[Problem]:
    if not len(chosen.rows):
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        yield Problem("annotations", f"none of {len(rows)} boxes counts{': ' if reasons else ''}{reasons}")
        return
    whole = np.array([[0, 0, image.width, image.height] for image in chosen.images], dtype=np.float64)
    if learns and bool((chosen.boxes == whole).all()):
        yield Problem("annotations", "every box is its whole image; expected boxes with something outside to tell from")


def _masks(chosen: _Chosen, rows: Sequence[Row]) -> tuple[tuple[str, ...] | None, list[Problem]]:
    counts: list[str] = []
    bad: list[str] = []
    for row, image in zip(rows, chosen.images, strict=True):
        try:
            rle = checked_rle(row.get("segmentation"), image.height, image.width)
        except ValueError as error:
            bad.append(f"{row['bbox']} in {image.key} ({error})")
            continue
        if rle is None:
            bad.append(f"{row['bbox']} in {image.key} (it is absent or empty)")
        else:
            counts.append(rle["counts"].decode("ascii"))
    if not bad:
        return tuple(counts), []
    way_out = "give every box a segmentation, or set dataset.load_mask: false to measure without masks"
    return None, [Problem("annotations", f"no mask of the box {_some(bad)}; {way_out}")]


def _compact(
    chosen: _Chosen, masks: tuple[str, ...] | None, left_out: Mapping[str, int], failures: tuple[Failure, ...]
) -> LabelledBoxes:
    images = tuple(sorted(set(chosen.images)))
    places = {image: place for place, image in enumerate(images)}
    image_of = np.array([places[image] for image in chosen.images], dtype=np.int64)
    return LabelledBoxes(images, image_of, chosen.boxes, masks, left_out, failures)


def _some(found: Sequence[str]) -> str:
    more = len(found) - EXAMPLES
    return ", ".join(found[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def dump_labelled_boxes(boxes: LabelledBoxes) -> bytes:
    """The boxes as JSON, for `load_labelled_boxes`."""
    document = {
        "images": [[image.key, image.sha256, image.width, image.height] for image in boxes.images],
        "boxes": [[int(place), *box] for place, box in zip(boxes.image_of, boxes.boxes.tolist(), strict=True)],
        "masks": boxes.masks,
        "left_out": dict(boxes.left_out),
        "failures": [[failure.image, failure.stage, failure.reason] for failure in boxes.failures],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def load_labelled_boxes(data: bytes) -> LabelledBoxes:
    """The boxes that `dump_labelled_boxes` wrote. Raises FormatError for anything else."""
    try:
        document = json.loads(data)
        rows = np.array(document["boxes"], dtype=np.float64).reshape(-1, 5)
        masks: Iterable[str] | None = document["masks"]
        return LabelledBoxes(
            tuple(Image(*row) for row in document["images"]),
            rows[:, 0].astype(np.int64),
            np.ascontiguousarray(rows[:, 1:]),
            None if masks is None else tuple(masks),
            dict(document["left_out"]),
            tuple(Failure(*row) for row in document["failures"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"not the boxes of a training: {type(error).__name__} {error}; train again") from error
