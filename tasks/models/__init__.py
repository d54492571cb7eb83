"""Two ports. Detectors: phrases and images go in, boxes with a score per phrase come out. Segmenters: boxes to masks.

Importing this package imports no deep-learning framework; the loaders do, and only for checkpoints that need one.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.domain.boxes import Boxes
from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError
from tasks.domain.masks import Mask
from tasks.domain.prompts import Caption

Precision = Literal["fp32", "fp16", "bf16"]
ScoreRule = Literal["mean", "max"]
SegmenterKind = Literal["mal", "sam", "sam2"]
MalWeights = Literal["student", "teacher", "mixed"]

_BUNDLED = Path(__file__).parent / "bundled"
_loading = threading.Lock()


# OpenMP asks when torch is imported, and torch is imported by modules of this package alone, which comes before them.
# By default its threads spin while they wait for each other, and on a machine that is busy with something else they
# spin against each other: an image took 2.4 s on two busy cores, 0.03 s asleep, and no less on idle ones (torch 2.13,
# libgomp, 2026-11-22).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector is asked, and everything about it that changes its answers.

    Attributes:
        checkpoint: a Hugging Face hub id, a folder in transformers' layout, an original `.pth`, `.pt` or
            `.safetensors` file, "bundled:<name>" for one that ships with this package, or "fake".
        precision: of the arithmetic; fp16 and bf16 need a CUDA device.
        score: of a phrase, over its tokens: the mean, as published, or the max.
        shortest_edge: pixels that the image's shorter side is resized to; None as the checkpoint says.
        longest_edge: pixels that its longer side may have then; None as the checkpoint says.
        mean: of the pixels in [0, 1], per RGB channel; None as the checkpoint says.
        std: of the pixels in [0, 1], per RGB channel; None as the checkpoint says.
        tokenizer: a folder or hub id; None for the checkpoint's own, or bert-base-uncased if it has none.
        architecture: what an original checkpoint's tensors cannot tell; "log_scale_auto" for one that TAO trained
            with `log_scale: auto` and without a class bias.
    """

    checkpoint: str
    precision: Precision = "fp32"
    score: ScoreRule = "mean"
    shortest_edge: int | None = None
    longest_edge: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    tokenizer: str | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class SegmenterConfig:
    """Which segmenter makes masks, and everything about it that changes them.

    Attributes:
        segmenter: the family: Mask Auto-Labeler, or Segment Anything 1 or 2 from transformers.
        checkpoint: for `mal` a `.pth`, `.ckpt` or `.pt` of NVlabs or TAO, or a folder of our own; for `sam` and `sam2`
            a Hugging Face hub id or folder; "bundled:<name>" for one that ships with this package, or "fake".
        precision: of the arithmetic; fp16 and bf16 need a CUDA device.
        clip_to_box: whether a mask ends at its box.
        thresholds: probability above which a pixel belongs to the mask, for boxes of up to 32 x 32 square pixels, up
            to 96 x 96, and larger.
        crop_size: of `mal`: side of the square crop that the network sees, in pixels; None as the checkpoint says.
        margin: of `mal`: what the crop adds on each side of the box, as a share of the box's half side.
        weights: of `mal`: the network that answers, or both, their logits averaged.
        flip: of `mal`: average with the answer to the mirrored crop.
        arch: of `mal`: the network's name in the spec; a checkpoint of another one is refused. None takes what it is.
        adjusts_scale: of `mal`: what an original checkpoint's tensors cannot tell, as for the next two; None stands for
            what our own checkpoints say, and for True, 1 and 2 with others.
        scale_before: see MalArchitecture.
        scale: see MalArchitecture.
    """

    segmenter: SegmenterKind
    checkpoint: str
    precision: Precision = "fp32"
    clip_to_box: bool = True
    thresholds: tuple[float, float, float] = (0.1, 0.1, 0.1)
    crop_size: int | None = None
    margin: float = 0.3
    weights: MalWeights = "student"
    flip: bool = False
    arch: str | None = None
    adjusts_scale: bool | None = None
    scale_before: int | None = None
    scale: float | None = None


class Prompter(Protocol):
    """The part of a detector that needs no weights in memory: enough to plan a run."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over all that the answers depend on; not the device, not the batch size."""
        ...

    def captions(self, phrases: Sequence[str]) -> tuple[Caption, ...]:
        """The captions that ask these phrases: a forward pass per image and caption. Raises PromptError."""
        ...


class Detector(Prompter, Protocol):
    """Finds the objects that phrases describe."""

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Sequence[str]],
        *,
        keep_floor: float,
        batch_size: int = 1,
    ) -> list[Candidates]:
        """One `Candidates` per image: every candidate that scores at least `keep_floor`.

        `images` are upright RGB pixels (H, W, 3), `prompts` the phrases asked about each. Candidates are ordered by
        score, best first, then by phrase, then by box. An empty prompt costs no forward pass and finds nothing.

        Raises:
            PromptError: a phrase cannot be asked.
        """
        ...


