"""Mask Auto-Labeler's network: the feature map of a crop, a query that stands for its object, and their product."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.domain.mask_quality import MEDIUM, SMALL
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.vit import VisionTransformer

SIZES = 3
_AREA_DECIMALS = 6  # finer than any box is drawn, coarser than what float64 loses on coordinates up to 1e5


def size_of_boxes(boxes: Tensor) -> Tensor:
    """0, 1 or 2 for boxes (B, 4) xyxy that are small, medium or large by their area: (B,) int64.

    The ranges are (0, 32^2], (32^2, 96^2] and above, so that every box is in one; a box without area is small.

    Areas are rounded to a millionth of a square pixel, since the far corner x + w less x is not always w: given in
    float64, a box of 32 x 32 is small at whatever fraction of a pixel it begins. Corners in float32 have lost more than
    that (up to 2e-4 pixels at 4096), and a box at a limit may fall to either side.
    """
    exact = boxes.double()
    areas = (exact[:, 2:] - exact[:, :2]).prod(dim=1).round(decimals=_AREA_DECIMALS)
    return (areas > SMALL).long() + (areas > MEDIUM).long()


class MalNetwork(nn.Module):
    """Student or teacher: crops around boxes to mask logits. It knows no classes."""

    def __init__(self, architecture: MalArchitecture, drop_path: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = VisionTransformer(architecture, drop_path)
        self.roi_head = RoiHead(architecture)
        self.mask_head = MaskHead(architecture)

    def forward(self, crops: Tensor, boxes: Tensor) -> Tensor:
        """Mask logits of crops.

        Args:
            crops: (B, 3, S, S) float, RGB less ImageNet's mean over its deviation.
            boxes: (B, 4) xyxy in pixels of the original image, of which only the areas matter: they decide at which
                resolution the mask head works.

        Returns:
            (B, 1, S/4, S/4); (B, 1, S/2, S/2) with the published factors where the network does not adjust the scale.
        """
        features: Tensor = self.backbone(crops)  # (B, D, h, w)
        queries = self.roi_head(features)  # (B, C)
        if not self.architecture.adjusts_scale:
            return self._at_one_scale(features, queries)
        sizes = size_of_boxes(boxes)
        if len(sizes) and bool((sizes == sizes[0]).all()):
            return self._at_scale(features, queries, int(sizes[0]))
        height, width = features.shape[-2:]
        logits = features.new_zeros(len(crops), 1, 4 * height, 4 * width)
        for size in range(SIZES):
            chosen = torch.nonzero(sizes == size).flatten()
            if len(chosen):
                answer = self._at_scale(features[chosen], queries[chosen], size)
                logits = logits.to(answer.dtype).index_copy(0, chosen, answer)
        return logits

    def _at_scale(self, features: Tensor, queries: Tensor, size: int) -> Tensor:
        """Small boxes on half of the map's resolution, medium ones as it is, large ones on twice of it."""
        height, width = features.shape[-2:]
        scaled = _resize(features, (height * 2**size // 2, width * 2**size // 2))
        return _resize(_product(queries, self.mask_head(scaled)), (4 * height, 4 * width))

    def _at_one_scale(self, features: Tensor, queries: Tensor) -> Tensor:
        factor = self.architecture.scale_before
        height, width = features.shape[-2:]
        logits = _product(queries, self.mask_head(_resize(features, (height * factor, width * factor))))
        return _resize(logits, (logits.shape[-2] * 4, logits.shape[-1] * 4))


class RoiHead(nn.Module):
    """One query for a crop, from the mean of its map."""

    def __init__(self, architecture: MalArchitecture) -> None:
        super().__init__()
        self.mlp1 = nn.Linear(architecture.dim, architecture.head_out)
        self.mlp2 = nn.Linear(architecture.head_out, architecture.head_out)

    def forward(self, features: Tensor) -> Tensor:
        """The queries (B, C) of maps (B, D, h, w)."""
        return cast("Tensor", self.mlp2(functional.relu(self.mlp1(features.mean(dim=(2, 3))))))


class MaskHead(nn.Module):
    """A value for every pixel of a map, at `scale` times its resolution."""

    def __init__(self, architecture: MalArchitecture) -> None:
        super().__init__()
        hidden = [architecture.head_hidden] * (architecture.head_convs - 1)
        channels = [architecture.dim, *hidden, architecture.head_out]
        self.convs = nn.ModuleList(HeadConvolution(*pair) for pair in pairwise(channels))
        self._scale = architecture.scale

    def forward(self, features: Tensor) -> Tensor:
        """The values (B, C, scale * h, scale * w), none negative, of a map (B, D, h, w)."""
        for index, convolution in enumerate(self.convs):
            if index == 3:
                height, width = features.shape[-2:]
                features = _resize(features, (int(height * self._scale), int(width * self._scale)))
            features = convolution(features)
        return features


class HeadConvolution(nn.Module):
    """A 3 x 3 convolution with bias, and a ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(cast("Tensor", self.conv.bias))

    def forward(self, features: Tensor) -> Tensor:
        """The map (B, C, h, w)."""
        return functional.relu(self.conv(features))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def _product(queries: Tensor, values: Tensor) -> Tensor:
    """The dot product of each query (B, C) with its map's pixels (B, C, h, w): (B, 1, h, w)."""
    return torch.einsum("bc,bchw->bhw", queries, values)[:, None]
