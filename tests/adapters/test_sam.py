"""Segment Anything against transformers' own processor and models, on small random networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel, SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from tasks.domain.errors import CheckpointError, SpecError
from tasks.models import SegmenterConfig, load_segmenter, segmenter_digest
from tasks.models.sam import load_sam_segmenter, sam_segmenter_digest
from tasks.models.sam_inputs import SamInputs

# pycocotools 2.0.11 and NumPy 2 do not agree on how arrays are copied; it decodes all the same.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIDES = {"sam": 64, "sam2": 128}
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOXES = np.random.default_rng(1).uniform(0, 40, (7, 4)) + np.array([0, 0, 60, 45])
PROMPT_ENCODER = {"hidden_size": 32, "patch_size": 16, "mask_input_channels": 8}
MASK_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def sam_config() -> SamConfig:
    vision = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDES["sam"],
        "patch_size": 16,
        "window_size": 2,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "mlp_dim": 64,
    }
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config=PROMPT_ENCODER | {"image_size": SIDES["sam"]},
        mask_decoder_config=MASK_DECODER,
    )


def sam2_config(config_class: type = Sam2Config, **memory: object):
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [SIDES["sam2"]] * 2,
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
    return config_class(
        vision_config=vision,
        prompt_encoder_config=PROMPT_ENCODER | {"image_size": SIDES["sam2"]},
        mask_decoder_config=MASK_DECODER,
        **memory,
    )


def sam2_video_model() -> Sam2VideoModel:
    sizes = {
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 32,
    }
    return Sam2VideoModel(sam2_config(Sam2VideoConfig, image_size=SIDES["sam2"], **sizes))


def lively(build, *arguments):
    """A network whose masks have an inside and an outside, and change with the image and with the box."""
    torch.manual_seed(0)
    model = build(*arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if "mask_decoder" in name else 0.1))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family, and one with SAM 2's video model, as the hub's checkpoints of SAM 2 are."""
    models = {
        "sam": lively(SamModel, sam_config()),
        "sam2": lively(Sam2Model, sam2_config()),
        "sam2_video": lively(sam2_video_model),
    }
    result = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.save_pretrained(result[name])
    return result


@pytest.fixture(params=["sam", "sam2"])
def family(request) -> str:
    return request.param


def config(folder: Path | str, family: str = "sam", **changes: object) -> SegmenterConfig:
    return SegmenterConfig(family, str(folder), **changes)


def segment(folder: Path, family: str, boxes=BOXES, image=IMAGE, *, batch_size: int = 1, **changes: object):
    segmenter = load_sam_segmenter(config(folder, family, **changes), device="cpu")
    return segmenter.segment([image], [boxes], batch_size=batch_size)[0]


def pixels_of(mask, image=IMAGE):
    if mask is None:
        return np.zeros(image.shape[:2], dtype=np.bool_)
    return coco_mask.decode({"size": [mask.height, mask.width], "counts": mask.counts}).astype(np.bool_)


def copied(folder: Path, target: Path, **changes: object) -> Path:
    """The checkpoint again in another folder, its config.json changed."""
    content = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(content))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


def processor() -> SamProcessor:
    square = {"height": SIDES["sam"], "width": SIDES["sam"]}
    return SamProcessor(SamImageProcessorPil(size={"longest_edge": SIDES["sam"]}, pad_size=square))


def inside(box, image=IMAGE):
    """True for the pixels whose area the box touches."""
    left, top, right, bottom = box
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
    return (columns + 1 > left) & (columns < right) & (rows + 1 > top) & (rows < bottom)


# Against transformers


