"""Mask Auto-Labeler behind the port: boxes in, masks out, the same bytes whatever the batch was.

Each box costs a pass of the whole network, on the square crop around it.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tasks.domain.artifacts import canonical_json
from tasks.domain.boxes import Box, Boxes
from tasks.domain.errors import CheckpointError
from tasks.domain.masks import Mask
from tasks.formats.rle import encode_patch
from tasks.models import SegmenterConfig
from tasks.models.checkpoint_files import file_sha256
from tasks.models.devices import autocast, refuse_device
from tasks.models.mal.checkpoints import MalDescription, Overrides, describe_mal, load_mal
from tasks.models.mal.crops import Window, crop_box, crop_image, expand, normalise
from tasks.models.mal.layouts import Role
from tasks.models.mal.network import MalNetwork, size_of_boxes
from tasks.models.regions import Region, interpolate, region_of

VERSION = 1  # of the rules in this file and in crops.py that change masks; part of the digest

# Tokens of a pass on a CPU. Sharing one gains nothing for crops of 512 pixels, 1024 tokens (1.83 s for a box alone,
# 1.97 s in fours), a sixth for 256 (0.055 s, 0.046 s), and half for 128 (4.3 ms, 2.1 ms in eights), less what the
# filling of the last pass costs; torch 2.13, one core, 2026-11-22.
CPU_TOKENS = 512
TOKEN_SIDE = 16  # pixels of the crop, about, in every published network

Image: TypeAlias = NDArray[np.uint8]
Probabilities: TypeAlias = NDArray[np.float32]

_ROLES: dict[str, tuple[Role, ...]] = {
    "student": ("student",),
    "teacher": ("teacher",),
    "mixed": ("student", "teacher"),
}


@dataclass(frozen=True)
class _Object:
    """A box of one of the images: `image` and `row` say where its mask goes, `size` is that of `size_of_boxes`."""

    image: int
    row: int
    box: Box
    size: int
    window: Window


class MalSegmenter:
    """A `Segmenter`: see the port for the contract.

    `networks` are in evaluation mode on their device, and their logits are averaged. `config.crop_size` is given.
    """

    def __init__(self, networks: Sequence[MalNetwork], config: SegmenterConfig, *, crop_size: int, digest: str) -> None:
        self.networks = tuple(networks)
        self.digest = digest
        self._config = config
        self._crop_size = crop_size
        self._device = next(self.networks[0].parameters()).device

    def segment(
        self, images: Sequence[Image], boxes: Sequence[Boxes], *, batch_size: int = 1
    ) -> list[list[Mask | None]]:
        """For every image (H, W, 3), uint8 RGB, the masks of its boxes (N, 4); None where no pixel is above.

        Boxes of one size share a pass: on a CUDA device `batch_size` of them, elsewhere as many as `CPU_TOKENS` allows.
        Passes that are not full are filled up, so that neither the company of a box nor, on a CPU, the batch size can
        change a bit of its mask.
        """
        masks: list[list[Mask | None]] = [[None] * len(own) for own in boxes]
        size = batch_size if self._device.type == "cuda" else self._boxes_per_cpu_pass()
        for batch in _batches(_objects(boxes, self._config.margin), size):
            answers = self._probabilities(images, batch, size)
            for item, answer in zip(batch, answers, strict=True):
                masks[item.image][item.row] = self._mask(images[item.image], item, answer)
        return masks

    def _boxes_per_cpu_pass(self) -> int:
        return max(1, CPU_TOKENS // (self._crop_size // TOKEN_SIDE) ** 2)

    def _mask(self, image: Image, item: _Object, answer: Probabilities) -> Mask | None:
        """The mask of one object, whose crop's pixels have the probabilities `answer` (S, S)."""
        height, width = image.shape[:2]
        if self._config.clip_to_box:
            answer = answer * crop_box(item.box, item.window, height, width, self._crop_size, wrap=False)
        region = _region(item, height, width, clip=self._config.clip_to_box)
        threshold = self._config.thresholds[item.size]
        return _mask_of(_in_region(answer, item.window, region), threshold, region, height, width)

    def _probabilities(self, images: Sequence[Image], batch: Sequence[_Object], size: int) -> Probabilities:
        """Of the pixels of the objects' crops: (B, S, S)."""
        side = self._crop_size
        filled = [*batch, *[batch[-1]] * (size - len(batch))]  # kernels differ by the shape of the batch
        crops = [crop_image(images[item.image], item.window, side) for item in filled]
        boxes = torch.tensor([item.box for item in filled], dtype=torch.float64)
        logits = self._logits(normalise(crops).to(self._device), boxes.to(self._device))[: len(batch)]
        scaled = functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        probabilities: Probabilities = scaled.sigmoid()[:, 0].cpu().numpy()
        if np.isnan(probabilities).any():
            raise CheckpointError(f"the model gives logits that are no numbers; {self._way_out()}")
        return probabilities

    def _way_out(self) -> str:
        if self._config.precision == "fp32":
            return "its weights are damaged, or its training diverged: use another checkpoint"
        return f"use precision fp32 (it is {self._config.precision})"

    def _logits(self, crops: Tensor, boxes: Tensor) -> Tensor:
        """The networks' mean (B, 1, h, w) in fp32."""
        with torch.inference_mode(), autocast(self._config.precision):
            answers = [self._ask(network, crops, boxes).float() for network in self.networks]
        return torch.stack(answers).mean(dim=0)

    def _ask(self, network: MalNetwork, crops: Tensor, boxes: Tensor) -> Tensor:
        logits: Tensor = network(crops, boxes)
        if not self._config.flip:
            return logits
        mirrored: Tensor = network(crops.flip(-1), boxes)
        return (logits + mirrored.flip(-1)) / 2


