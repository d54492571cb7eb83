"""Models without weights: for tests, documentation, and runs about scale, not accuracy.

The detector sees labels painted into pictures: `paint("cat", 0.8)` is a colour; every patch of exactly that colour in
an image is a cat with score 0.8. The segmenter takes every object for the ellipse that its box encloses.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes
from tasks.domain.detections import Candidates
from tasks.domain.masks import Mask
from tasks.domain.prompts import Caption, clean_phrase, plan_captions
from tasks.formats.rle import encode_patch
from tasks.models.postprocessing import in_order

SMALLEST_OBJECT = 3  # pixels; the fake segmenter sees nothing in a box with a shorter side
_FIRST_WORD = 2_000  # above every special token of the vocabulary that captions are made for


class FakeDetector:
    """A `Detector` without weights: an object is the box around all pixels of one colour that `paint` gives.

    Two objects of one phrase in one image need different scores; else they are one. As with real detectors, letter
    case makes no difference.
    """

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, the same for every fake detector."""
        return hashlib.sha256(b"fake detector, version 1").hexdigest()

    def captions(self, phrases: Sequence[str]) -> tuple[Caption, ...]:
        """The captions that ask these phrases, with a token per word."""
        return _plan(tuple(phrases))

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Sequence[str]],
        *,
        keep_floor: float,
        batch_size: int = 1,
    ) -> list[Candidates]:
        """What is painted in each image, (H, W, 3) RGB, as `Detector.detect` gives it; `batch_size` has no effect."""
        del batch_size
        for prompt in prompts:
            self.captions(prompt)  # refuses what cannot be asked
        return [_seen(image, tuple(prompt), keep_floor) for image, prompt in zip(images, prompts, strict=True)]


class FakeSegmenter:
    """A `Segmenter` without weights: an object is the ellipse inscribed in its box.

    A pixel belongs to it where its centre does. There is no object in a box with a side under SMALLEST_OBJECT. The
    quality grows with the shorter side of the box: the thinner an object, the less sure its outline.
    """

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, the same for every fake segmenter."""
        return hashlib.sha256(b"fake segmenter, version 1").hexdigest()

    def segment(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Boxes], *, batch_size: int = 1
    ) -> list[list[Mask | None]]:
        """The ellipses in the boxes of each image, as `Segmenter.segment` gives masks; `batch_size` has no effect.

        Raises:
            ValueError: A box leaves its image, or has no area: a segmenter is not to be asked about it.
        """
        del batch_size
        return [
            [_ellipse(box, *image.shape[:2]) for box in of_image.tolist()]
            for image, of_image in zip(images, boxes, strict=True)
        ]


def _ellipse(box: Sequence[float], height: int, width: int) -> Mask | None:
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"found the box {box} in an image of {width} x {height}, expected one inside and with an area")
    shorter = min(right - left, bottom - top)
    if shorter < SMALLEST_OBJECT:
        return None
    first_x, first_y = int(left), int(top)
    xs = np.arange(first_x, math.ceil(right)) + 0.5  # centres of pixels
    ys = np.arange(first_y, math.ceil(bottom)) + 0.5
    across = (2 * xs - left - right) / (right - left)  # from -1 to 1
    down = (2 * ys - top - bottom) / (bottom - top)
    patch = across**2 + down[:, None] ** 2 <= 1  # (h, w)
    counts = encode_patch(patch, first_x, first_y, height, width)
    return Mask(height, width, counts, int(patch.sum()), round(1 - 1 / shorter, 4))


@lru_cache(maxsize=65_536)
def paint(phrase: str, score: float) -> tuple[int, int, int]:
    """The (red, green, blue) that stands for an object of this phrase and score; the score is kept to 1/255.

    Red and green come from a hash of the phrase and are never equal, so grey, black and white are nothing. About one
    pair of phrases in 65 000 shares them: an object of one is then seen as both, if both are asked.
    """
    digest = hashlib.sha256(clean_phrase(phrase).lower().encode("utf-8", "surrogatepass")).digest()
    red, offset = digest[0], 1 + digest[1] % 255
    return red, (red + offset) % 256, round(score * 255)


@lru_cache(maxsize=4096)
def _plan(phrases: tuple[str, ...]) -> tuple[Caption, ...]:
    return plan_captions(phrases, [_word_ids(phrase) for phrase in phrases])


def _word_ids(phrase: str) -> list[int]:
    """A number per word, equal for equal words."""
    words = clean_phrase(phrase).lower().encode("utf-8", "surrogatepass").split()
    return [_FIRST_WORD + int.from_bytes(hashlib.sha256(word).digest()[:6], "big") for word in words]


def _seen(image: NDArray[np.uint8], asked: tuple[str, ...], keep_floor: float) -> Candidates:
    """The painted boxes of the phrases asked."""
    askers: dict[tuple[int, int], list[int]] = {}
    for index, phrase in enumerate(asked):
        askers.setdefault(paint(phrase, 0)[:2], []).append(index)
    colours, boxes = _painted_boxes(image, list(askers))
    objects = [
        (row, index)
        for row, (red, green, blue) in enumerate(colours.tolist())
        if blue / 255 >= keep_floor
        for index in askers[red, green]
    ]
    rows, phrases = np.array(objects, dtype=np.int64).reshape(-1, 2).T
    return in_order(asked, boxes[rows], colours[rows, 2] / 255, phrases, degenerate=0)


def _painted_boxes(
    image: NDArray[np.uint8], red_greens: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The colours (N, 3) in the image whose red and green are among those given, and their boxes (N, 4) xyxy."""
    wanted = np.zeros((256, 256), dtype=np.bool_)
    wanted[tuple(np.array(red_greens, dtype=np.intp).reshape(-1, 2).T)] = True
    ys, xs = np.nonzero(wanted[image[..., 0], image[..., 1]])  # (n,) each
    codes = image[ys, xs].astype(np.int64) @ np.array([65_536, 256, 1])
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    if not found.size:
        return np.zeros((0, 3), dtype=np.int64), np.zeros((0, 4))
    edges = [np.minimum.reduceat(axis[order], starts) for axis in (xs, ys)]
    edges += [np.maximum.reduceat(axis[order], starts) + 1 for axis in (xs, ys)]
    return np.stack(np.unravel_index(found, (256, 256, 256)), axis=1), np.stack(edges, axis=1).astype(np.float64)
