"""The square crop around a box that the network sees, and the way back from its pixels to the image's.

A crop is the box with a margin. Where it leaves the image it goes on at the opposite side: the pixels are real ones, on
which the conditional random field of the training depends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tasks.domain.boxes import Box

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB in [0, 1], as for every published backbone
STD = (0.229, 0.224, 0.225)

Margins = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """The pixels of a crop before it is resized: columns `left` to `right`, rows `top` to `bottom`, half-open.

    They may lie outside the image.
    """

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top


def expand(box: Box, margins: Margins) -> Window:
    """The window of a box xyxy with a margin on its left, top, right and bottom, as shares of its half sides.

    The corners are rounded outwards, the far ones a pixel further, and the coordinates are those of single precision:
    the windows that the published networks were trained with, to the pixel.
    """
    x0, y0, x1, y1 = np.array(box, dtype=np.float32)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    left, top, right, bottom = margins
    return Window(
        int(np.floor(float(cx) - float(cx - x0) * (1 + left))),
        int(np.floor(float(cy) - float(cy - y0) * (1 + top))),
        int(np.ceil(float(cx) + float(x1 - cx) * (1 + right) + 1)),
        int(np.ceil(float(cy) + float(y1 - cy) * (1 + bottom) + 1)),
    )


def crop_image(pixels: NDArray[np.uint8], window: Window, size: int) -> NDArray[np.uint8]:
    """The window of an image (H, W, 3), resized to (size, size, 3); what lies outside comes from the opposite side."""
    rows, columns = _rows(window) % pixels.shape[0], _columns(window) % pixels.shape[1]
    return _resized(pixels[rows[:, None], columns[None, :]], size)


def crop_box(box: Box, window: Window, height: int, width: int, size: int, *, wrap: bool) -> NDArray[np.uint8]:
    """The box's own pixels, 1 in a crop of (size, size), of an image of `height` x `width`.

    Outside the image there are none, unless `wrap`: then they are those of the opposite side, as in the image's crop.
    The box counts the pixels that its corners lie in, as the published networks were trained.
    """
    rows, columns = _rows(window), _columns(window)
    if wrap:
        rows, columns = rows % height, columns % width
    x0, y0, x1, y1 = (int(coordinate) for coordinate in np.array(box, dtype=np.float32))
    in_rows = (rows >= max(0, y0)) & (rows <= min(y1, height - 1))
    in_columns = (columns >= max(0, x0)) & (columns <= min(x1, width - 1))
    return _resized((in_rows[:, None] & in_columns[None, :]).astype(np.uint8), size)


def normalise(crops: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Crops (S, S, 3) RGB as the network takes them: (B, 3, S, S) float32."""
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std).contiguous()


def _rows(window: Window) -> NDArray[np.int64]:
    return np.arange(window.top, window.bottom)


def _columns(window: Window) -> NDArray[np.int64]:
    return np.arange(window.left, window.right)


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