def load_mal_segmenter(config: SegmenterConfig, *, device: str) -> MalSegmenter:
    """The segmenter of a checkpoint of NVlabs or TAO, or of a folder of `save_checkpoint`.

    Args:
        config: `segmenter` is "mal", and `checkpoint` a path.
        device: as torch names it.

    Raises:
        CheckpointError: it is missing, encrypted, damaged, or not the network that the config says.
        SpecError: the device cannot be used, or not with this precision; or the config makes no network.
    """
    refuse_device(device, config.precision)
    description, networks = load_mal(config.checkpoint, _ROLES[config.weights], _overrides(config))
    return MalSegmenter(
        [network.to(device) for network in networks],
        config,
        crop_size=_crop_size(config, description),
        digest=_digest(config, description),
    )


def mal_segmenter_digest(config: SegmenterConfig) -> str:
    """The digest of the segmenter that `load_mal_segmenter` gives, without its weights in memory.

    Raises:
        CheckpointError: as `load_mal_segmenter`.
        SpecError: the config makes no network.
    """
    return _digest(config, describe_mal(config.checkpoint, _ROLES[config.weights], _overrides(config)))


def _overrides(config: SegmenterConfig) -> Overrides:
    return Overrides(config.arch, config.adjusts_scale, config.scale_before, config.scale)


def _crop_size(config: SegmenterConfig, description: MalDescription) -> int:
    """What the config says, or else the checkpoint. Raises SpecError where it does not fit the network."""
    crop_size = config.crop_size or description.crop_size
    description.architecture.refuse_crop(crop_size)
    return crop_size


def _digest(config: SegmenterConfig, description: MalDescription) -> str:
    """Over what the config comes to: whether it says what holds anyway makes no difference."""
    resolved = {
        **asdict(config),
        **asdict(description.architecture),
        "crop_size": _crop_size(config, description),
        "checkpoint": file_sha256(description.weights),
        "arch": None,  # it refuses checkpoints, and changes no mask
        "version": VERSION,
    }
    return hashlib.sha256(canonical_json(resolved)).hexdigest()


def _objects(boxes: Sequence[Boxes], margin: float) -> Iterator[_Object]:
    for index, own in enumerate(boxes):
        sizes = size_of_boxes(torch.tensor(own)).tolist()
        for row, (box, size) in enumerate(zip(own.tolist(), sizes, strict=True)):
            yield _Object(index, row, tuple(box), size, expand(tuple(box), (margin,) * 4))


def _batches(objects: Iterable[_Object], batch_size: int) -> Iterator[list[_Object]]:
    """The objects in groups of one size, of at most `batch_size`: a network may treat each size in its own way."""
    by_size: dict[int, list[_Object]] = {}
    for item in objects:
        by_size.setdefault(item.size, []).append(item)
    for group in by_size.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def _region(item: _Object, height: int, width: int, *, clip: bool) -> Region:
    """The pixels of the image that a mask may have: those of its window, or only those that its box touches."""
    window = item.window
    region = Region(max(0, window.left), max(0, window.top), min(width, window.right), min(height, window.bottom))
    if not clip:
        return region
    box = region_of(item.box)
    return Region(
        max(region.left, box.left),
        max(region.top, box.top),
        min(region.right, box.right),
        min(region.bottom, box.bottom),
    )


def _in_region(answer: Probabilities, window: Window, region: Region) -> Probabilities:
    """The probabilities of a region's pixels (bottom - top, right - left), from those of the crop's (S, S)."""
    left, top = window.left, window.top
    inside = Region(region.left - left, region.top - top, region.right - left, region.bottom - top)
    return interpolate(answer, window.height, window.width, inside)


def _mask_of(probabilities: Probabilities, threshold: float, region: Region, height: int, width: int) -> Mask | None:
    """The pixels of the region above the threshold, in an image of `height` x `width`; None for none."""
    patch = probabilities > threshold
    area = int(np.count_nonzero(patch))
    if not area:
        return None
    strict, lax = (int(np.count_nonzero(probabilities > _shifted(threshold, by))) for by in (1.0, -1.0))
    counts = encode_patch(patch, region.left, region.top, height, width)
    return Mask(height, width, counts, area, quality=strict / lax)


def _shifted(probability: float, logits: float) -> float:
    """The probability whose logit is greater by `logits`: sigmoid(logit(p) + logits), also for 0 and 1."""
    odds = probability * math.exp(logits)
    return odds / (odds + 1 - probability)
