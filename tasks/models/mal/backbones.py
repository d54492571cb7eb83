"""What a training starts from: the backbone of MAE or DeiT, which saw other data, or a whole Mask Auto-Labeler."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from tasks.domain.errors import CheckpointError
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.checkpoints import load_mal
from tasks.models.mal.layouts import ROLES, misfits
from tasks.models.mal.network import MalNetwork
from tasks.models.tensor_files import Tensors, read_tensors

_STEM = "patch_embed."
# What a pretraining needs and a backbone does not: classifiers, MAE's decoder, and the norm of a pooled answer.
_NOT_NEEDED = re.compile(r"head\.|head_dist\.|fc_norm\.|decoder_|mask_token$")
# (what only such a file's names hold, what it is)
_UNFIT = (
    (re.compile(r"(base|momentum)_encoder\."), "a MoCo, whose backbone has other names"),
    (re.compile(r"dist_token$"), "a distilled DeiT, which has two class tokens"),
    (re.compile(r"\.gamma_[12]$"), "a DeiT III or BEiT, whose blocks scale their answers"),
)

# Fields of `MalArchitecture` that tensors follow from, by the keys of the spec that decide them.
_IN_THE_SPEC = {
    "dim": "model.dim (or arch)",
    "depth": "model.depth (or arch)",
    "heads": "model.heads (or arch)",
    "stem": "model.stem",
    "patch": "the side of a token",
    "grid": "the grid of tokens (dataset.crop_size / 16 with model.dim)",
    "head_convs": "model.mask_head_num_convs",
    "head_hidden": "model.mask_head_hidden_channel",
    "head_out": "model.mask_head_out_channel",
}


def load_backbone(network: MalNetwork, path: str | Path) -> tuple[str, ...]:
    """Fill a network with a pretrained backbone, or with the student of a MAL checkpoint.

    The files of MAE and DeiT hold a classifier or a decoder too, which is passed over, and a patch embedding, which
    fits the "patch" stem alone. All else must be there and fit: no part is left random in silence.

    Args:
        network: on any device; changed in place.
        path: a `.pth`, `.pt`, `.ckpt` or `.safetensors`, or a folder of `save_checkpoint`.

    Returns:
        The parts that the file has not, and that stay as they were: of "backbone.patch_embed", "roi_head", "mask_head".

    Raises:
        CheckpointError: the file cannot be read, or is of another kind or size of network; the network is unchanged.
    """
    path = Path(path)
    tensors = {} if path.is_dir() else read_tensors(path)
    if path.is_dir() or any(name.startswith(tuple(f"{role}." for role in ROLES)) for name in tensors):
        return _load_student(network, path)
    _refuse_unfit(tensors, path)
    return _load_pretrained(network, tensors, path)


def _load_student(network: MalNetwork, path: Path) -> tuple[str, ...]:
    description, (student,) = load_mal(path, ("student",))
    found, expected = _untold(description.architecture), _untold(network.architecture)
    if found != expected:
        raise CheckpointError(
            f"checkpoint {path} is another network: {_differences(found, expected)}; make the spec agree with it, or "
            "start from another checkpoint"
        )
    network.load_state_dict(student.state_dict())
    return ()


def _untold(architecture: MalArchitecture) -> MalArchitecture:
    """The architecture without what changes no tensor, and may differ from the checkpoint's."""
    return replace(architecture, adjusts_scale=False, scale_before=1, scale=2.0)


def _differences(found: MalArchitecture, expected: MalArchitecture) -> str:
    """The sizes that differ, in the words of the spec."""
    return ", ".join(
        f"{words} is {getattr(found, name)} there and {getattr(expected, name)} here"
        for name, words in _IN_THE_SPEC.items()
        if getattr(found, name) != getattr(expected, name)
    )


def _refuse_unfit(tensors: Tensors, path: Path) -> None:
    for mark, kind in _UNFIT:
        if any(mark.search(name) for name in tensors):
            raise CheckpointError(f"backbone {path} is {kind}; use MAE, or a DeiT that is not distilled")


def _load_pretrained(network: MalNetwork, tensors: Tensors, path: Path) -> tuple[str, ...]:
    own = network.backbone.state_dict()
    found = {name: tensor for name, tensor in tensors.items() if not _NOT_NEEDED.match(name)}
    stem = {name: tensor.shape for name, tensor in own.items() if name.startswith(_STEM)}
    stem_fits = {name: tensor.shape for name, tensor in found.items() if name.startswith(_STEM)} == stem
    if not stem_fits:
        own, found = _without_stem(own), _without_stem(found)
    if problems := misfits(found, own):
        raise CheckpointError(
            f"backbone {path} does not fit the network: {problems}; give the file of the same size, pretrained on 224 "
            "pixels"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])  # a state dict shares the memory of its parameters
    return (() if stem_fits else ("backbone.patch_embed",)) + ("roi_head", "mask_head")


def _without_stem(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_STEM)}
