"""COCO's twelve numbers, by pycocotools: the average precision and recall of boxes or masks, ranked by score."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.formats.foreign_coco import Row

# The order of pycocotools' `COCOeval.stats`, under the names of https://cocodataset.org/#detection-eval.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

RANKED = 100  # the labels of an image and class that COCO's numbers look at, best score first: the last of its maxDets


@dataclass(frozen=True)
class AveragePrecision:
    """What pycocotools says of labels: `coco` under the names of `STATS`, `classes` by category id as (AP, AP50).

    None stands where there is no truth: of that size, or of that class.
    """

    coco: dict[str, float | None]
    classes: dict[int | str, tuple[float | None, float | None]]


def average_precision(labels: Sequence[Row], truth: Row, compare: Literal["bbox", "segm"]) -> AveragePrecision:
    """Compare the boxes or the masks of labels with the truth.

    Args:
        labels: COCO annotations under the truth's ids, with `id`, `score`, `area`, `iscrowd` 0, and `bbox` or
            `segmentation`.
        truth: The COCO file; its annotations have `id` (not 0, which stands for no match), `area`, `iscrowd`, and the
            same.
        compare: Boxes or masks. Masks are compressed run-length code.
    """
    evaluation = _run_cocoeval(labels, truth, compare)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, classes), of all areas, `RANKED` labels
    of_class = enumerate(sorted(row["id"] for row in truth["categories"]))
    return AveragePrecision(
        dict(zip(STATS, map(_present, evaluation.stats.tolist()), strict=True)),
        {category: (_mean(precision[:, :, k]), _mean(precision[0, :, k])) for k, category in of_class},
    )


def _run_cocoeval(labels: Sequence[Row], truth: Row, compare: str) -> COCOeval:
    """The evaluation by pycocotools, which prints, and writes into the rows: it gets its own copies."""
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth), _index({**truth, "annotations": labels}), compare)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _index(document: Row) -> COCO:
    coco = COCO()
    coco.dataset = {**document, "annotations": [dict(row) for row in document["annotations"]]}
    coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    return float(precision.mean()) if (precision > -1).all() else None


def _present(stat: float) -> float | None:
    """None for -1, pycocotools' word for "no truth"."""
    return None if stat == -1 else stat