class Segmenter(Protocol):
    """Tells which pixels of a box belong to its object."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over all that the masks depend on; not the device, not the batch size."""
        ...

    def segment(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Boxes], *, batch_size: int = 1
    ) -> list[list[Mask | None]]:
        """For every image the masks of its boxes, in their order; None where no pixel passed the threshold.

        `images` are upright RGB pixels (H, W, 3), `boxes` (N, 4) xyxy each, float64 pixels, which lie inside the image
        and have an area. `batch_size` counts boxes and never changes a mask.
        """
        ...


def cuda_is_available() -> bool:
    """Whether there is a GPU that torch can use; imports torch, which takes seconds."""
    import torch

    return torch.cuda.is_available()


def load_detector(config: DetectorConfig, *, device: str = "cpu") -> Detector:
    """The detector, ready on the device; a process keeps the one that it used last, and all its threads share it.

    Raises:
        CheckpointError: the checkpoint is missing, encrypted, damaged, or of an unsupported architecture.
        SpecError: the device cannot be used, or not with this precision.
    """
    with _loading:
        return _load_detector(config, device)


@lru_cache(maxsize=1)
def _load_detector(config: DetectorConfig, device: str) -> Detector:
    if config.checkpoint == "fake":
        return _fake()
    from tasks.models.grounding_dino import load_grounding_dino

    return load_grounding_dino(device=device, **_options(config))


def refuse_device(config: DetectorConfig, device: str) -> None:
    """Raise SpecError where the detector cannot run on the device, or not with its precision."""
    if config.checkpoint == "fake":
        return
    from tasks.models.devices import refuse_device as refuse

    refuse(device, config.precision)


def load_prompter(config: DetectorConfig) -> Prompter:
    """Digest and captions of the detector, from its files; its weights are read for the digest, but not kept.

    Raises:
        CheckpointError: the checkpoint is missing, or not one that could be loaded.
    """
    if config.checkpoint == "fake":
        return _fake()
    from tasks.models.grounding_dino import load_grounding_dino_prompter

    return load_grounding_dino_prompter(**_options(config))


def load_segmenter(config: SegmenterConfig, *, device: str = "cpu") -> Segmenter:
    """The segmenter, ready on the device; a process keeps the one that it used last, and all its threads share it.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of an unsupported architecture.
        SpecError: the device cannot be used, or not with this precision.
    """
    with _loading:
        return _load_segmenter(config, device)


@lru_cache(maxsize=1)
def _load_segmenter(config: SegmenterConfig, device: str) -> Segmenter:
    if config.checkpoint == "fake":
        return _fake_segmenter()
    if config.segmenter == "mal":
        from tasks.models.mal.segmenter import load_mal_segmenter

        return load_mal_segmenter(_at_its_place(config), device=device)
    from tasks.models.sam import load_sam_segmenter

    return load_sam_segmenter(_at_its_place(config), device=device)


def refuse_segmenter_device(config: SegmenterConfig, device: str) -> None:
    """Raise SpecError where the segmenter cannot run on the device, or not with its precision."""
    if config.checkpoint == "fake":
        return
    from tasks.models.devices import refuse_device as refuse

    refuse(device, config.precision)


def segmenter_digest(config: SegmenterConfig) -> str:
    """The digest of the segmenter, from its files, which shows early whether there are any; no weights are kept.

    Raises:
        CheckpointError: the checkpoint is missing, or not one that could be loaded.
    """
    if config.checkpoint == "fake":
        return _fake_segmenter().digest
    if config.segmenter == "mal":
        from tasks.models.mal.segmenter import mal_segmenter_digest

        return mal_segmenter_digest(_at_its_place(config))
    from tasks.models.sam import sam_segmenter_digest

    return sam_segmenter_digest(_at_its_place(config))


def _fake() -> Detector:
    from tasks.models.fake import FakeDetector

    return FakeDetector()


def _fake_segmenter() -> Segmenter:
    from tasks.models.fake import FakeSegmenter

    return FakeSegmenter()


def _options(config: DetectorConfig) -> dict[str, Any]:
    return asdict(config) | {"checkpoint": _place_of(config.checkpoint)}


def _at_its_place(config: SegmenterConfig) -> SegmenterConfig:
    return replace(config, checkpoint=str(_place_of(config.checkpoint)))


def _place_of(checkpoint: str) -> str | Path:
    """The folder of a checkpoint that ships; any other one is where it says."""
    kind, _, name = checkpoint.partition(":")
    return _bundled(name) if kind == "bundled" else checkpoint


def _bundled(name: str) -> Path:
    shipped = sorted(folder.parent.name for folder in _BUNDLED.glob("*/config.json"))
    if name not in shipped:
        raise CheckpointError(
            f"no checkpoint called {name!r} ships with this package; there are: {', '.join(shipped) or 'none'}"
        )
    return _BUNDLED / name
