"""Original checkpoints of Grounding DINO: their tensors under the names of the Hugging Face hub, and their config.

IDEA-Research (`model` in a `.pth`), NVIDIA TAO (Lightning's `state_dict`, keys prefixed and with `.body` behind the
backbone) and their safetensors hold the same tensors under other names. They are renamed to those of the hub, which
`from_pretrained` understands in every version. The sizes are read off the tensors, never off a file name: TAO's Swin-B
has not the depths of everybody else's.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, GroundingDinoConfig, MMGroundingDinoConfig, PreTrainedConfig, SwinConfig

from tasks.domain.errors import CheckpointError
from tasks.models.quiet_transformers import UNREADABLE
from tasks.models.tensor_files import Tensors, listed, load_safetensors, unpickle

LOG_SCALE_AUTO = "log_scale_auto"

# Prefixes that trainers add: DistributedDataParallel "module.", Lightning and TAO "model." up to four times.
_PREFIX = re.compile(r"^((module|model)\.)+")
# Buffers that are computed, BERT's unused pooler, and the denoising labels that only training reads.
_NOT_NEEDED = re.compile(r"relative_position_index$|attn_mask$|^bert\.pooler\.|position_ids$|^label_enc\.weight$")

_SWIN = "model.backbone.conv_encoder.model."
_ENCODER, _DECODER = r"transformer\.encoder\.", r"transformer\.decoder\."
_HEADS = {"bbox_embed": "bbox_embed", "class_embed": "class_embed"}
# (room in the original, room in transformers, {name: name} in it). A name stands for all that begins with it.
_ROOMS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.",
        _SWIN + r"encoder.layers.\1.blocks.\2.",
        {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.query": "attention.self.query",
            "attn.key": "attention.self.key",
            "attn.value": "attention.self.value",
            "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    (r"backbone\.0\.layers\.(\d+)\.", _SWIN + r"encoder.layers.\1.", {"downsample": "downsample"}),
    (
        r"backbone\.0\.",
        _SWIN,
        {
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "patch_embed.norm": "embeddings.norm",
            **{f"norm{index}": f"hidden_states_norms.stage{index + 1}" for index in range(4)},
        },
    ),
    (r"bert\.", "model.text_backbone.", {"embeddings": "embeddings", "encoder": "encoder"}),
    (
        _ENCODER + r"layers\.(\d+)\.",
        r"model.encoder.layers.\1.deformable_layer.",
        {
            "self_attn": "self_attn",
            "norm1": "self_attn_layer_norm",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm2": "final_layer_norm",
        },
    ),
    (
        _ENCODER + r"text_layers\.(\d+)\.",
        r"model.encoder.layers.\1.text_enhancer_layer.",
        {
            "self_attn": "self_attn",
            "norm1": "layer_norm_before",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm2": "layer_norm_after",
        },
    ),
    (
        _ENCODER + r"fusion_layers\.(\d+)\.",
        r"model.encoder.layers.\1.fusion_layer.",
        {
            "gamma_v": "vision_param",
            "gamma_l": "text_param",
            "layer_norm_v": "layer_norm_vision",
            "layer_norm_l": "layer_norm_text",
            "attn.v_proj": "attn.vision_proj",
            "attn.l_proj": "attn.text_proj",
            "attn.values_v_proj": "attn.values_vision_proj",
            "attn.values_l_proj": "attn.values_text_proj",
            "attn.out_v_proj": "attn.out_vision_proj",
            "attn.out_l_proj": "attn.out_text_proj",
        },
    ),
    (
        _DECODER + r"layers\.(\d+)\.",
        r"model.decoder.layers.\1.",
        {
            "self_attn": "self_attn",
            "norm2": "self_attn_layer_norm",
            "ca_text": "encoder_attn_text",
            "catext_norm": "encoder_attn_text_layer_norm",
            "cross_attn": "encoder_attn",
            "norm1": "encoder_attn_layer_norm",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm3": "final_layer_norm",
        },
    ),
    (_DECODER, "model.decoder.", {"norm": "layer_norm", "ref_point_head": "reference_points_head", **_HEADS}),
    (
        r"transformer\.",
        "model.",
        {
            "level_embed": "level_embed",
            "tgt_embed": "query_position_embeddings",
            "enc_output": "enc_output",
            "enc_output_norm": "enc_output_norm",
            "enc_out_bbox_embed": "encoder_output_bbox_embed",
            "enc_out_class_embed": "encoder_output_class_embed",
        },
    ),
    (r"", "", {"feat_map": "model.text_projection", "input_proj": "model.input_proj_vision", **_HEADS}),
)


def read_original(path: Path) -> Tensors:
    """The tensors of an original checkpoint under the names of the original code.

    Nothing but tensors is unpickled: a checkpoint cannot run code.

    Raises:
        CheckpointError: the file is damaged or encrypted, or holds more than tensors.
    """
    content = load_safetensors(path) if path.suffix == ".safetensors" else unpickle(path)
    tensors = content.get("model", content.get("state_dict", content))
    if "state_dict_encrypted" in content or isinstance(tensors, bytes):
        raise CheckpointError(f"checkpoint {path} is encrypted; save it in TAO without an encryption key")
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"checkpoint {path} holds {type(tensors).__name__}; expected tensors by name")
    named = {_original_name(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    return {key: value for key, value in named.items() if not _NOT_NEEDED.search(key)}


def to_hub_names(
    tensors: Mapping[str, Tensor], name: str, config: PreTrainedConfig | None, architecture: str | None
) -> tuple[PreTrainedConfig, Tensors]:
    """The config of an original checkpoint, inferred unless given, and its tensors under the names of the hub.

    Raises:
        CheckpointError: the tensors are not those of a Grounding DINO with a Swin backbone.
    """
    _refuse_unsupported(tensors, name, architecture)
    renamed: Tensors = {}
    strange: list[str] = []
    for key, tensor in _split_attention(tensors):
        if hub_name := _hub_name(key):
            renamed[hub_name] = tensor.squeeze() if "class_embed" in key else tensor
        else:
            strange.append(key)
    if strange:
        raise CheckpointError(f"checkpoint {name} holds tensors that Grounding DINO has not: {listed(strange)}")
    if architecture == LOG_SCALE_AUTO:
        for key in ("class_embed.0.bias", "model.encoder_output_class_embed.bias"):
            renamed.setdefault(key, torch.zeros(()))
    return config or _infer_config(tensors, name, architecture), renamed


def _original_name(key: str) -> str:
    return _PREFIX.sub("", key).replace("backbone.0.body.", "backbone.0.")


def _hub_name(key: str) -> str | None:
    """The key in the names of the hub; None for a tensor that has no place there."""
    for original, ours, names in _ROOMS:
        if room := re.match(original, key):
            rest = key[room.end() :]
            found = next((name for name in names if rest == name or rest.startswith(f"{name}.")), None)
            if found is not None:
                return f"{room.expand(ours)}{names[found]}{rest.removeprefix(found)}"
    return None


def _split_attention(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, those that stack query, key and value (`qkv.weight`, `in_proj_weight`) cut into the three."""
    for key, tensor in tensors.items():
        stacked = re.fullmatch(r"(.*\.)(?:qkv\.|in_proj_)(weight|bias)", key)
        if stacked is None:
            yield key, tensor
        else:
            room, kind = stacked.groups()
            yield from zip((f"{room}{part}.{kind}" for part in ("query", "key", "value")), tensor.chunk(3), strict=True)


