"""From Segment Anything's logits to masks of the image: interpolated, thresholded, encoded."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasks.domain.masks import Mask
from tasks.formats.rle import encode_patch
from tasks.models.regions import Region, interpolate
from tasks.models.sam_inputs import SamInputs

Logits: TypeAlias = NDArray[np.float32]

# `mask_threshold` of Meta's `Sam` and `SAM2ImagePredictor`, and of transformers' `post_process_masks`: a probability of
# one half. MAL's lower thresholds belong to a network that was trained with boxes alone.
THRESHOLD = 0.0
STABILITY_OFFSET = 1.0  # logits; `stability_score_offset` of Meta's `SamAutomaticMaskGenerator`


def logits_in(region: Region, answer: Logits, inputs: SamInputs, height: int, width: int) -> Logits:
    """The logits of a region's pixels (bottom - top, right - left) in an image of `height` x `width`.

    The answer (h, w) is about the square that the network saw. As published, SAM 1's is interpolated to that square,
    cut to the image in it, and interpolated again; SAM 2's is interpolated once.
    """
    if inputs.pads:
        resized_height, resized_width = inputs.resized(height, width)
        answer = interpolate(answer, inputs.side, inputs.side, Region(0, 0, resized_width, resized_height))
    return interpolate(answer, height, width, region)


def mask_of(logits: Logits, region: Region, height: int, width: int) -> Mask | None:
    """The pixels of the region whose logits are above the threshold, in an image of `height` x `width`; None for none.

    `quality` is the share of the pixels above a threshold that is lower by `STABILITY_OFFSET` that are also above one
    that is higher by as much.
    """
    patch = logits > THRESHOLD
    area = int(np.count_nonzero(patch))
    if not area:
        return None
    strict = int(np.count_nonzero(logits > THRESHOLD + STABILITY_OFFSET))
    lax = int(np.count_nonzero(logits > THRESHOLD - STABILITY_OFFSET))
    counts = encode_patch(patch, region.left, region.top, height, width)
    return Mask(height, width, counts, area, quality=strict / lax)
