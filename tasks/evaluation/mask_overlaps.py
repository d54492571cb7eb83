"""Labels and true objects with their masks, which label stands for which object, and how much the masks overlap."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tasks.domain.box_shapes import Patch, filled_box, inscribed_ellipse
from tasks.domain.boxes import Box, Boxes
from tasks.domain.mask_quality import Overlap, size_of
from tasks.domain.matching import match_labels, own_objects
from tasks.formats.foreign_coco import Row, read_box, read_mask
from tasks.formats.rle import Rle, encode_patch, mask_iou

Id: TypeAlias = int | str
ImageSize: TypeAlias = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Outline:
    """A label or an object of the truth: its box, and its mask if it has one.

    `place` holds the ids of its image and class; `image_size` is that of the image; `row` is what its file says.
    """

    place: tuple[Id, Id]
    image_size: ImageSize
    box: Box
    mask: Rle | None
    row: Row

    @property
    def is_crowd(self) -> bool:
        """Whether it is a region of many objects that are not outlined one by one."""
        return bool(self.row.get("iscrowd"))

    @property
    def score(self) -> float:
        """Its score, 1 where it has none."""
        return float(self.row.get("score", 1.0))

    @property
    def identifier(self) -> Id | None:
        """The id of the annotation in its file."""
        found = self.row.get("id")
        return found if isinstance(found, int | str) else None

    def filled_box(self) -> Rle:
        """The mask of all pixels of its box."""
        return self._encode(filled_box(self.box, *self.image_size[::-1]))

    def inscribed_ellipse(self) -> Rle:
        """The mask of the ellipse inscribed in its box."""
        return self._encode(inscribed_ellipse(self.box, *self.image_size[::-1]))

    def _encode(self, patch: Patch) -> Rle:
        counts = encode_patch(patch.pixels, patch.left, patch.top, *self.image_size)
        return {"size": list(self.image_size), "counts": counts.encode("ascii")}


def read_outlines(rows: Sequence[Row], sizes: Mapping[Id, ImageSize], where: str) -> list[Outline]:
    """The outlines of rows of `load_coco_with_masks` or `load_truth_with_masks`.

    Args:
        rows: Their image ids are keys of `sizes`.
        sizes: Of the images.
        where: What the rows are called in messages.

    Raises:
        FormatError: A mask cannot be read, or is not of this image; or a row has neither a box nor a mask.
    """
    outlines = []
    for row in rows:
        size = sizes[row["image_id"]]
        mask = read_mask(row, *size, where)
        outlines.append(Outline((row["image_id"], row["category_id"]), size, read_box(row, mask, where), mask, row))
    return outlines


def overlaps(labels: Sequence[Outline], truth: Sequence[Outline], class_names: Mapping[Id, str]) -> Iterator[Overlap]:
    """How every object of the truth that has a mask is covered by the label that stands for it, if any.

    Args:
        labels: No crowd regions.
        truth: With its crowd regions, which are skipped.
        class_names: Of the truth, by category id.
    """
    labels_at, objects_at = _by_place(labels), _by_place(outline for outline in truth if not outline.is_crowd)
    for place, objects in objects_at.items():
        for shape, label in _pairs(labels_at.get(place, []), objects):
            if shape.mask is not None:
                yield _overlap(shape, shape.mask, label, class_names[place[1]])


def _by_place(outlines: Iterable[Outline]) -> dict[tuple[Id, Id], list[Outline]]:
    places = defaultdict(list)
    for outline in outlines:
        places[outline.place].append(outline)
    return places


def _pairs(labels: Sequence[Outline], objects: Sequence[Outline]) -> Iterator[tuple[Outline, Outline | None]]:
    """Every object of one image and class with the label that stands for it, if any."""
    boxes, truth = _boxes(labels), _boxes(objects)
    own = own_objects([label.identifier for label in labels], boxes, [shape.identifier for shape in objects], truth)
    matches = match_labels(boxes, np.array([label.score for label in labels]), truth, own)
    label_of = {match: label for match, label in zip(matches.tolist(), labels, strict=True) if match >= 0}
    return ((shape, label_of.get(position)) for position, shape in enumerate(objects))


def _boxes(outlines: Sequence[Outline]) -> Boxes:
    return np.array([outline.box for outline in outlines], dtype=np.float64).reshape(-1, 4)


def _overlap(shape: Outline, true_mask: Rle, label: Outline | None, class_name: str) -> Overlap:
    _, _, width, height = shape.row["bbox"]
    size = size_of(width * height)
    if label is None:
        return Overlap(class_name, size, found=False)
    return Overlap(
        class_name,
        size,
        found=True,
        iou=mask_iou(label.mask, true_mask) if label.mask is not None else 0.0,
        iou_of_box=mask_iou(label.filled_box(), true_mask),
        iou_of_ellipse=mask_iou(label.inscribed_ellipse(), true_mask),
    )