def _refuse_unsupported(tensors: Mapping[str, Tensor], name: str, architecture: str | None) -> None:
    if architecture not in (None, LOG_SCALE_AUTO):
        raise CheckpointError(f"architecture {architecture!r} is not known; expected {LOG_SCALE_AUTO!r} or none")
    if any(key.startswith("text_backbone.") for key in tensors):
        raise CheckpointError(
            f"checkpoint {name} is in transformers' layout; give the folder that also holds its config.json"
        )
    if "feat_map.weight" not in tensors or "transformer.level_embed" not in tensors:
        raise CheckpointError(f"checkpoint {name} is no Grounding DINO: feat_map or transformer.level_embed is missing")
    if "backbone.0.patch_embed.proj.weight" not in tensors or "backbone.0.absolute_pos_embed" in tensors:
        raise CheckpointError(
            f"checkpoint {name} has a backbone that is not supported (a ResNet, or a Swin with absolute positions); "
            "use one with a Swin backbone"
        )
    if learned := [key for key in tensors if key.endswith("log_scale")]:
        raise CheckpointError(
            f"checkpoint {name} learned its log_scale ({listed(learned)}), which no supported head has; "
            "train with `log_scale: auto` or `none`"
        )


# Sizes, read off the tensors


def _infer_config(tensors: Mapping[str, Tensor], name: str, architecture: str | None) -> PreTrainedConfig:
    """The config that the tensors' shapes imply; what no shape tells is as in every published checkpoint."""
    biased = any("class_embed" in key for key in tensors) or architecture == LOG_SCALE_AUTO
    try:
        sizes = _transformer_sizes(tensors) | {"backbone_config": _swin(tensors), "text_config": _bert(tensors)}
        return MMGroundingDinoConfig(**sizes) if biased else GroundingDinoConfig(**sizes)
    except UNREADABLE as error:
        raise CheckpointError(
            f"checkpoint {name} lacks what its sizes are read from ({error}); load it with its config"
        ) from error


