"""Segmenters on a CUDA device: nearly the same masks as on the CPU, alone and in batches, and in half precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel

from tasks.domain.masks import Mask
from tasks.domain.scenes import draw_scene
from tasks.formats.rle import Rle, mask_iou
from tasks.models import SegmenterConfig, load_segmenter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SCENES = [draw_scene(seed) for seed in range(8)]
MAL = SegmenterConfig("mal", "bundled:mal_scenes", thresholds=(0.5, 0.5, 0.5))


def masks(config: SegmenterConfig, device: str, batch_size: int = 1) -> list[Mask | None]:
    boxes = [np.array([item.box for item in scene.objects], dtype=np.float64) for scene in SCENES]
    segmenter = load_segmenter(config, device=device)
    made = segmenter.segment([scene.pixels for scene in SCENES], boxes, batch_size=batch_size)
    return [mask for of_scene in made for mask in of_scene]


def assert_alike(ours: Sequence[Mask | None], theirs: Sequence[Mask | None], least_iou: float) -> None:
    assert [mask is None for mask in ours] == [mask is None for mask in theirs]
    pairs = [(rle(a), rle(b)) for a, b in zip(ours, theirs, strict=True) if a and b]
    assert np.mean([mask_iou(a, b) for a, b in pairs]) >= least_iou


def rle(mask: Mask) -> Rle:
    return {"size": [mask.height, mask.width], "counts": mask.counts.encode("ascii")}


def sam(folder: Path) -> SegmenterConfig:
    torch.manual_seed(0)
    SamModel(SamConfig(vision_config={"num_hidden_layers": 2, "global_attn_indexes": [1]})).save_pretrained(folder)
    return SegmenterConfig("sam", str(folder))


def test_masks_on_the_gpu_are_those_on_the_cpu():
    assert_alike(masks(MAL, "cpu"), masks(MAL, "cuda"), 0.999)


def test_masks_in_a_batch_are_those_alone():
    assert_alike(masks(MAL, "cuda"), masks(MAL, "cuda", batch_size=16), 0.999)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_masks_in_half_precision_stay_near_those_in_full(precision):
    half = SegmenterConfig("mal", MAL.checkpoint, precision=precision, thresholds=MAL.thresholds)
    assert_alike(masks(MAL, "cuda"), masks(half, "cuda", batch_size=4), 0.97)


def test_masks_of_segment_anything_on_the_gpu_are_those_on_the_cpu(tmp_path):
    config = sam(tmp_path)
    assert_alike(masks(config, "cpu"), masks(config, "cuda", batch_size=4), 0.99)
