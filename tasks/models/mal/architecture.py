"""What a Mask Auto-Labeler is made of: the numbers that its tensors follow from."""

from dataclasses import dataclass
from typing import Literal

from tasks.domain.errors import SpecError

Stem = Literal["conv", "patch"]


@dataclass(frozen=True)
class MalArchitecture:
    """The sizes of a network; a student and its teacher share them.

    Attributes:
        dim: channels of a token.
        depth: transformer blocks.
        heads: attention heads of a block.
        stem: how pixels become tokens. "conv" is four 3 x 3 convolutions of stride 2 (NVlabs, and TAO up to 5.5),
            "patch" one convolution of `patch` x `patch` (TAO since 6). They resize the position embedding differently.
        patch: pixels that a token stands for, per side; 16 with the "conv" stem.
        grid: side of the grid of tokens that the position embedding was made for.
        head_convs: convolutions of the mask head; the map is enlarged before the fourth.
        head_hidden: channels between them.
        head_out: channels of the mask head's result, and of the query that it is compared with.
        adjusts_scale: whether the map is resized by the area of the box; else by `scale_before` for every box.
        scale_before: factor before the mask head where `adjusts_scale` is off.
        scale: factor before the mask head's fourth convolution.
    """

    dim: int
    depth: int
    heads: int
    stem: Stem = "conv"
    patch: int = 16
    grid: int = 14
    head_convs: int = 4
    head_hidden: int = 256
    head_out: int = 256
    adjusts_scale: bool = True
    scale_before: int = 1
    scale: float = 2.0

    def __post_init__(self) -> None:
        """Refuse sizes that make no network. Raises SpecError."""
        counts = (self.depth, self.heads, self.patch, self.grid, self.head_convs, self.head_hidden, self.head_out)
        if min(*counts, self.scale_before) < 1 or self.dim < 8 or self.dim % 8 or self.dim % self.heads:
            raise SpecError(
                f"found {self}; expected positive numbers, and a dim that heads and 8 (for the stem) divide"
            )
        if self.adjusts_scale and (self.head_convs < 4 or self.scale_before != 1 or self.scale != 2):
            raise SpecError(
                f"found mask_head_num_convs {self.head_convs}, mask_scale_ratio_pre {self.scale_before} and "
                f"mask_scale_ratio {self.scale:g}; expected at least 4, 1 and 2 where the map follows the box's area, "
                "or not_adjust_scale: true"
            )

    def refuse_crop(self, crop_size: int) -> None:
        """Raise SpecError for a crop that tokens do not fill, or whose map cannot be resized as the network does."""
        step = self.patch * (2 if self.adjusts_scale else 1)
        if crop_size % step or crop_size < step:
            raise SpecError(f"crop_size: found {crop_size}, expected a multiple of {step} pixels for this network")
        side = crop_size // self.patch * self.scale_before
        if self.head_convs >= 4 and side * self.scale < 1:
            raise SpecError(
                f"mask_scale_ratio: found {self.scale:g}, expected at least {1 / side:g}: a crop of {crop_size} "
                f"pixels has a map of {side} x {side} before it"
            )


# The sizes are those of the papers: DeiT (arXiv 2012.12877, table 1), MAE (arXiv 2111.06377, section 4.1). Grids are
# those of their pretraining on 224 pixels. The tokens of huge/14 stand for 16 pixels all the same: it has the stem.
ARCHITECTURES: dict[str, MalArchitecture] = {
    "vit-deit-tiny/16": MalArchitecture(192, 12, 3),
    "vit-deit-small/16": MalArchitecture(384, 12, 6),
    "vit-deit-base/16": MalArchitecture(768, 12, 12),
    "vit-mae-base/16": MalArchitecture(768, 12, 12),
    "vit-mae-large/16": MalArchitecture(1024, 24, 16),
    "vit-mae-huge/14": MalArchitecture(1280, 32, 16, grid=16),
}
