"""How well masks overlap their objects: mean intersection over union (mIoU), over objects and by size."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from tasks.domain.artifacts import Json

Size: TypeAlias = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")

# Square pixels: the largest box that counts as small, and as medium. COCO's limits, but of the area of the box and not
# of the mask, as Mask Auto-Labeler and TAO take them for their mIoU.
SMALL, MEDIUM = 32**2, 96**2


def size_of(box_area: float) -> Size:
    """The size of an object by the area of its box in square pixels: (0, 32^2], (32^2, 96^2] or above."""
    if box_area <= SMALL:
        return "small"
    return "medium" if box_area <= MEDIUM else "large"


@dataclass(frozen=True)
class Overlap:
    """How the mask of one object of the truth overlaps that of the label it is matched with, in [0, 1].

    `iou_of_box` is what the label's box would have got, filled, and `iou_of_ellipse` the ellipse inscribed in it. All
    three are 0 where no label was `found`.
    """

    category: str
    size: Size
    found: bool
    iou: float = 0.0
    iou_of_box: float = 0.0
    iou_of_ellipse: float = 0.0


@dataclass(frozen=True)
class MaskQuality:
    """Means over objects of the truth, None where there are none.

    An object without a label counts as 0 in all of them but `miou_found`, which is the mean over those `found`.
    """

    truths: int
    found: int
    miou: float | None
    miou_found: float | None
    miou_of_box: float | None
    miou_of_ellipse: float | None

    def to_json(self) -> dict[str, Json]:
        """The means as a JSON object."""
        return asdict(self)


def mask_quality(objects: Sequence[Overlap]) -> MaskQuality:
    """The means over these objects, whose order does not matter, not even to the last bit."""
    found = [overlap.iou for overlap in objects if overlap.found]
    return MaskQuality(
        truths=len(objects),
        found=len(found),
        miou=mean(overlap.iou for overlap in objects),
        miou_found=mean(found),
        miou_of_box=mean(overlap.iou_of_box for overlap in objects),
        miou_of_ellipse=mean(overlap.iou_of_ellipse for overlap in objects),
    )


def mean(values: Iterable[float]) -> float | None:
    """The mean, rounded once, whatever the order; None of nothing."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None
