"""What comes of a box that is to get a mask: a mask, or the reason why there is none."""

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from tasks.domain.boxes import Box, Boxes
from tasks.domain.images import Image
from tasks.domain.masks import Mask


class NoMask(StrEnum):
    """The kinds of reasons, as `run.json` counts them."""

    CROWD = "crowd"
    NOT_FINITE = "not_finite"
    NO_AREA = "no_area"
    OUTSIDE = "outside"
    IMAGE_FAILED = "image_failed"
    NO_PIXEL = "no_pixel"


@dataclass(frozen=True)
class Unmasked:
    """A label that has no mask; `reason` tells people why, in words."""

    kind: NoMask
    reason: str


Outcome: TypeAlias = Mask | Unmasked

CROWD = Unmasked(NoMask.CROWD, "a crowd region has no instance mask")
NOT_FINITE = Unmasked(NoMask.NOT_FINITE, "the box has a coordinate that is no finite number")
NO_AREA = Unmasked(NoMask.NO_AREA, "the box has no area")
NO_PIXEL = Unmasked(NoMask.NO_PIXEL, "no pixel scored above the threshold")


# The sha256 of an image file, and a box in that image: all that decides on a mask, for a given segmenter.
AskedBox: TypeAlias = tuple[str, Box]


@dataclass(frozen=True)
class AskedImage:
    """An image with the boxes that a segmenter is asked about, in the order of its labels: inside it, with an area."""

    image: Image
    boxes: tuple[Box, ...]

    @property
    def questions(self) -> tuple[AskedBox, ...]:
        """The boxes as what is asked about them: the image by its content, under whatever name."""
        return tuple((self.image.sha256, box) for box in self.boxes)

    @property
    def array(self) -> Boxes:
        """The boxes as an array (N, 4)."""
        return np.array(self.boxes, dtype=np.float64).reshape(-1, 4)

    def without(self, known: Container[AskedBox]) -> "AskedImage":
        """The image with those of its boxes that are not known, each once."""
        left = dict.fromkeys(question for question in self.questions if question not in known)
        return AskedImage(self.image, tuple(box for _, box in left))

    def in_parts(self, most: int) -> Iterator["AskedImage"]:
        """The image again and again, with at most so many of its boxes each time."""
        for start in range(0, len(self.boxes), most):
            yield AskedImage(self.image, self.boxes[start : start + most])


def part_inside(box: Box, width: int, height: int) -> Box | Unmasked:
    """The part of a box that lies in an image of `width` x `height` pixels; a mask is made of that alone."""
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return NOT_FINITE
    if left >= right or top >= bottom:
        return NO_AREA
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return Unmasked(NoMask.OUTSIDE, f"the box lies outside the image of {width} x {height} pixels")
    return inside


def image_failed(reason: str) -> Unmasked:
    """What every label of an image ends in that cannot be used: "is not there", "has 40 x 30 pixels, ..."."""
    return Unmasked(NoMask.IMAGE_FAILED, f"the image {reason}")
