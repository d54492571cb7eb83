"""How a crop is varied while training: mirrored for both networks, and in colour and sharpness for the student alone.

The order is that of the published training (arXiv 2301.03992), and so are the probabilities and ranges unless the spec
says otherwise. Every number comes from the generator that is handed in.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from tasks.domain.spec_train_mal import MalAugmentationSpec

Pixels: TypeAlias = NDArray[np.uint8]
Enhancer: TypeAlias = type[ImageEnhance.Brightness | ImageEnhance.Contrast | ImageEnhance.Color]

RECIPE = MalAugmentationSpec()


def mirror(
    crop: Pixels, mask: Pixels, rng: np.random.Generator, asked: MalAugmentationSpec = RECIPE
) -> tuple[Pixels, Pixels]:
    """The crop (S, S, 3) and its box mask (S, S), sometimes both from right to left."""
    if rng.random() >= asked.flip_prob:
        return crop, mask
    return np.ascontiguousarray(crop[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])


def distort(crop: Pixels, rng: np.random.Generator, asked: MalAugmentationSpec = RECIPE) -> Pixels:
    """The student's view of a crop (S, S, 3): jittered in colour, without colour, or blurred; the same shape."""
    picture = Image.fromarray(crop)
    if rng.random() < asked.jitter_prob:
        picture = jitter(picture, rng, asked)
    if rng.random() < asked.grey_prob:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < asked.blur_prob:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*asked.blur_radius)))
    return np.asarray(picture)


def jitter(picture: Image.Image, rng: np.random.Generator, asked: MalAugmentationSpec = RECIPE) -> Image.Image:
    """The picture with other brightness, contrast, saturation and hue, changed in random order."""
    amounts = (
        (ImageEnhance.Brightness, asked.brightness),
        (ImageEnhance.Contrast, asked.contrast),
        (ImageEnhance.Color, asked.saturation),
    )
    changes = [_enhanced(enhancer, rng.uniform(1 - most, 1 + most)) for enhancer, most in amounts]
    changes.append(partial(turn_hue, turn=rng.uniform(-asked.hue, asked.hue)))
    for change in rng.permutation(len(changes)):
        picture = changes[change](picture)
    return picture


def _enhanced(enhancer: Enhancer, factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: enhancer(picture).enhance(factor)


def turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    """The picture with every hue moved by `turn` of the colour circle; grey stays grey."""
    hue, saturation, value = picture.convert("HSV").split()
    shift = round(turn * 256)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
