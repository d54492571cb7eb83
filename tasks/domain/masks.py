"""Instance masks: which pixels of a box belong to its object, and how sure the segmenter is of their outline."""

from dataclasses import dataclass

from tasks.domain.boxes import Box
from tasks.domain.images import Image


@dataclass(frozen=True)
class Mask:
    """The pixels of one object in an image of `height` x `width`, of which there is at least one.

    `counts` is COCO's compressed run-length code in ASCII, column by column from the upper left. `area` counts the
    pixels. `quality` in [0, 1] is the stability of the outline: the intersection over union of the masks that a
    stricter and a laxer threshold give (one logit above and one below). 1 is a crisp edge, 0 a guess; it tells which
    masks to look at first, and is no probability.
    """

    height: int
    width: int
    counts: str
    area: int
    quality: float


@dataclass(frozen=True)
class DrawnLabel:
    """What a picture shows of a label: its phrase, its box, and what is known of its score and its mask."""

    phrase: str
    box: Box
    score: float | None = None
    mask: Mask | None = None


@dataclass(frozen=True)
class DrawnImage:
    """An image, and the labels that its picture shows."""

    image: Image
    annotations: tuple[DrawnLabel, ...]
