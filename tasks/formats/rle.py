"""COCO's segmentations: run-length codes and polygons, encoded and decoded by pycocotools.

pycocotools trusts what it is given. Counts that do not add up to the image make wrong masks, and a polygon far outside
of it ends the interpreter (2.0.11: [[0, 0, 1e9, 0, 1e9, 1e9]] in 10 x 10 pixels). So everything from a file is checked
here before pycocotools sees it.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Pixels: TypeAlias = NDArray[np.bool_]
Rle: TypeAlias = dict[str, Any]  # pycocotools' own: `size` [height, width], and `counts`, compressed, ASCII bytes

# A digit of the compressed code holds five bits of a number, the lowest first, in the characters from "0" on; a sixth
# bit says that another digit follows. pycocotools computes in 32 bits, which hold six digits.
_ZERO, _BITS, _MORE, _SIGN, _MOST_DIGITS = ord("0"), 5, 0b100000, 0b010000, 6

MOST_PIXELS = 2**29  # of an image: differences of two runs fit in six digits, then

LONGEST_OUTLINE = 10_000_000  # pixels around all polygons of an object: pycocotools takes 40 bytes for each


def encode_patch(patch: Pixels, left: int, top: int, height: int, width: int) -> str:
    """The compressed counts of a mask of `height` x `width` pixels, all false but for `patch` (h, w) at (left, top).

    The patch lies inside the image. The whole mask is never made: a photo of 24 megapixels has as many bytes per mask.
    """
    columns = np.zeros(
        (patch.shape[1], patch.shape[0] + 2), dtype=np.int8
    )  # a false pixel before and after each column
    columns[:, 1:-1] = patch.T
    column, row = np.nonzero(np.diff(columns, axis=1))
    # A run that fills its column to the bottom goes on at the top of the next: both edges fall together, and are none.
    counts: bytes = _encode_edges((left + column) * height + top + row, height, width)["counts"]
    return counts.decode("ascii")


def _encode_edges(edges: NDArray[np.int64], height: int, width: int) -> Rle:
    """The code of the mask that is false and true by turns, column by column; two edges at one pixel are none."""
    places, times = np.unique(edges, return_counts=True)
    inner = places[(times % 2 == 1) & (places < height * width)]
    runs = np.diff(inner, prepend=0, append=height * width)
    code: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return code


def decode_segmentation(segmentation: object, height: int, width: int) -> Pixels:
    """The mask (height, width) of a COCO segmentation: polygons, or run-length code, compressed or not.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    runs = _parse_counts(_as_rle(segmentation, height, width)["counts"])
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T


def checked_rle(segmentation: object, height: int, width: int) -> Rle | None:
    """The code of a COCO segmentation, safe for pycocotools; None where it is absent, empty, or has no pixel.

    Args:
        segmentation: As JSON has it: polygons, run-length code, compressed or not, an empty list, or None.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: It is none of these, or of another size. The message says what was found and expected.
    """
    if segmentation is None or segmentation == []:
        return None
    rle = _as_rle(segmentation, height, width)
    return rle if mask_area(rle) else None


def empty_mask(height: int, width: int) -> Rle:
    """The mask of an image that has no pixel."""
    return _encode_edges(np.array([], dtype=np.int64), height, width)


def mask_area(mask: Rle) -> int:
    """The number of pixels of a mask."""
    return int(coco_mask.area(mask))


def mask_bbox(mask: Rle) -> list[float]:
    """COCO's [x, y, width, height] of the smallest box around the pixels of a mask."""
    bbox: list[float] = coco_mask.toBbox(mask).tolist()
    return bbox


def mask_iou(a: Rle, b: Rle) -> float:
    """Intersection over union of two masks of one image, in [0, 1]; 0 where neither has a pixel."""
    return float(coco_mask.iou([a], [b], [False])[0, 0])


def _as_rle(segmentation: object, height: int, width: int) -> Rle:
    if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise ValueError(f"found an image of {height} x {width} pixels, expected 1 to {MOST_PIXELS:,}")
    if isinstance(segmentation, Mapping):
        runs = _runs(segmentation, height, width)
        return _encode_edges(np.cumsum(runs)[:-1], height, width)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes) and segmentation:
        rle: Rle = coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation, height, width), height, width))
        return rle
    raise ValueError(
        f"found the segmentation {_short(segmentation)}, expected a list of polygons, or an object with size and counts"
    )


def _runs(code: Mapping[Any, Any], height: int, width: int) -> NDArray[np.int64]:
    """The lengths of the runs of false and true pixels, which fill the image."""
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"found a mask of the size {_short(size)}, expected [{height}, {width}] (height, width)")
    if isinstance(counts, str | bytes):
        runs = _parse_counts(counts)
    elif isinstance(counts, list | tuple) and all(type(run) is int and 0 <= run <= height * width for run in counts):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise ValueError(f"found the counts {_short(counts)}, expected run lengths, or run-length code as text")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"found counts {_short(counts)} that are no runs of {height} x {width} pixels; expected lengths of 0 or "
            f"more that add up to {height * width}"
        )
    return runs


def _parse_counts(counts: str | bytes) -> NDArray[np.int64]:
    """The runs of compressed code: numbers of a few digits, from the fourth on relative to the last but one."""
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _ZERO
    last = np.flatnonzero(digits & _MORE == 0)  # the last digit of each number
    lengths = np.diff(last, prepend=-1)
    ended = last.size and last[-1] == digits.size - 1
    if not ended or digits.min() < 0 or digits.max() >= 2 * _MORE or lengths.max() > _MOST_DIGITS:
        raise ValueError(f"found the counts {_short(counts)}, expected COCO's compressed run-length code")
    starts = last - lengths + 1
    places = np.arange(digits.size) - np.repeat(starts, lengths)
    runs: NDArray[np.int64] = np.add.reduceat((digits & (_MORE - 1)) << (_BITS * places), starts)
    runs -= np.where(digits[last] & _SIGN, 1 << (_BITS * lengths), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _polygons(polygons: Sequence[Any], height: int, width: int) -> list[list[float]]:
    """The polygons, which lie in or near the image: pycocotools cuts them off there, but walks along all of them."""
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"found the polygon {_short(polygon)}, expected [x, y, x, y, x, y, ...] of 3 points or more"
            )
        if not _is_near(polygon[::2], width) or not _is_near(polygon[1::2], height):
            raise ValueError(
                f"found the polygon {_short(polygon)}, expected pixels inside {height} x {width} (height, width), or "
                "outside by no more than that"
            )
    outline = sum(map(_length_around, polygons))
    if outline > LONGEST_OUTLINE:
        raise ValueError(f"found polygons with {outline:.0f} pixels around them, expected at most {LONGEST_OUTLINE:,}")
    return [list(map(float, polygon)) for polygon in polygons]


def _is_near(coordinates: Sequence[Any], side: int) -> bool:
    """Whether these are numbers that lie inside the image, or outside by no more than its side."""
    return all(type(at) in (int, float) and -side <= at <= 2 * side for at in coordinates)


def _length_around(polygon: Sequence[float]) -> float:
    """The pixels along the sides of a polygon."""
    points = [*zip(polygon[::2], polygon[1::2], strict=True), (polygon[0], polygon[1])]
    return sum(max(abs(x - next_x), abs(y - next_y)) for (x, y), (next_x, next_y) in pairwise(points))


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
