"""Grounding DINO's weights into transformers' modules, whatever they were saved by; never a part of them."""

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
)

from tasks.domain.errors import CheckpointError
from tasks.models.checkpoint_files import CheckpointFiles
from tasks.models.grounding_dino_checkpoints import read_original, to_hub_names
from tasks.models.quiet_transformers import UNREADABLE, quiet_transformers
from tasks.models.tensor_files import Tensors, listed

BACKBONES = ("swin", "convnextv2")  # of the published checkpoints, and of the one that ships
_MODELS = {
    GroundingDinoConfig: GroundingDinoForObjectDetection,
    # The same network whose heads divide by the square root of the width and add a bias: MM-Grounding-DINO, LLMDet,
    # and what TAO trains with `log_scale: auto` and `class_embed_bias: True`.
    MMGroundingDinoConfig: MMGroundingDinoForObjectDetection,
}


def load_model(
    files: CheckpointFiles, *, config: PreTrainedConfig | None = None, architecture: str | None = None
) -> PreTrainedModel:
    """The network in fp32 on the CPU, in evaluation mode, every weight of it from the checkpoint.

    `config` replaces what the folder's config.json says, or what the tensors of an original checkpoint tell.

    Raises:
        CheckpointError: the files cannot be read, or do not hold a Grounding DINO of the supported kinds.
    """
    config = copy.deepcopy(config)  # from_pretrained writes into it
    if files.folder is None:
        tensors = to_hub_names(read_original(files.weights[0]), files.name, config, architecture)
        return _instantiate(files.name, None, *tensors)
    if architecture is not None:
        raise CheckpointError(
            f"architecture {architecture!r} is for original checkpoints; {files.name} has a config.json"
        )
    return _instantiate(files.name, files.folder, config or _read_config(files.folder), None)


def _read_config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({error}); fetch it again") from error


def _instantiate(name: str, folder: Path | None, config: PreTrainedConfig, tensors: Tensors | None) -> PreTrainedModel:
    model_class = _model_class(name, config)
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below with the others
                output_loading_info=True,
            )
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {error}") from error
    _refuse_gaps(name, report)
    _refuse_eager_text(name, model)
    return model


def _model_class(name: str, config: PreTrainedConfig) -> Any:
    model_class = _MODELS.get(type(config))
    if model_class is None:
        raise CheckpointError(
            f"checkpoint {name} is a {config.model_type!r}; expected grounding-dino or mm-grounding-dino "
            "(Grounding DINO, MM-Grounding-DINO, LLMDet)"
        )
    if config.backbone_config.model_type not in BACKBONES or config.text_config.model_type != "bert":
        raise CheckpointError(
            f"checkpoint {name} joins {config.backbone_config.model_type} and {config.text_config.model_type}; "
            f"expected {' or '.join(BACKBONES)} and bert"
        )
    return model_class


def _refuse_gaps(name: str, report: Mapping[str, Any]) -> None:
    sizes = [f"{key} {tuple(found)} instead of {tuple(expected)}" for key, found, expected in report["mismatched_keys"]]
    problems = [
        f"{problem}: {listed(keys)}"
        for problem, keys in (
            ("missing", report["missing_keys"]),
            ("not expected", report["unexpected_keys"]),
            ("of another size", sizes),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"checkpoint {name} does not fit its config: {'; '.join(problems)}; check the config")


def _refuse_eager_text(name: str, model: PreTrainedModel) -> None:
    # transformers 5.23 adds the boolean block mask in its eager attention, so every phrase would see all others.
    attention = model.model.text_backbone.config._attn_implementation  # noqa: SLF001 - there is no public name
    if attention != "sdpa":
        raise CheckpointError(
            f"checkpoint {name} asks for {attention!r} attention, which mixes up the phrases; "
            "remove attn_implementation from its config"
        )
