"""The vision transformer (arXiv 2010.11929) as Mask Auto-Labeler uses it; parameters go by the checkpoints' names."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.models.mal.architecture import MalArchitecture, Stem

NORM_EPS = 1e-6  # of every norm in the published networks


class VisionTransformer(nn.Module):
    """Crops to a map of features, one for every patch."""

    def __init__(self, architecture: MalArchitecture, drop_path: float = 0.0) -> None:
        """`drop_path` is the share of samples that skip the last block while training; it grows linearly up to it."""
        super().__init__()
        dim, depth = architecture.dim, architecture.depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + architecture.grid**2, dim))
        self.patch_embed = PatchEmbedding(architecture)
        shares = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, architecture.heads, share) for share in shares)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self._stem: Stem = architecture.stem
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)  # as in DeiT

    def forward(self, crops: Tensor) -> Tensor:
        """The map (B, D, h, w) of crops (B, 3, S, S), where h = w = S / patch."""
        patches = self.patch_embed(crops)  # (B, D, h, w)
        height, width = patches.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(len(crops), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + resize_positions(self.pos_embed, height, self._stem)  # (B, 1 + h * w, D)
        for block in self.blocks:
            tokens = block(tokens)
        features = cast("Tensor", self.norm(tokens))[:, 1:]
        return features.transpose(1, 2).reshape(len(crops), features.shape[2], height, width)


def resize_positions(positions: Tensor, side: int, stem: Stem) -> Tensor:
    """The position embedding (1, 1 + n * n, D) for a grid of `side` x `side` tokens: (1, 1 + side * side, D).

    Checkpoints with the "conv" stem were trained with a bicubic resize by a factor slightly too large, which moves the
    sampling points; those with a "patch" stem with an antialiased one. The two differ visibly in the masks.
    """
    grid = int((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    plane = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    if stem == "conv":
        plane = functional.interpolate(plane, scale_factor=(side + 0.1) / grid, mode="bicubic", align_corners=False)
    else:
        plane = functional.interpolate(plane.float(), (side, side), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:, :1], plane.to(positions.dtype).flatten(2).transpose(1, 2)], dim=1)


class PatchEmbedding(nn.Module):
    """Pixels to tokens: (B, 3, S, S) to (B, D, S / patch, S / patch)."""

    def __init__(self, architecture: MalArchitecture) -> None:
        super().__init__()
        dim, patch = architecture.dim, architecture.patch
        self.proj: nn.Module = (
            _conv_stem(dim) if architecture.stem == "conv" else nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        )

    def forward(self, crops: Tensor) -> Tensor:
        """The tokens as a map."""
        return cast("Tensor", self.proj(crops))


def _conv_stem(dim: int) -> nn.Sequential:
    channels = [3, dim // 8, dim // 4, dim // 2, dim]
    stages = [_stem_stage(*pair) for pair in pairwise(channels)]
    stages[-1].append(nn.Conv2d(dim, dim, kernel_size=1))
    return nn.Sequential(*stages)


def _stem_stage(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(1, channels_out, eps=NORM_EPS), nn.GELU())


class Block(nn.Module):
    """Attention and a perceptron, each with a norm before it and a shortcut around it."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Perceptron(dim)
        self._drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens (B, N, D) after the block."""
        tokens = tokens + self._dropped(self.attn(self.norm1(tokens)))
        return tokens + self._dropped(self.mlp(self.norm2(tokens)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): while training, some samples go without the branch."""
        if not self.training or self._drop_path == 0:
            return branch
        kept = 1 - self._drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(kept) / kept


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self._heads = heads
        _initialise(self.qkv, self.proj)

    def forward(self, tokens: Tensor) -> Tensor:
        """What each token (B, N, D) gathers from all of them."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self._heads, dim // self._heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads) each
        gathered = functional.scaled_dot_product_attention(query, key, value)
        return cast("Tensor", self.proj(gathered.transpose(1, 2).reshape(batch, count, dim)))


class Perceptron(nn.Module):
    """Two linear layers with four times the channels between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        _initialise(self.fc1, self.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Each token (B, N, D) on its own."""
        return cast("Tensor", self.fc2(functional.gelu(self.fc1(tokens))))


def _initialise(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)  # as in DeiT
        nn.init.zeros_(layer.bias)
