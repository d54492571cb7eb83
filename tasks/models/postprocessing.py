"""From a score per token to candidates: every (box, phrase) above the floor, in an order that nothing else decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes, clip_boxes, is_degenerate
from tasks.domain.detections import Candidates
from tasks.domain.prompts import Caption


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says about one image and caption, query by query.

    `token_scores` (Q, T) are sigmoids of the logits of the caption's T tokens; `boxes` (Q, 4) are cxcywh in shares
    of the image.
    """

    caption: Caption
    token_scores: NDArray[np.float64]
    boxes: NDArray[np.float64]


def phrase_scores(
    token_scores: NDArray[np.float64], spans: Sequence[tuple[int, int]], rule: Literal["mean", "max"]
) -> NDArray[np.float64]:
    """The score of every phrase (Q, P): mean or max over the tokens in its half-open span; no other token counts.

    The mean is the rule behind the published COCO numbers (`PostProcessCocoGrounding` of the original).
    """
    borders = np.array(spans, dtype=np.intp)  # (P, 2)
    # reduceat also reduces from each span's end to the next span's start: every second column is what was not asked.
    if rule == "max":
        return np.maximum.reduceat(token_scores, borders.ravel(), axis=1)[:, ::2]
    totals = np.add.reduceat(token_scores, borders.ravel(), axis=1)[:, ::2]
    return np.asarray(totals / (borders[:, 1] - borders[:, 0]))


def candidates_of(
    asked: Sequence[str],
    answers: Sequence[Answer],
    *,
    height: int,
    width: int,
    keep_floor: float,
    rule: Literal["mean", "max"],
) -> Candidates:
    """All (box, phrase) pairs of the answers about one image that score at least `keep_floor`, clipped to the image.

    A query may answer to several phrases; nothing is suppressed and nothing is cut to a number.
    """
    kept = [_above(answer, keep_floor, rule) for answer in answers]
    scores = np.concatenate([scores for scores, _, _ in kept] or [np.zeros(0)])
    phrases = np.concatenate([phrases for _, phrases, _ in kept] or [np.zeros(0, np.int64)])
    centred = np.concatenate([boxes for _, _, boxes in kept] or [np.zeros((0, 4))])
    boxes = clip_boxes(_corners(centred) * (width, height, width, height), width, height)
    whole = ~is_degenerate(boxes)
    return in_order(asked, boxes[whole], scores[whole], phrases[whole], degenerate=int((~whole).sum()))


def in_order(
    asked: Sequence[str], boxes: Boxes, scores: NDArray[np.float64], phrases: NDArray[np.int64], *, degenerate: int
) -> Candidates:
    """The candidates by score, best first, then by phrase, then by box."""
    order = np.lexsort((*boxes.T[::-1], phrases, -scores))
    return Candidates(tuple(asked), boxes[order], scores[order], phrases[order], degenerate)


def _above(
    answer: Answer, keep_floor: float, rule: Literal["mean", "max"]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Scores (N,), phrases (N,) and boxes (N, 4), still cxcywh, of the pairs that score at least `keep_floor`."""
    scores = phrase_scores(answer.token_scores, answer.caption.spans, rule)  # (Q, P)
    queries, columns = np.nonzero(scores >= keep_floor)
    return scores[queries, columns], np.array(answer.caption.phrases, dtype=np.int64)[columns], answer.boxes[queries]


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (N, 4) from cxcywh to xyxy."""
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)
