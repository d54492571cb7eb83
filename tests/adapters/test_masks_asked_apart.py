"""Masks are kept and taken over box by box: none depends, to the bit, on the boxes that it is asked about with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from tasks.domain.masks import Mask
from tasks.domain.scenes import draw_scene
from tasks.models import Segmenter, SegmenterConfig, load_segmenter, sam
from tasks.models.fake import FakeSegmenter
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.network import MalNetwork
from tasks.models.mal.segmenter import MalSegmenter
from tasks.models.sam import SamSegmenter, load_sam_segmenter

SCENE, OTHER = draw_scene(3).pixels, draw_scene(4).pixels
HEIGHT, WIDTH = SCENE.shape[:2]
COUNT = 20  # more than share a pass, which has 8 crops of 128 pixels on a CPU


def boxes_in(seed: int, count: int) -> np.ndarray:
    """Boxes of all of MAL's three sizes, from 8 pixels a side to half the picture's."""
    random = np.random.default_rng(seed)
    sides = np.exp(random.uniform(np.log(8), np.log(min(HEIGHT, WIDTH) / 2), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


BOXES, THEIRS = boxes_in(0, COUNT), boxes_in(1, 5)


def lively(network: torch.nn.Module, scale: float) -> torch.nn.Module:
    """With weights that give masks an inside and an outside."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return network.eval()


def tiny_mal(folder: Path) -> Segmenter:
    network = lively(MalNetwork(MalArchitecture(dim=48, depth=2, heads=3, head_hidden=16, head_out=16)), 0.2)
    return MalSegmenter([network], SegmenterConfig("mal", "unused", thresholds=(0.5,) * 3), crop_size=128, digest="")


PROMPTS = {"hidden_size": 32, "patch_size": 16, "mask_input_channels": 8}
DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def tiny_sam(folder: Path) -> SamSegmenter:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 32, "mlp_dim": 64}
    windows = {"image_size": 64, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 16}
    prompts = PROMPTS | {"image_size": 64}
    model = SamModel(
        SamConfig(vision_config=sizes | windows, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    )
    lively(model, 0.3).save_pretrained(folder)
    return load_sam_segmenter(SegmenterConfig("sam", str(folder)), device="cpu")


def tiny_sam2(folder: Path) -> SamSegmenter:
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "window_positional_embedding_background_size": [2, 2],
        "global_attention_blocks": [3],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    prompts = PROMPTS | {"image_size": 128}
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER))
    lively(model, 0.3).save_pretrained(folder)
    return load_sam_segmenter(SegmenterConfig("sam2", str(folder)), device="cpu")


class InFours:
    """Segment Anything as on a GPU with a batch size of 4; on a CPU boxes do not share a pass of the decoder."""

    digest = ""

    def __init__(self, of: SamSegmenter) -> None:
        self._of = of

    def segment(
        self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], *, batch_size: int = 1
    ) -> list[list[Mask | None]]:
        return [list(self._of._masks(image, own, 4)) for image, own in zip(images, boxes, strict=True)]


SEGMENTERS: dict[str, Callable[[Path], Segmenter]] = {
    "fake": lambda folder: FakeSegmenter(),
    "mal, tiny": tiny_mal,
    "mal, bundled": lambda folder: load_segmenter(SegmenterConfig("mal", "bundled:mal_scenes")),
    "sam, tiny": tiny_sam,
    "sam, tiny, in fours": lambda folder: InFours(tiny_sam(folder)),
    "sam2, tiny": tiny_sam2,
    "sam2, tiny, in fours": lambda folder: InFours(tiny_sam2(folder)),
}


@pytest.fixture(scope="module", params=SEGMENTERS)
def segmenter(request, tmp_path_factory) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SEGMENTERS[request.param](tmp_path_factory.mktemp("checkpoint"))


def masks(segmenter: Segmenter, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], size: int) -> list[Any]:
    """Of the boxes of the last image."""
    return segmenter.segment(images, boxes, batch_size=size)[-1]


def numbers(segmenter: Segmenter, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], size: int) -> list[Any]:
    """What a threshold makes masks of, as bytes: rounding that happens to move no pixel shows here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MalSegmenter, "_mask", lambda self, image, item, answer: answer.tobytes())
        patch.setattr(sam, "mask_of", lambda logits, region, height, width: logits.tobytes())
        return masks(segmenter, images, boxes, size)


@pytest.mark.parametrize("seen", [masks, numbers])
def test_the_mask_of_a_box_is_the_same_whichever_others_are_asked_about_with_it(segmenter, seen):
    together = seen(segmenter, [SCENE], [BOXES], 1)

    @settings(max_examples=30)
    @given(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT), st.integers(1, 9), st.booleans())
    def holds(rows: list[int], size: int, after_others: bool) -> None:
        """Of any boxes, in any order, some of them twice."""
        images, boxes = ([OTHER, SCENE], [THEIRS, BOXES[rows]]) if after_others else ([SCENE], [BOXES[rows]])
        assert seen(segmenter, images, boxes, size) == [together[row] for row in rows]

    holds()


def test_these_masks_differ_and_leave_out_part_of_their_boxes(segmenter):
    """Else the test above would prove little."""
    made = masks(segmenter, [SCENE], [BOXES], 1)
    assert len({mask.counts for mask in made if mask}) > COUNT / 2
    areas = np.prod(BOXES[:, 2:] - BOXES[:, :2], axis=1)
    shares = [mask.area / area for mask, area in zip(made, areas, strict=True) if mask]
    assert sum(0.05 < share < 0.95 for share in shares) >= 5
