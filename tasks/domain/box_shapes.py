"""The pixels that a box alone suggests: all of them, and those of the ellipse inscribed in it.

A mask that overlaps its object less than these do was not worth a network. A pixel belongs to a shape if its centre,
(x + 0.5, y + 0.5) of pixel (x, y), lies inside.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Box, clip_boxes


@dataclass(frozen=True)
class Patch:
    """The pixels (h, w) of a mask around (left, top) in an image; all others are false. Either side may be 0."""

    pixels: NDArray[np.bool_]
    left: int
    top: int


def filled_box(box: Box, width: int, height: int) -> Patch:
    """All pixels of the box, in an image of `width` x `height` pixels."""
    x, y = _centres_inside(_clipped(box, width, height))
    return Patch(np.ones((y.size, x.size), dtype=np.bool_), *_corner(x, y))


def inscribed_ellipse(box: Box, width: int, height: int) -> Patch:
    """The pixels of the ellipse inscribed in that part of the box that lies in the image."""
    left, top, right, bottom = clipped = _clipped(box, width, height)
    x, y = _centres_inside(clipped)
    across = ((2 * x - left - right) / (right - left)) ** 2  # (w,), from -1 to 1 before it is squared
    down = ((2 * y - top - bottom) / (bottom - top)) ** 2  # (h,)
    return Patch(across[None, :] <= 1 - down[:, None], *_corner(x, y))


def _clipped(box: Box, width: int, height: int) -> Box:
    left, top, right, bottom = clip_boxes(np.array([box]), width, height)[0].tolist()
    return left, top, right, bottom


def _centres_inside(box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The x and the y of the pixel centres in a box, whose left and top sides belong to it."""
    left, top, right, bottom = (math.ceil(side - 0.5) for side in box)
    return np.arange(left, right, dtype=np.float64) + 0.5, np.arange(top, bottom, dtype=np.float64) + 0.5


def _corner(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[int, int]:
    return (int(x[0]), int(y[0])) if x.size and y.size else (0, 0)
