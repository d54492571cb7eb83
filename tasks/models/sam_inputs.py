"""From an image and its boxes to what Segment Anything was trained to see, without torchvision.

SAM 1 sees the image in the upper left of a square, its longer side as long as the square's, the rest filled with zeros:
bit for bit what transformers' `SamImageProcessorPil` makes. SAM 2 sees it stretched to the whole square. transformers
has that with torchvision alone, whose antialiased bilinear filter is Pillow's but for the rounding of a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from tasks.domain.boxes import Boxes
from tasks.domain.errors import CheckpointError
from tasks.models.checkpoint_files import read_settings
from tasks.models.preprocessing import Preprocessing

_FILES = ("preprocessor_config.json", "processor_config.json")
_IMAGENET = Preprocessing()  # whose mean and deviation every published SAM checkpoint uses, too


@dataclass(frozen=True)
class SamInputs:
    """How an image is laid into the square that the network sees.

    Attributes:
        side: of the square, in pixels.
        pads: whether the image keeps its proportions, as for SAM 1, or is stretched, as for SAM 2.
        mean: of RGB values in [0, 1].
        std: of RGB values in [0, 1].
    """

    side: int
    pads: bool
    mean: tuple[float, ...] = _IMAGENET.mean
    std: tuple[float, ...] = _IMAGENET.std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the image in the square; no side is under 1."""
        if not self.pads:
            return self.side, self.side
        scale = self.side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The square (3, side, side) with the image (H, W, 3), normalised; 0 where there is none."""
        height, width = self.resized(*image.shape[:2])
        pixels = Preprocessing(mean=self.mean, std=self.std).prepare(image, (height, width))
        return np.pad(pixels, ((0, 0), (0, self.side - height), (0, self.side - width)))

    def place(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Where the boxes (N, 4), in pixels of a `height` x `width` image, lie in the square: (N, 4)."""
        resized_height, resized_width = self.resized(height, width)
        placed: Boxes = boxes * (np.array([resized_width, resized_height] * 2) / np.array([width, height] * 2))
        return placed


def read_sam_inputs(folder: Path, *, side: int, pads: bool) -> SamInputs:
    """As a checkpoint's `preprocessor_config.json` or `processor_config.json` says; as published if neither is there.

    Raises:
        CheckpointError: the file asks for other steps than those of SAM 1 (`pads`) or SAM 2, or for another size than
            the network's.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        return SamInputs(side, pads)
    content = read_settings(path)
    content = content.get("image_processor", content)
    _refuse_other_steps(content, path, side=side, pads=pads)
    mean, std = content.get("image_mean") or _IMAGENET.mean, content.get("image_std") or _IMAGENET.std
    return SamInputs(side, pads, tuple(mean), tuple(std))


def _refuse_other_steps(content: Mapping[str, Any], path: Path, *, side: int, pads: bool) -> None:
    square = {"height": side, "width": side}
    supported = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": int(PilImage.Resampling.BILINEAR),
        "do_pad": pads,
        "size": {"longest_edge": side} if pads else square,
    }
    if pads:
        supported["pad_size"] = square
    problems = [
        f"{key} is {content[key]}, expected {expected}"
        for key, expected in supported.items()
        if content.get(key) not in (None, expected)
    ]
    if problems:
        raise CheckpointError(
            f"{path} asks for a preprocessing that is not supported: {'; '.join(problems)}; mend the file"
        )
