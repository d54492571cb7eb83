"""Parts of an image in whole pixels, and what a coarse map of numbers says about their pixels.

In NumPy, one value at a time: equal maps give equal masks on every machine.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Box

Map: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """The pixels of an image from `left` up to but not including `right`, and from `top` up to `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


def region_of(box: Box) -> Region:
    """The pixels whose area the box touches."""
    left, top, right, bottom = box
    return Region(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))


def interpolate(values: Map, height: int, width: int, region: Region) -> Map:
    """The part in `region` of `values` (h, w) interpolated bilinearly to `height` x `width`.

    torch's `interpolate` with `align_corners=False`, without the memory for what lies outside the region: values belong
    to the centres of pixels, and the outermost go on to the edge.
    """
    rows = _interpolate_rows(values, height, region.top, region.bottom)  # (bottom - top, w)
    return _interpolate_rows(rows.T, width, region.left, region.right).T  # (bottom - top, right - left)


def _interpolate_rows(values: Map, size: int, start: int, stop: int) -> Map:
    """Rows `start` to `stop` of `values` (n, m) interpolated linearly to `size` rows: (stop - start, m)."""
    position = np.maximum((np.arange(start, stop) + 0.5) * (len(values) / size) - 0.5, 0.0)
    above = position.astype(np.intp)
    below = np.minimum(above + 1, len(values) - 1)
    share = (position - above).astype(np.float32)[:, None]
    # In place, since a photo of 24 megapixels has 96 MB of logits.
    result: Map = values[above]
    step = values[below]
    step -= result
    step *= share
    result += step
    return result