def test_sam_1_gives_the_masks_of_transformers(folders):
    model, own = SamModel.from_pretrained(folders["sam"]).eval(), processor()
    inputs = own(images=IMAGE, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    logits = own.post_process_masks(outputs.pred_masks, *sizes, binarize=False)[0][:, 0]
    assert_masks_are_of(segment(folders["sam"], "sam", clip_to_box=False), logits)


def test_sam_2_gives_the_masks_of_transformers(folders):
    model, side = Sam2Model.from_pretrained(folders["sam2"]).eval(), SIDES["sam2"]
    pixels = SamInputs(side, pads=False).prepare(IMAGE)[None]
    scale = torch.tensor([side / 120, side / 90] * 2)
    with torch.inference_mode():
        outputs = model(
            pixel_values=torch.from_numpy(pixels),
            input_boxes=(torch.from_numpy(BOXES) * scale).float()[None],
            multimask_output=False,
        )
    # What transformers' Sam2Processor.post_process_masks does, which needs torchvision to be made.
    logits = torch.nn.functional.interpolate(outputs.pred_masks[0], IMAGE.shape[:2], mode="bilinear")[:, 0]
    assert_masks_are_of(segment(folders["sam2"], "sam2", clip_to_box=False), logits)


def assert_masks_are_of(masks, logits):
    """Every mask is of the logits (H, W) above 0, but where rounding decides; and there is something to compare."""
    for mask, answer in zip(masks, logits.numpy(), strict=True):
        sure = np.abs(answer) > 1e-4
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(pixels_of(mask)[sure], (answer > 0)[sure])
    assert 0.05 < np.mean([pixels_of(mask) for mask in masks]) < 0.95


# Masks


def test_a_mask_depends_neither_on_the_batch_size_nor_on_its_neighbours(folders, family):
    together = segment(folders[family], family)
    assert segment(folders[family], family, batch_size=3) == together
    assert segment(folders[family], family, batch_size=8) == together
    assert segment(folders[family], family, BOXES[4:5], batch_size=8) == together[4:5]


def test_on_a_cpu_the_image_encoder_runs_once_and_every_box_is_decoded_alone(folders, family):
    segmenter = load_sam_segmenter(config(folders[family], family), device="cpu")
    encoded, decoded = [], []
    segmenter.model.vision_encoder.register_forward_hook(lambda *_: encoded.append(1))
    segmenter.model.mask_decoder.register_forward_hook(lambda _, __, answer: decoded.append(answer[0].shape[1]))
    segmenter.segment([IMAGE], [BOXES], batch_size=8)  # last bits, and so pixels at the outline, depend on the batch
    assert (len(encoded), decoded) == (1, [1] * 7)


def test_a_clipped_mask_is_the_whole_mask_within_its_box(folders, family):
    whole, clipped = (segment(folders[family], family, clip_to_box=clip) for clip in (False, True))
    for box, one, cut in zip(BOXES, whole, clipped, strict=True):
        np.testing.assert_array_equal(pixels_of(cut), pixels_of(one) & inside(box))
    assert whole != clipped


def test_a_mask_knows_its_size_and_area(folders, family):
    masks = [mask for mask in segment(folders[family], family) if mask is not None]
    assert masks
    for mask in masks:
        assert (mask.height, mask.width) == IMAGE.shape[:2]
        assert mask.area == pixels_of(mask).sum() > 0
        assert 0 <= mask.quality <= 1


def test_the_mask_changes_with_the_box_and_with_the_image(folders, family):
    masks = segment(folders[family], family, clip_to_box=False)
    assert len({mask.counts for mask in masks if mask is not None}) > 1
    assert segment(folders[family], family, image=IMAGE[::-1].copy(), clip_to_box=False) != masks


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 500)])
def test_an_image_of_any_shape_has_masks(folders, family, shape):
    box = np.array([[0.0, 0.0, shape[1], shape[0]]])
    (mask,) = segment(folders[family], family, box, np.full((*shape, 3), 200, np.uint8))
    assert mask is None or mask.area <= shape[0] * shape[1]


def test_images_without_boxes_have_no_masks(folders, family):
    segmenter = load_sam_segmenter(config(folders[family], family), device="cpu")
    masks = segmenter.segment([IMAGE, IMAGE], [np.zeros((0, 4)), BOXES[:2]], batch_size=2)
    assert [len(of_image) for of_image in masks] == [0, 2]


# Checkpoints


