"""From an image's pixels to what Grounding DINO was trained to see: resized and normalised, never padded.

Bit for bit what transformers' `GroundingDinoImageProcessorPil` makes of one image, without torchvision.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from tasks.domain.errors import CheckpointError
from tasks.models.checkpoint_files import read_settings

_SUPPORTED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": int(PilImage.Resampling.BILINEAR),
}


@dataclass(frozen=True)
class Preprocessing:
    """How large an image is made and how its values are scaled.

    The sides are in pixels; `mean` and `std` are of RGB values in [0, 1]. The defaults are those of every published
    Grounding DINO checkpoint: 800 and 1333 from DETR's evaluation, mean and deviation of ImageNet.
    """

    shortest_edge: int = 800
    longest_edge: int = 1333
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing: the shorter side has `shortest_edge` pixels, or the longer `longest_edge`.

        transformers' rule to the pixel; only, no side is under 1.
        """
        shorter, longer = float(min(height, width)), float(max(height, width))
        edge, exact = self.shortest_edge, float(self.shortest_edge)
        if longer / shorter * edge > self.longest_edge:
            exact = self.longest_edge * shorter / longer
            edge = round(exact)
        if min(height, width) == edge:
            return height, width
        if width < height:
            return max(1, int(exact * height / width)), max(1, edge)
        return max(1, edge), max(1, int(exact * width / height))

    def prepare(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
        """The image (H, W, 3) at the given (height, width), normalised: (3, height, width)."""
        height, width = size
        pixels = np.asarray(PilImage.fromarray(image).resize((width, height), PilImage.Resampling.BILINEAR))
        return np.stack([values[pixels[..., channel]] for channel, values in enumerate(self._normalised())])

    def _normalised(self) -> NDArray[np.float32]:
        """What each channel makes of each of the 256 values: (3, 256)."""
        values = (np.arange(256) * (1 / 255)).astype(np.float32)
        mean, std = np.array(self.mean, np.float32)[:, None], np.array(self.std, np.float32)[:, None]
        return (values - mean) / std


@dataclass(frozen=True)
class Pyramid:
    """The feature levels of a model: those of its backbone, at these strides in pixels, then `halvings` more.

    Swin fills up the last patch of a row (`pads`); ConvNeXt leaves out what is short of a whole patch.
    """

    strides: tuple[int, ...]
    halvings: int
    pads: bool

    def positions(self, side: int) -> list[int]:
        """How many positions every level has along a side of so many pixels."""
        levels: list[int] = [-(-side // stride) if self.pads else side // stride for stride in self.strides]
        for _ in range(self.halvings):
            levels.append(-(-levels[-1] // 2))
        return levels

    def is_workable(self, size: tuple[int, int], queries: int) -> bool:
        """Whether an image of this (height, width) gives the encoder enough positions.

        The decoder starts from as many of them as it has queries. The coarsest level needs two: torch refuses to
        normalise a group of a single value, which is what 32 channels in 32 groups come to.
        """
        height, width = size
        levels = zip(self.positions(height), self.positions(width), strict=True)
        per_level = [rows * columns for rows, columns in levels]
        return sum(per_level) >= queries and min(per_level) >= 2


def grown_until_workable(size: tuple[int, int], queries: int, pyramid: Pyramid) -> tuple[int, int]:
    """The (height, width) itself, or the smallest of its shape that is workable.

    A strip of 1333 x 2 pixels has too few positions for 900 queries. It is scaled up beyond the longest edge, not
    padded: an image alone is never padded, and a strip stays small.
    """
    if pyramid.is_workable(size, queries):
        return size
    height, width = size
    for longer in itertools.count(max(size) + 1):
        grown = max(1, longer * height // max(size)), max(1, longer * width // max(size))
        if pyramid.is_workable(grown, queries):
            break
    return grown


def read_preprocessing(folder: Path) -> Preprocessing:
    """As `preprocessor_config.json` or `processor_config.json` in the folder says; the defaults if neither is there.

    Raises:
        CheckpointError: the file asks for steps that are not those of Grounding DINO.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path := folder / name).is_file():
            content = read_settings(path)
            return _parse(content.get("image_processor", content), path)
    return Preprocessing()


def _parse(content: Mapping[str, Any], path: Path) -> Preprocessing:
    problems = [
        f"{key} is {content[key]}, expected {expected}"
        for key, expected in _SUPPORTED.items()
        if content.get(key, expected) != expected
    ]
    size = content.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    if not isinstance(size, dict) or set(size) != {"shortest_edge", "longest_edge"}:
        problems.append(f"size is {size}, expected shortest_edge and longest_edge")
    if problems:
        raise CheckpointError(
            f"{path} asks for a preprocessing that is not supported: {'; '.join(problems)}; mend the file"
        )
    default = Preprocessing()
    mean, std = content.get("image_mean", default.mean), content.get("image_std", default.std)
    return Preprocessing(size["shortest_edge"], size["longest_edge"], tuple(mean), tuple(std))
