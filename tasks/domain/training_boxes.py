"""The boxes that a training looks at, and those that it measures with, whose masks may be known."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes
from tasks.domain.images import Failure, Image

THINNEST = 2.0  # pixels; a box has to be wider and higher, as TAO has it


@dataclass(frozen=True)
class Limits:
    """Which boxes count, by their area in square pixels: more than `least` and less than `most`."""

    least: float = 0.0
    most: float = 1e10


@dataclass(frozen=True)
class LabelledBoxes:
    """Boxes in pictures, and what became of those that are not among them.

    `images` are those with a box, sorted. `boxes` (N, 4) lie inside their images, `image_of` (N,) are their places in
    `images`. `masks` are the counts of COCO's compressed run-length codes, one for each box, or None where no masks are
    known. `left_out` counts the others by the reason, and `failures` are the images with boxes that cannot be read.
    """

    images: tuple[Image, ...]
    image_of: NDArray[np.int64]
    boxes: Boxes
    masks: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        """How many boxes there are."""
        return len(self.boxes)
