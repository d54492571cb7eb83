"""Detectors behind one port: phrases and images go in, boxes with a score per phrase come out.

Importing this package imports no deep-learning framework; the loaders do, and only for checkpoints that need one.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError
from tasks.domain.prompts import Caption

Precision = Literal["fp32", "fp16", "bf16"]
ScoreRule = Literal["mean", "max"]

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
    from tasks.models.grounding_dino import refuse_device as refuse

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


def _fake() -> Detector:
    from tasks.models.fake import FakeDetector

    return FakeDetector()


def _options(config: DetectorConfig) -> dict[str, Any]:
    kind, _, name = config.checkpoint.partition(":")
    return asdict(config) | ({"checkpoint": _bundled(name)} if kind == "bundled" else {})


def _bundled(name: str) -> Path:
    shipped = sorted(folder.parent.name for folder in _BUNDLED.glob("*/config.json"))
    if name not in shipped:
        raise CheckpointError(
            f"no checkpoint called {name!r} ships with this package; there are: {', '.join(shipped) or 'none'}"
        )
    return _BUNDLED / name