def test_a_video_checkpoint_of_sam_2_gives_the_masks_of_the_image_model_in_it(folders, tmp_path):
    video = load_file(folders["sam2_video"] / "model.safetensors")
    image_model = Sam2Model(sam2_config())
    image_model.load_state_dict({name: video[name] for name in image_model.state_dict()})
    image_model.save_pretrained(tmp_path)
    assert segment(folders["sam2_video"], "sam2") == segment(tmp_path, "sam2")


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("sam", "mask_decoder.iou_token.weight"),
        ("sam2", "vision_encoder.backbone.pos_embed"),
        ("sam2", "shared_image_embedding.positional_embedding"),
    ],
)
def test_a_checkpoint_with_a_gap_is_refused_and_not_filled_at_random(folders, tmp_path, family, missing):
    tensors = load_file(folders[family] / "model.safetensors")
    del tensors[missing]
    save_file(tensors, copied(folders[family], tmp_path) / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks weights .*{missing}"):
        load_sam_segmenter(config(tmp_path, family), device="cpu")


def test_a_checkpoint_with_a_weight_of_another_size_is_refused(folders, tmp_path):
    tensors = load_file(folders["sam"] / "model.safetensors")
    tensors["mask_decoder.iou_token.weight"] = torch.zeros(1, 16)
    save_file(tensors, copied(folders["sam"], tmp_path) / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another size: mask_decoder\.iou_token"):
        load_sam_segmenter(config(tmp_path), device="cpu")


def test_a_damaged_checkpoint_is_refused(folders, tmp_path):
    (copied(folders["sam"], tmp_path) / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_sam_segmenter(config(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("family", "other", "way_out"),
    [
        ("sam", "sam2", r"set mal\.segmenter: sam2"),
        ("sam", "sam2_video", r"set mal\.segmenter: sam2"),
        ("sam2", "sam", r"set mal\.segmenter: sam"),
    ],
)
def test_a_checkpoint_of_the_other_family_is_refused_with_the_way_out(folders, family, other, way_out):
    with pytest.raises(CheckpointError, match=f"is a '{other}'.*{way_out}"):
        sam_segmenter_digest(config(folders[other], family))


def test_a_checkpoint_of_another_model_is_refused_with_an_example(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a 'edgetam'.*facebook/sam2\.1-hiera-tiny"):
        sam_segmenter_digest(config(copied(folders["sam2"], tmp_path, model_type="edgetam"), "sam2"))


def test_a_folder_of_mask_auto_labeler_is_refused_with_the_way_out(tmp_path, family):
    (tmp_path / "config.json").write_text('{"model_type": "mal"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a 'mal'.*set mal\.segmenter: mal"):
        sam_segmenter_digest(config(tmp_path, family))


def test_weights_that_give_no_numbers_in_fp32_are_called_damaged(folders, family):
    segmenter = load_sam_segmenter(config(folders[family], family), device="cpu")
    torch.nn.init.constant_(next(segmenter.model.mask_decoder.parameters()), float("nan"))
    with pytest.raises(CheckpointError, match="no numbers; its weights are damaged: fetch the checkpoint again"):
        segmenter.segment([IMAGE], [BOXES[:1]])


def test_an_original_file_is_refused_with_the_way_out(tmp_path, family):
    (tmp_path / "sam_vit_b.pth").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"is an original file; .* hub id such as facebook/sam.* set mal\.segmenter: mal"
    ):
        sam_segmenter_digest(config(tmp_path / "sam_vit_b.pth", family))


@pytest.mark.parametrize(("name", "found"), [("absent/a/b", "check the path"), ("model.tlt", "encrypted")])
def test_a_checkpoint_that_is_absent_or_encrypted_is_refused(tmp_path, family, name, found):
    with pytest.raises(CheckpointError, match=found):
        sam_segmenter_digest(config(tmp_path / name, family))


def test_precision_and_device_are_refused_before_the_checkpoint_is_looked_for():
    with pytest.raises(SpecError, match="needs a CUDA device"):
        load_sam_segmenter(config("nowhere", precision="bf16"), device="cpu")
    with pytest.raises(SpecError, match="cannot be used"):
        load_sam_segmenter(config("nowhere"), device="gpu7")


def test_loading_says_nothing_on_standard_error(folders, capfd):
    load_sam_segmenter(config(folders["sam2_video"], "sam2"), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_the_port_gives_the_segmenter_that_the_config_names(folders, family):
    named = config(folders[family], family)
    assert load_segmenter(named).segment([IMAGE], [BOXES]) == [segment(folders[family], family)]
    assert segmenter_digest(named) == sam_segmenter_digest(named)


# Digests


def test_the_digest_needs_no_weights_in_memory_and_is_that_of_the_segmenter(folders, family):
    loaded = load_sam_segmenter(config(folders[family], family), device="cpu")
    assert sam_segmenter_digest(config(folders[family], family)) == loaded.digest


def test_the_digest_changes_with_all_that_changes_masks(folders, family, tmp_path):
    base = config(folders[family], family)
    other_mean = copied(folders[family], tmp_path)
    (other_mean / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    changed = [
        config(folders[family], family, clip_to_box=False),
        config(folders[family], family, precision="bf16"),
        config(other_mean, family),
    ]
    assert len({sam_segmenter_digest(one) for one in (base, *changed)}) == 4


def test_the_digest_changes_with_the_weights(folders, tmp_path):
    tensors = load_file(folders["sam"] / "model.safetensors")
    tensors["mask_decoder.iou_token.weight"] += 1
    save_file(tensors, copied(folders["sam"], tmp_path) / "model.safetensors", metadata={"format": "pt"})
    assert sam_segmenter_digest(config(tmp_path)) != sam_segmenter_digest(config(folders["sam"]))


def test_neither_the_folder_nor_what_belongs_to_mal_changes_the_digest(folders, tmp_path):
    moved = copied(folders["sam"], tmp_path, transformers_version="4.30.0")
    other = config(moved, thresholds=(0.5, 0.5, 0.5), crop_size=256, margin=0.1, weights="mixed", flip=True)
    assert sam_segmenter_digest(other) == sam_segmenter_digest(config(folders["sam"]))