def _transformer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    heads: int = GroundingDinoConfig().encoder_attention_heads  # 8; no shape tells
    levels, d_model = tensors["transformer.level_embed"].shape

    def points(attention: str) -> int:
        return len(tensors[f"transformer.{attention}.attention_weights.weight"]) // (heads * levels)

    return {
        "d_model": d_model,
        "num_feature_levels": levels,
        "num_queries": len(tensors["transformer.tgt_embed.weight"]),
        "encoder_layers": _count(tensors, _ENCODER + r"layers\.(\d+)\."),
        "decoder_layers": _count(tensors, _DECODER + r"layers\.(\d+)\."),
        "encoder_ffn_dim": len(tensors["transformer.encoder.layers.0.linear1.weight"]),
        "decoder_ffn_dim": len(tensors["transformer.decoder.layers.0.linear1.weight"]),
        "encoder_n_points": points("encoder.layers.0.self_attn"),
        "decoder_n_points": points("decoder.layers.0.cross_attn"),
        "decoder_bbox_embed_share": _all_equal(tensors, r"bbox_embed\.\d+\.layers\.2\.weight"),
    }


def _swin(tensors: Mapping[str, Tensor]) -> SwinConfig:
    patches = tensors["backbone.0.patch_embed.proj.weight"]  # (width, 3, patch, patch)
    stages = range(_count(tensors, r"backbone\.0\.layers\.(\d+)\."))
    tables = [tensors[f"backbone.0.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    return SwinConfig(
        embed_dim=len(patches),
        patch_size=patches.shape[-1],
        depths=[_count(tensors, rf"backbone\.0\.layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        num_heads=[table.shape[1] for table in tables],
        window_size=(math.isqrt(len(tables[0])) + 1) // 2,  # a table has (2 window - 1)^2 rows
        mlp_ratio=len(tensors["backbone.0.layers.0.blocks.0.mlp.fc1.weight"]) / len(patches),
        out_indices=[index + 1 for index in stages if f"backbone.0.norm{index}.weight" in tensors],
    )


def _bert(tensors: Mapping[str, Tensor]) -> BertConfig:
    words, hidden = tensors["bert.embeddings.word_embeddings.weight"].shape
    return BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=_count(tensors, r"bert\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, hidden // 64),  # BERT's heads are 64 wide in every published size
        intermediate_size=len(tensors["bert.encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(tensors["bert.embeddings.position_embeddings.weight"]),
        type_vocab_size=len(tensors["bert.embeddings.token_type_embeddings.weight"]),
    )


def _count(tensors: Iterable[str], numbered: str) -> int:
    """How many numbers the pattern's group takes over all names."""
    return len({match[1] for key in tensors if (match := re.match(numbered, key))})


def _all_equal(tensors: Mapping[str, Tensor], pattern: str) -> bool:
    first, *others = [tensor for key, tensor in sorted(tensors.items()) if re.fullmatch(pattern, key)]
    return all(torch.equal(first, other) for other in others)
