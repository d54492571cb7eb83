"""What a network is worth after an epoch: its masks against true ones, or its projections where no mask is known."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tasks.domain.images import Image
from tasks.domain.masks import Mask
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_boxes import LabelledBoxes
from tasks.domain.training_record import MaskScores
from tasks.formats.rle import mask_iou
from tasks.models import Precision, Segmenter, SegmenterConfig
from tasks.models.mal.crops import crop_box, crop_image, expand, normalise
from tasks.models.mal.distributed import Tell
from tasks.models.mal.losses import projection_loss
from tasks.models.mal.network import SIZES, MalNetwork, size_of_boxes
from tasks.models.mal.samples import DecodedImages
from tasks.models.mal.segmenter import MalSegmenter


def segmenter_of(spec: TrainMalSpec, network: MalNetwork) -> MalSegmenter:
    """The segmenter that labelling would make of a network, with the thresholds and the margin of the spec."""
    thresholds = spec.train.mask_thres if len(spec.train.mask_thres) == SIZES else spec.train.mask_thres * SIZES
    small, medium, large = thresholds
    config = SegmenterConfig(
        segmenter="mal",
        checkpoint="in training",
        precision=_precision(spec, network),
        thresholds=(small, medium, large),
        crop_size=spec.dataset.crop_size,
        margin=spec.train.test_margin_rate[0] / 2,
    )
    return MalSegmenter([network], config, crop_size=spec.dataset.crop_size, digest="")


def _precision(spec: TrainMalSpec, network: MalNetwork) -> Precision:
    on_gpu = next(network.parameters()).is_cuda
    return spec.train.amp_precision if spec.train.use_amp and on_gpu else "fp32"


def mask_scores(
    segmenter: Segmenter, truth: LabelledBoxes, pictures: DecodedImages, batch_size: int, tell: Tell
) -> MaskScores:
    """The mean IoU of the segmenter's masks with those of `truth`; a box without a mask counts with 0.

    `tell` is told of every box that is done.
    """
    ious = np.zeros(len(truth), dtype=np.float64)
    for image, rows in _by_image(truth):
        (masks,) = segmenter.segment([pictures.get(image)], [truth.boxes[rows]], batch_size=batch_size)
        for row, mask in zip(rows.tolist(), masks, strict=True):
            ious[row] = _iou(mask, (truth.masks or ())[row], image)
        tell(len(rows))
    sizes = size_of_boxes(torch.from_numpy(truth.boxes)).numpy()
    small, medium, large = (_mean(ious[sizes == size]) for size in range(SIZES))
    return MaskScores(len(truth), _mean(ious), small, medium, large)


def _by_image(truth: LabelledBoxes) -> Iterator[tuple[Image, NDArray[np.int64]]]:
    """Every image with the rows of its boxes."""
    order = np.argsort(truth.image_of, kind="stable")
    starts = np.flatnonzero(np.diff(truth.image_of[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        yield truth.images[truth.image_of[rows[0]]], rows


def _iou(mask: Mask | None, counts: str, image: Image) -> float:
    if mask is None:
        return 0.0
    size = [image.height, image.width]
    return mask_iou({"size": size, "counts": mask.counts}, {"size": size, "counts": counts})


def _mean(values: NDArray[np.float64]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def mean_projection_loss(
    spec: TrainMalSpec, network: MalNetwork, truth: LabelledBoxes, pictures: DecodedImages, tell: Tell
) -> float:
    """The mean projection loss over all boxes, cropped as for labelling: what can be measured without masks."""
    losses = []
    margin = spec.train.test_margin_rate[0] / 2
    device = next(network.parameters()).device
    for image, rows in _by_image(truth):
        pixels, size = pictures.get(image), spec.dataset.crop_size
        for left, top, right, bottom in truth.boxes[rows].tolist():
            box = (left, top, right, bottom)
            window = expand(box, (margin,) * 4)
            mask = crop_box(box, window, image.height, image.width, size, wrap=False)
            with torch.inference_mode():
                crops = normalise([crop_image(pixels, window, size)]).to(device)
                logits = network(crops, torch.tensor([box], dtype=torch.float64, device=device))
                masks = torch.from_numpy(mask.copy())[None, None].float().to(device)
                scaled = functional.interpolate(masks, logits.shape[-2:], mode="bilinear", align_corners=False)
                losses.append(float(projection_loss(logits.float().sigmoid(), scaled)))
        tell(len(rows))
    return float(np.mean(losses))
