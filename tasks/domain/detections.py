"""Candidates of the detector, and the detections among them that pass an iteration's threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Box, Boxes


@dataclass(frozen=True, eq=False)
class Candidates:
    """Raw answers of the detector about one record, down to the keep floor; no iteration threshold yet.

    `boxes` (N, 4) float64 xyxy pixels of the upright image, clipped to it, none degenerate; `scores` (N,) float64 in
    [0, 1]; `phrases` (N,) int64, indices into `asked`. `asked` is the prompt: the phrases in their order. No
    candidate means: looked at, nothing found. `degenerate` counts the boxes dropped for a side under one pixel.
    """

    asked: tuple[str, ...]
    boxes: Boxes
    scores: NDArray[np.float64]
    phrases: NDArray[np.int64]
    degenerate: int = 0


@dataclass(frozen=True, order=True)
class Detection:
    """A candidate that passed the threshold of an iteration (counted from 0)."""

    phrase: str
    box: Box
    score: float
    iteration: int
    threshold: float


def pass_threshold(candidates: Candidates, threshold: float, iteration: int) -> tuple[Detection, ...]:
    """The candidates with a score strictly above `threshold` (TAO's rule), in the order of the candidates."""
    return tuple(
        Detection(
            candidates.asked[candidates.phrases[i]],
            _box(candidates.boxes[i]),
            float(candidates.scores[i]),
            iteration,
            threshold,
        )
        for i in np.flatnonzero(candidates.scores > threshold)
    )


def _box(row: NDArray[np.float64]) -> Box:
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom
