"""The detector on a CUDA device: the same labels as on the CPU, alone and in batches."""

import numpy as np
import pytest
import torch

from tasks.domain.detections import Candidates
from tasks.domain.scenes import SHAPES, draw_scene
from tasks.models import DetectorConfig, load_detector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CHECKPOINT = "bundled:grounding_dino_scenes"


def found(device: str, precision: str = "fp32", batch_size: int = 1) -> list[Candidates]:
    detector = load_detector(DetectorConfig(CHECKPOINT, precision=precision), device=device)
    images = [draw_scene(seed).pixels for seed in range(8)]
    return detector.detect(images, [SHAPES] * 8, keep_floor=0.3, batch_size=batch_size)


def assert_alike(ours: list[Candidates], theirs: list[Candidates], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        sure = np.flatnonzero(a.scores > 0.3 + 2 * tolerance)
        assert len(b.scores) >= len(sure)
        np.testing.assert_allclose(b.scores[sure], a.scores[sure], atol=tolerance)


def test_scores_on_the_gpu_are_those_on_the_cpu():
    assert_alike(found("cpu"), found("cuda"), 1e-3)


def test_scores_in_a_batch_are_those_alone():
    assert_alike(found("cuda"), found("cuda", batch_size=8), 1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_near_full_precision(precision):
    assert_alike(found("cuda"), found("cuda", precision=precision, batch_size=4), 0.1)
