"""The training objective.

transformers' own loss is not used: in 5.23 its encoder term carries no gradient to the proposal heads, and it mixes up
the tokens of images that were asked different prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from network import D_MODEL, STRIDES
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from tasks.domain.scenes import COLOURS, SHAPES, SIZES

# Weights of classification, L1 and GIoU: Grounding DINO, table of hyper-parameters (arXiv 2303.05499, appendix).
_CLASS, _L1, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0  # focal loss (arXiv 1708.02002)
_CENTRE_RADIUS = 1.0  # in strides: up to four positions stand for an object
_BOX_RADIUS = 1.5  # in strides: these regress its box


@dataclass(frozen=True)
class Targets:
    """What is true of one image with n objects.

    `boxes` is (n, 4) cxcywh in [0, 1], `attributes` (n, 3) indices of shape, colour and size, `tokens` (n, T) bool: the
    tokens of every phrase that describes the object.
    """

    boxes: Tensor
    attributes: Tensor
    tokens: Tensor

    @property
    def levels(self) -> Tensor:
        """The feature level that finds each object, (n,): stride 8 for the small ones, 16 for the large ones."""
        return self.attributes[:, 2]


class AttributeHeads(nn.Module):
    """Reads shape, colour and size off a feature; guides the training and is thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D_MODEL, len(words)) for words in (SHAPES, COLOURS, SIZES))

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Cross-entropy of features (n, D) against attributes (n, 3), summed over the three and averaged over n."""
        if not len(features):
            return features.sum()
        losses = [nn.functional.cross_entropy(head(features), attributes[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(losses).sum()


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Elementwise focal loss; `truth` is 0 or 1."""
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + truth - 2 * probability * truth
    return (_ALPHA * truth + (1 - _ALPHA) * (1 - truth)) * wrong**_GAMMA * cross_entropy


def readable(logits: Tensor, text_mask: Tensor) -> Tensor:
    """Logits (B, N, T) with a large negative number instead of minus infinity where there is only padding."""
    return logits.masked_fill(~text_mask[:, None], -30.0)


def corners(boxes: Tensor) -> Tensor:
    """Boxes in cxcywh form as xyxy."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of xyxy boxes that broadcast against each other: (..., 4) and (..., 4) to (...)."""
    area_a, area_b = (box[..., 2:] - box[..., :2] for box in (a, b))
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area_a.prod(-1) + area_b.prod(-1) - inner
    return inner / union.clamp(min=1e-9) - (outer - union) / outer.clamp(min=1e-9)


def box_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Weighted L1 and GIoU loss per pair of cxcywh boxes: (n, 4), (n, 4) to (n,)."""
    l1 = (predicted - truth).abs().sum(-1)
    return _L1 * l1 + _GIOU * (1 - generalised_iou(corners(predicted), corners(truth)))


def dense_loss(
    outputs: GroundingDinoObjectDetectionOutput,
    targets: Sequence[Targets],
    text_mask: Tensor,
    size: tuple[int, int],
    heads: AttributeHeads,
) -> dict[str, Tensor]:
    """Losses on every encoder position, several of which stand for an object (FCOS, arXiv 1904.01355).

    `text_mask` is (B, T), true for tokens that are not padding; `size` is the (height, width) of the batch in pixels.
    """
    tokens = text_mask.shape[1]
    logits = readable(outputs.enc_outputs_class[..., :tokens], text_mask)
    boxes = outputs.enc_outputs_coord_logits.sigmoid()
    grid, level_of = _grid(size)
    truth = torch.zeros_like(logits)
    picked: list[tuple[Tensor, ...]] = []
    for image, target in enumerate(targets):
        near, regressed, owner = _assign(grid, level_of, target, size)
        truth[image, near] = target.tokens[owner[near]].float()
        features = outputs.encoder_last_hidden_state_vision[image, near]
        regression = boxes[image, regressed], target.boxes[owner[regressed]]
        picked.append((*regression, features, target.attributes[owner[near]]))
    predicted, true_boxes, features, attributes = (torch.cat(parts) for parts in zip(*picked, strict=True))
    classes = focal(logits, truth).masked_fill(~text_mask[:, None], 0).sum() / truth.sum().clamp(min=1)
    return {
        "dense_class": _CLASS * classes,
        "dense_box": box_loss(predicted, true_boxes).sum() / max(1, len(predicted)),
        "attributes": heads(features, attributes),
    }


def _grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres (P, 2) in pixels of all encoder positions, and their level (P,)."""
    centres, levels = [], []
    for level, stride in enumerate(STRIDES):
        rows, columns = size[0] // stride, size[1] // stride
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
        levels.append(torch.full((rows * columns,), level))
    return torch.cat(centres), torch.cat(levels)


def _assign(grid: Tensor, level_of: Tensor, target: Targets, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that stand for an object, positions that regress one, (P,) bool each, and which object, (P,)."""
    if not len(target.boxes):
        none = torch.zeros(len(grid), dtype=torch.bool)
        return none, none, torch.zeros(len(grid), dtype=torch.long)
    scale = torch.tensor([size[1], size[0]])
    centre, half = target.boxes[:, :2] * scale, target.boxes[:, 2:] * scale / 2
    offset = (grid[:, None] - centre[None]).abs()  # (P, n, 2)
    in_strides = offset.amax(-1) / torch.tensor(STRIDES)[level_of][:, None]
    eligible = (level_of[:, None] == target.levels[None]) & (offset <= half).all(-1)
    distance = torch.where(eligible, in_strides, torch.inf)  # (P, n)
    nearest, owner = distance.min(1)
    return nearest <= _CENTRE_RADIUS, nearest <= _BOX_RADIUS, owner


def matched_loss(logits: Tensor, boxes: Tensor, targets: Sequence[Targets], text_mask: Tensor) -> dict[str, Tensor]:
    """One decoder layer: logits (B, Q, T) and boxes (B, Q, 4), every object matched to exactly one query."""
    truth = torch.zeros_like(logits)
    predicted, true_boxes = [], []
    for image, target in enumerate(targets):
        asked = target.tokens.any(1)
        queries, objects = _match(logits[image], boxes[image], target.boxes[asked], target.tokens[asked])
        truth[image, queries] = target.tokens[asked][objects].float()
        predicted.append(boxes[image, queries])
        true_boxes.append(target.boxes[asked][objects])
    classes = focal(logits, truth).masked_fill(~text_mask[:, None], 0).sum() / truth.sum().clamp(min=1)
    pairs = torch.cat(predicted), torch.cat(true_boxes)
    return {"class": _CLASS * classes, "box": box_loss(*pairs).sum() / max(1, len(pairs[0]))}


@torch.no_grad()
def _match(logits: Tensor, boxes: Tensor, true_boxes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest assignment of objects (n) to queries (Q): two (n,) index tensors."""
    if not len(true_boxes):
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty
    share = tokens.float() / tokens.sum(1, keepdim=True)  # (n, T)
    gain = focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))
    cost = _CLASS * gain @ share.T + box_loss(boxes[:, None], true_boxes[None])  # (Q, n)
    queries, objects = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(queries), torch.as_tensor(objects)
