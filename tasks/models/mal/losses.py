"""What Mask Auto-Labeler learns from: the box's projections, and masks refined by the colours of the picture.

Everything is computed in single precision on maps (B, 1, h, w); see arXiv 2301.03992, section 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_DICE_SMOOTHING = 0.001
_BATCH_SMOOTHING = 1e-4
_MEAN_FIELD_SMOOTHING = 1e-6
# Added to the picture before its border is filled with zeros: no pixel then resembles one outside.
_BORDER_CONTRAST = 10.0


@dataclass(frozen=True)
class MeanField:
    """The conditional random field that refines masks.

    Attributes:
        zeta: how different two neighbours may be, in standard deviations of ImageNet's colours.
        kernel_size: side of the neighbourhood in pixels, odd.
        iterations: updates of all pixels.
        low: the least probability that a pixel may have.
        high: the greatest.
    """

    zeta: float = 0.1
    kernel_size: int = 3
    iterations: int = 100
    low: float = 0.1
    high: float = 0.9

    @torch.no_grad()
    def refine(self, pictures: Tensor, probabilities: Tensor, box_masks: Tensor) -> Tensor:
        """The refined masks (B, 1, h, w), 0 or 1, inside the boxes.

        Args:
            pictures: (B, 3, h, w) normalised RGB.
            probabilities: (B, 1, h, w) to start from; inside the loop there is no unary term.
            box_masks: (B, 1, h, w) in [0, 1].
        """
        affinities = self._affinities(pictures.float())
        foreground = (probabilities * box_masks).clamp(self.low, self.high)
        for _ in range(self.iterations):
            updated = self._update(affinities, foreground, box_masks)
            if torch.equal(updated, foreground):
                break  # a fixed point: every further update gives the same
            foreground = updated
        return (foreground > 0.5).float()

    def _affinities(self, pictures: Tensor) -> Tensor:
        """How much each pixel resembles its neighbours and itself: (B, k * k, h, w) in [0, 1]."""
        raised = pictures + _BORDER_CONTRAST
        neighbours = torch.stack(list(_shifted(raised, self.kernel_size)), dim=1)  # (B, k * k, 3, h, w)
        distances = (neighbours - raised[:, None]).square().sum(dim=2)
        return torch.exp(-distances / (2 * self.zeta**2))

    def _update(self, affinities: Tensor, foreground: Tensor, box_masks: Tensor) -> Tensor:
        logs = torch.cat([1 - foreground, foreground], dim=1).log()  # (B, 2, h, w)
        messages = torch.zeros_like(logs)
        for affinity, neighbour in zip(affinities.unbind(1), _shifted(logs, self.kernel_size), strict=True):
            messages.addcmul_(affinity[:, None], neighbour)
        not_object, is_object = messages.exp().chunk(2, dim=1)
        is_object = is_object * box_masks
        total = not_object + is_object + _MEAN_FIELD_SMOOTHING
        return (is_object / total).clamp(self.low, self.high)


def _shifted(maps: Tensor, kernel_size: int) -> list[Tensor]:
    """For each place in a neighbourhood, row by row, the map's value there (B, C, h, w); outside it is 0."""
    radius = kernel_size // 2
    height, width = maps.shape[-2:]
    padded = functional.pad(maps, [radius] * 4)
    offsets = [(row, column) for row in range(kernel_size) for column in range(kernel_size)]
    return [padded[..., row : row + height, column : column + width] for row, column in offsets]


def dice_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 less the Dice coefficient of each sample (B, ...), with squares below the line (arXiv 1606.04797): (B,)."""
    predicted, target = predicted.flatten(1), target.flatten(1)
    overlap = (predicted * target).sum(dim=1)
    sizes = predicted.square().sum(dim=1) + target.square().sum(dim=1) + 2 * _DICE_SMOOTHING
    return 1 - 2 * overlap / sizes


def projection_loss(probabilities: Tensor, box_masks: Tensor) -> Tensor:
    """How far the extent of masks (B, 1, h, w), by rows and by columns, is from that of their boxes: a number.

    The multiple-instance part of the objective: every row and column of the box holds a pixel of the object, and no
    other does.
    """
    by_column = dice_loss(probabilities.amax(dim=2), box_masks.amax(dim=2))
    by_row = dice_loss(probabilities.amax(dim=3), box_masks.amax(dim=3))
    return (by_column + by_row).sum() / (len(probabilities) + _BATCH_SMOOTHING)


def refinement_loss(student: Tensor, teacher: Tensor, pictures: Tensor, box_masks: Tensor, field: MeanField) -> Tensor:
    """How far the student's masks are from what the field makes of its and the teacher's: a number.

    `student`, `teacher` and `box_masks` are probabilities (B, 1, h, w); `pictures` (B, 3, H, W) is the student's view.
    """
    size = (student.shape[-2], student.shape[-1])
    scaled = functional.interpolate(pictures.float(), size, mode="bilinear", align_corners=False)
    refined = field.refine(scaled, (student.detach() + teacher.detach()) / 2, box_masks)
    return dice_loss(student, refined).mean()
