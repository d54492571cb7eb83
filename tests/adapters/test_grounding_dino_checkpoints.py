"""Original checkpoints, made here from transformers' own weights by the inverse renaming, give transformers' boxes."""

import json
import pickle
import re
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SwinConfig,
)

from tasks.domain.errors import CheckpointError
from tasks.models.grounding_dino import GroundingDinoDetector, load_grounding_dino, load_grounding_dino_prompter

MODELS = {
    GroundingDinoConfig: GroundingDinoForObjectDetection,
    MMGroundingDinoConfig: MMGroundingDinoForObjectDetection,
}
EDGES = {"shortest_edge": 64, "longest_edge": 96}
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
PROMPT = ["fire truck", "man"]

# From the names on the hub back to those of IDEA-Research, applied one after the other.
INVERSE = [
    (r"model\.backbone\.conv_encoder\.model\.embeddings\.patch_embeddings\.projection", "backbone.0.patch_embed.proj"),
    (r"model\.backbone\.conv_encoder\.model\.embeddings\.norm", "backbone.0.patch_embed.norm"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage2", "backbone.0.norm1"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage3", "backbone.0.norm2"),
    (r"model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage4", "backbone.0.norm3"),
    (r"model\.backbone\.conv_encoder\.model\.encoder\.", "backbone.0."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"(blocks\.\d+)\.attention\.output\.dense", r"\1.attn.proj"),
    (r"(blocks\.\d+)\.attention\.self\.", r"\1.attn."),
    (r"(blocks\.\d+)\.intermediate\.dense", r"\1.mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"model\.text_backbone\.", "bert."),
    (r"model\.text_projection", "feat_map"),
    (r"model\.input_proj_vision", "input_proj"),
    (r"model\.query_position_embeddings", "transformer.tgt_embed"),
    (r"model\.encoder_output_(bbox|class)_embed", r"transformer.enc_out_\1_embed"),
    (r"^model\.", "transformer."),
    (r"encoder\.layers\.(\d+)\.deformable_layer\.self_attn_layer_norm", r"encoder.layers.\1.norm1"),
    (r"encoder\.layers\.(\d+)\.deformable_layer\.final_layer_norm", r"encoder.layers.\1.norm2"),
    (r"encoder\.layers\.(\d+)\.deformable_layer\.", r"encoder.layers.\1."),
    (r"encoder\.layers\.(\d+)\.text_enhancer_layer\.layer_norm_before", r"encoder.text_layers.\1.norm1"),
    (r"encoder\.layers\.(\d+)\.text_enhancer_layer\.layer_norm_after", r"encoder.text_layers.\1.norm2"),
    (r"encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"encoder.text_layers.\1."),
    (r"encoder\.layers\.(\d+)\.fusion_layer\.", r"encoder.fusion_layers.\1."),
    (r"layer_norm_vision", "layer_norm_v"),
    (r"layer_norm_text", "layer_norm_l"),
    (r"vision_param", "gamma_v"),
    (r"text_param", "gamma_l"),
    (r"attn\.values_vision_proj", "attn.values_v_proj"),
    (r"attn\.values_text_proj", "attn.values_l_proj"),
    (r"attn\.out_vision_proj", "attn.out_v_proj"),
    (r"attn\.out_text_proj", "attn.out_l_proj"),
    (r"attn\.vision_proj", "attn.v_proj"),
    (r"attn\.text_proj", "attn.l_proj"),
    (r"encoder_attn_text_layer_norm", "catext_norm"),
    (r"encoder_attn_text\.", "ca_text."),
    (r"encoder_attn_layer_norm", "norm1"),
    (r"encoder_attn\.", "cross_attn."),
    (r"self_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"decoder\.layer_norm", "decoder.norm"),
    (r"reference_points_head", "ref_point_head"),
    (r"(transformer\..*)fc([12])", r"\1linear\2"),
]


def save_tokenizer(folder: Path) -> Path:
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words = [special.get(number, f"[unused{number}]") for number in range(1030)]
    words += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def tiny_config(config_class: type = GroundingDinoConfig, **changes: object):
    """Small in every size that is read off the tensors, and no two sizes alike where that could hide a mistake."""
    swin = SwinConfig(embed_dim=24, depths=[2, 1, 3, 2], num_heads=[1, 2, 4, 8], window_size=3, out_indices=[2, 3, 4])
    sizes = {
        "d_model": 64,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 40,
        "encoder_n_points": 2,
        "decoder_n_points": 3,
        "num_queries": 15,
        "backbone_config": swin,
        "text_config": BertConfig(
            vocab_size=1100, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=72
        ),
    }
    return config_class(**(sizes | changes))


def random_model(config):
    torch.manual_seed(0)
    model = MODELS[type(config)](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[type, Path]:
    """Folders in transformers' layout, of Grounding DINO and of MM-Grounding-DINO."""
    folders = {}
    for config_class in MODELS:
        folders[config_class] = tmp_path_factory.mktemp(config_class.model_type)
        random_model(tiny_config(config_class)).save_pretrained(folders[config_class])
    return folders


def original_tensors(folder: Path, decoder_layers: int = 2) -> dict[str, torch.Tensor]:
    """The weights in the folder as IDEA-Research's code names, stacks and repeats them."""
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        name = key
        for pattern, replacement in INVERSE:
            name = re.sub(pattern, replacement, name)
        if ".swin.layernorm." not in key:
            tensors[name] = tensor.reshape(1) if "class_embed" in key else tensor
    stacked = stack_attention(tensors)
    for layer in range(decoder_layers):
        for key in [key for key in stacked if re.match(r"(bbox|class)_embed\.0\.", key)]:
            stacked[key.replace(".0.", f".{layer}.", 1)] = stacked[key]
            stacked["transformer.decoder." + key.replace(".0.", f".{layer}.", 1)] = stacked[key]
    stacked["backbone.0.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(25, 25, dtype=torch.long)
    stacked["label_enc.weight"] = torch.zeros(5, 64)
    return stacked


def stack_attention(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stacked = {}
    for key, tensor in tensors.items():
        projection = re.fullmatch(r"((?!bert).*\.)(query|key|value)\.(weight|bias)", key)
        if projection is None:
            stacked[key] = tensor
            continue
        room, part, kind = projection.groups()
        if part == "query":
            whole = torch.cat([tensors[f"{room}{each}.{kind}"] for each in ("query", "key", "value")])
            stacked[f"{room}qkv.{kind}" if "blocks" in room else f"{room}in_proj_{kind}"] = whole
    return stacked


def tao(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key.replace("backbone.0.", "backbone.0.body."): tensor for key, tensor in tensors.items()}


def found_by(detector: GroundingDinoDetector) -> tuple[np.ndarray, ...]:
    (found,) = detector.detect([IMAGE], [PROMPT], keep_floor=0.0)
    assert len(found.scores) > 10
    return found.boxes, found.scores, found.phrases


def assert_twins(checkpoint: Path, folder: Path, tokenizer: str, **options: object) -> None:
    """The two checkpoints give the same boxes, bit for bit."""
    twin = found_by(load_grounding_dino(folder, tokenizer=tokenizer, **EDGES))
    ours = found_by(load_grounding_dino(checkpoint, tokenizer=tokenizer, **EDGES, **options))
    for left, right in zip(ours, twin, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_original_code_gives_the_boxes_of_its_twin(twins, tokenizer, tmp_path, prefix):
    folder, path = twins[GroundingDinoConfig], tmp_path / "groundingdino.pth"
    torch.save({"model": {prefix + key: tensor for key, tensor in original_tensors(folder).items()}}, path)
    assert_twins(path, folder, tokenizer)


@pytest.mark.parametrize("prefix", ["model.model.", "model.", "", "model.model.model.model."])
def test_d26_a_tao_checkpoint_of_every_age_gives_the_boxes_of_its_twin(twins, tokenizer, tmp_path, prefix):
    folder, path = twins[GroundingDinoConfig], tmp_path / "tao.pth"
    tensors = tao(original_tensors(folder), prefix)
    torch.save({"state_dict": tensors, "pytorch-lightning_version": "2.4", "tao_model": "grounding_dino"}, path)
    assert_twins(path, folder, tokenizer)


def test_d26_a_commercial_tao_checkpoint_with_a_class_bias_gives_the_boxes_of_its_twin(twins, tokenizer, tmp_path):
    folder, path = twins[MMGroundingDinoConfig], tmp_path / "commercial.pth"
    torch.save({"state_dict": tao(original_tensors(folder), "model.model.")}, path)
    assert_twins(path, folder, tokenizer)


def test_a_checkpoint_scaled_without_bias_is_loaded_when_the_architecture_says_so(tokenizer, tmp_path):
    model = random_model(tiny_config(MMGroundingDinoConfig))
    for head in (*model.class_embed, model.model.encoder_output_class_embed):
        head.bias.data.zero_()
    model.save_pretrained(tmp_path)
    tensors = {key: tensor for key, tensor in original_tensors(tmp_path).items() if "class_embed" not in key}
    torch.save({"state_dict": tao(tensors, "model.model.")}, tmp_path / "auto.pth")
    assert_twins(tmp_path / "auto.pth", tmp_path, tokenizer, architecture="log_scale_auto")


def test_safetensors_and_bare_tensors_are_read_too(twins, tokenizer, tmp_path):
    folder = twins[GroundingDinoConfig]
    tensors = {key: tensor.clone() for key, tensor in original_tensors(folder).items()}
    save_file(tensors, tmp_path / "original.safetensors")
    torch.save(tensors, tmp_path / "bare.pt")
    assert_twins(tmp_path / "original.safetensors", folder, tokenizer)
    assert_twins(tmp_path / "bare.pt", folder, tokenizer)


def test_a_checkpoint_in_the_old_torch_format_is_read(twins, tokenizer, tmp_path):
    folder = twins[GroundingDinoConfig]
    torch.save({"model": original_tensors(folder)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_twins(tmp_path / "old.pth", folder, tokenizer)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone_config": {"embed_dim": 16, "depths": [1, 1, 5, 1], "num_heads": [2, 2, 4, 4], "window_size": 5}},
        {"backbone_config": {"embed_dim": 24, "depths": [1, 2, 1, 1], "num_heads": [3, 3, 6, 6], "mlp_ratio": 2.0}},
        {"d_model": 32, "num_feature_levels": 5, "decoder_layers": 4, "decoder_bbox_embed_share": False},
        {"text_config": {"vocab_size": 1090, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}},
    ],
    ids=["window and depths", "heads and mlp", "levels and boxes", "text"],
)
def test_sizes_are_read_off_the_tensors(changes, tokenizer, tmp_path):
    kinds = {"backbone_config": lambda **sizes: SwinConfig(out_indices=[2, 3, 4], **sizes), "text_config": BertConfig}
    config = tiny_config(**{key: kinds[key](**value) if key in kinds else value for key, value in changes.items()})
    random_model(config).save_pretrained(tmp_path)
    shared = config.decoder_bbox_embed_share
    tensors = original_tensors(tmp_path, decoder_layers=config.decoder_layers if shared else 0)
    torch.save({"model": tensors}, tmp_path / "original.pth")
    assert_twins(tmp_path / "original.pth", tmp_path, tokenizer)


def test_a_given_config_tells_what_no_shape_tells(tokenizer, tmp_path):
    config = tiny_config(encoder_attention_heads=4, decoder_attention_heads=4, encoder_n_points=4, decoder_n_points=4)
    random_model(config).save_pretrained(tmp_path)
    torch.save({"model": original_tensors(tmp_path)}, tmp_path / "original.pth")
    assert_twins(tmp_path / "original.pth", tmp_path, tokenizer, config=config)


def test_a_given_config_is_not_changed_and_counts_in_the_digest(twins, tokenizer):
    folder, config = twins[GroundingDinoConfig], tiny_config()
    before = config.to_json_string(use_diff=False)
    digest = load_grounding_dino(folder, tokenizer=tokenizer, config=config).digest
    assert config.to_json_string(use_diff=False) == before
    assert load_grounding_dino_prompter(folder, tokenizer=tokenizer, config=config).digest == digest
    other = tiny_config(activation_function="gelu")
    assert load_grounding_dino_prompter(folder, tokenizer=tokenizer, config=other).digest != digest


# Refused, with the way out


def refusal(tensors: object, tokenizer: str, folder: Path, **options: object) -> str:
    path = folder / "checkpoint.pth"
    torch.save(tensors, path)
    with pytest.raises(CheckpointError) as problem:
        load_grounding_dino(path, tokenizer=tokenizer, **options)
    return str(problem.value)


class RunsCode:
    """What a malicious checkpoint does: unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tokenizer, tmp_path):
    message = refusal({"model": {}, "extra": RunsCode(tmp_path / "ran")}, tokenizer, tmp_path)
    assert "a pickle can run code" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict_encrypted": "EFF", "state_dict": b"secret"}, "is encrypted"),
        ({"state_dict": b"secret"}, "is encrypted"),
        ([torch.zeros(1)], "holds list; expected tensors by name"),
        ({"model": [1]}, "holds list; expected tensors by name"),
        ({"model": {"fc.weight": torch.zeros(1)}}, "is no Grounding DINO"),
    ],
)
def test_d26_what_is_no_open_grounding_dino_is_refused(content, reason, tokenizer, tmp_path):
    assert reason in refusal(content, tokenizer, tmp_path)


def test_a_file_that_is_no_checkpoint_at_all_is_refused(tokenizer, tmp_path):
    for name, content in (
        ("a.pth", b"\x00\x01"),
        ("b.pth", pickle.dumps(1, protocol=2)),
        ("c.safetensors", b"\x00" * 20),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_grounding_dino(tmp_path / name, tokenizer=tokenizer)


def test_d26_a_learned_scale_is_refused(twins, tokenizer, tmp_path):
    tensors = original_tensors(twins[MMGroundingDinoConfig]) | {"class_embed.0.log_scale": torch.zeros(1)}
    assert "learned its log_scale (class_embed.0.log_scale)" in refusal({"model": tensors}, tokenizer, tmp_path)


def test_another_backbone_is_refused(twins, tokenizer, tmp_path):
    tensors = original_tensors(twins[GroundingDinoConfig])
    resnet = {key.replace("backbone.0.patch_embed", "backbone.0.conv1"): value for key, value in tensors.items()}
    assert "use one with a Swin backbone" in refusal({"model": resnet}, tokenizer, tmp_path)


def test_tensors_that_are_missing_strange_or_of_another_size_are_listed(twins, tokenizer, tmp_path):
    tensors = original_tensors(twins[GroundingDinoConfig])
    missing = {key: value for key, value in tensors.items() if key != "transformer.enc_output.weight"}
    assert "missing: model.enc_output.weight" in refusal({"model": missing}, tokenizer, tmp_path)
    strange = tensors | {"transformer.mask_head.weight": torch.zeros(1)}
    assert "has not: transformer.mask_head.weight" in refusal({"model": strange}, tokenizer, tmp_path)
    resized = tensors | {"transformer.enc_output.weight": torch.zeros(3, 3)}
    assert "of another size: model.enc_output.weight (3, 3)" in refusal({"model": resized}, tokenizer, tmp_path)
    untold = {key: value for key, value in tensors.items() if key != "transformer.tgt_embed.weight"}
    assert "lacks what its sizes are read from" in refusal({"model": untold}, tokenizer, tmp_path)


def test_transformers_weights_without_their_folder_are_refused(twins, tokenizer):
    with pytest.raises(CheckpointError, match=r"give the folder that also holds its config\.json"):
        load_grounding_dino(twins[GroundingDinoConfig] / "model.safetensors", tokenizer=tokenizer)


def test_without_a_network_the_usual_tokenizer_is_asked_for_by_name(twins, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    torch.save({"model": original_tensors(twins[GroundingDinoConfig])}, tmp_path / "original.pth")
    with pytest.raises(CheckpointError, match=r"bert-base-uncased .*download it where there is a network"):
        load_grounding_dino(tmp_path / "original.pth")


def test_an_unknown_architecture_is_refused(twins, tokenizer, tmp_path):
    tensors = original_tensors(twins[GroundingDinoConfig])
    assert "expected 'log_scale_auto'" in refusal({"model": tensors}, tokenizer, tmp_path, architecture="v2")
    with pytest.raises(CheckpointError, match="is for original checkpoints"):
        load_grounding_dino(twins[GroundingDinoConfig], tokenizer=tokenizer, architecture="log_scale_auto")
