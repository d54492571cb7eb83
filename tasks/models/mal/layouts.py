"""The names and shapes of Mask Auto-Labeler's tensors, which say what network an original checkpoint is for.

A file holds two networks, under "student." and "teacher.". NVlabs and TAO up to 5.5 have four convolutions in front of
the transformer, TAO since 6 has one; everything else has the same names. No file says what its network is, so the sizes
are read off the tensors, and then every tensor must fit them.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.domain.errors import CheckpointError, SpecError
from tasks.models.mal.architecture import MalArchitecture, Stem
from tasks.models.mal.network import MalNetwork
from tasks.models.tensor_files import Tensors, listed

Role = Literal["student", "teacher"]
ROLES: tuple[Role, ...] = ("student", "teacher")

_HUGE_DIM, _HUGE_HEADS = 1280, 16  # of ViT-Huge, whose heads are 80 wide
_HEAD_WIDTH = 64  # of every other one

_CONV_STEM, _PATCH_STEM = "backbone.patch_embed.proj.0.0.weight", "backbone.patch_embed.proj.weight"
_CLASSIFIER = "backbone.head."  # TAO 6 saves the one that the backbone came with, and never uses it
_OTHER_BACKBONES = ("backbone.cls_attn_blocks.", "backbone.pos_embed.", "backbone.stages.")

# (what only such a file's names hold, what it is, the way out)
_FOREIGN = (
    ("feat_map.", "a Grounding DINO, which finds boxes", "give it as grounding_dino.checkpoint"),
    ("image_encoder.", "a Segment Anything", "use segmenter sam or sam2, with a folder of transformers"),
    ("vision_encoder.", "a Segment Anything", "use segmenter sam or sam2, with a folder of transformers"),
    ("mask_head.", "one network without its prefix", "save its tensors under 'student.', as the training does"),
    ("attn.qkv.", "a bare backbone, such as MAE or DeiT", "a training can start from it; masks need a trained MAL"),
)


def split_by_role(tensors: Tensors, path: Path) -> dict[Role, Tensors]:
    """The tensors of the student and the teacher, without their prefix, and without TAO's unused classifier."""
    roles = [role for role in ROLES if any(name.startswith(f"{role}.") for name in tensors)]
    if not roles:
        raise CheckpointError(_what_else(tensors, path))
    prefixes = tuple(f"{role}." for role in roles)
    if strange := [name for name in tensors if not name.startswith(prefixes)]:
        raise CheckpointError(f"checkpoint {path} holds tensors that Mask Auto-Labeler has not: {listed(strange)}")
    split = {
        role: {name[len(role) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{role}.")}
        for role in roles
    }
    return {role: _without_classifier(own) for role, own in split.items()}


def _without_classifier(tensors: Tensors) -> Tensors:
    if _PATCH_STEM not in tensors:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}


def _what_else(names: Iterable[str], path: Path) -> str:
    """What a file is that holds neither a student nor a teacher."""
    found = list(names)
    for mark, kind, way_out in _FOREIGN:
        if any(mark in name for name in found):
            return f"checkpoint {path} is no Mask Auto-Labeler, but {kind}; {way_out}"
    return (
        f"checkpoint {path} is no Mask Auto-Labeler: no tensor is called 'student.…' or 'teacher.…', but "
        f"{listed(found)}; give a file that MAL's training saved"
    )


def infer(tensors: Mapping[Role, Tensors], path: Path) -> MalArchitecture:
    """The architecture that the shapes of an original checkpoint imply, with the published factors."""
    found = {role: _infer_network(own, f"checkpoint {path}, {role}") for role, own in tensors.items()}
    first = next(iter(found.values()))
    if any(other != first for other in found.values()):
        raise CheckpointError(f"checkpoint {path} mixes networks: {found}; expected one architecture")
    return first


def _infer_network(tensors: Tensors, where: str) -> MalArchitecture:
    stem = _stem(tensors, where)
    dim = _shape(tensors, "backbone.cls_token", 3, where)[2]
    rows = _shape(tensors, "backbone.pos_embed", 3, where)[1]
    grid = math.isqrt(max(0, rows - 1))
    if rows != 1 + grid**2 or not grid:
        raise CheckpointError(f"{where}: backbone.pos_embed has {rows} rows; expected one more than a square")
    if dim % _HEAD_WIDTH:
        raise CheckpointError(f"{where}: tokens have {dim} channels; expected a multiple of {_HEAD_WIDTH}")
    convolutions = _count(tensors, "mask_head.convs.")
    return _published(
        where,
        dim=dim,
        depth=_count(tensors, "backbone.blocks."),
        heads=_HUGE_HEADS if dim == _HUGE_DIM else dim // _HEAD_WIDTH,
        stem=stem,
        patch=16 if stem == "conv" else _shape(tensors, _PATCH_STEM, 4, where)[3],
        grid=grid,
        head_convs=convolutions,
        head_hidden=_shape(tensors, "mask_head.convs.0.conv.weight", 4, where)[0],
        head_out=_shape(tensors, "roi_head.mlp2.weight", 2, where)[0],
    )


def _published(where: str, **sizes: Any) -> MalArchitecture:
    try:
        # The published factors need four convolutions; with fewer, the network was trained without them.
        return MalArchitecture(**sizes, adjusts_scale=sizes["head_convs"] >= 4)
    except SpecError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _stem(tensors: Tensors, where: str) -> Stem:
    backbone = [name for name in tensors if name.startswith("backbone.")]
    if other := [name for name in backbone if name.startswith(_OTHER_BACKBONES)]:
        raise CheckpointError(
            f"{where}: the backbone is no plain vision transformer ({listed(other)}); TAO's FAN backbones are not "
            "supported, use a checkpoint with a ViT"
        )
    if _CONV_STEM in tensors and _PATCH_STEM in tensors:
        raise CheckpointError(
            f"{where}: the tensors of two layouts are mixed, {_CONV_STEM} (NVlabs, TAO up to 5.5) and {_PATCH_STEM} "
            "(TAO since 6); give the file as it was saved"
        )
    if _CONV_STEM not in tensors and _PATCH_STEM not in tensors:
        raise CheckpointError(
            f"{where}: found neither {_CONV_STEM} nor {_PATCH_STEM} among {listed(tensors)}; expected one of them"
        )
    return "conv" if _CONV_STEM in tensors else "patch"


def _shape(tensors: Tensors, name: str, rank: int, where: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{where}: {name} is missing, which sizes are read from; fetch the file again")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank:
        raise CheckpointError(f"{where}: {name} has the shape {shape}, expected {rank} dimensions")
    return shape


def _count(tensors: Iterable[str], prefix: str) -> int:
    """How many different parts of names follow the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def refuse_misfits(tensors: Tensors, architecture: MalArchitecture, path: Path, prefix: str) -> None:
    """Raise CheckpointError unless the tensors are those of a network, by names and shapes; it lists all that are not.

    `prefix` is what their names begin with in the file.
    """
    with torch.device("meta"):
        expected = MalNetwork(architecture).state_dict()
    if problems := misfits(tensors, expected, prefix):
        raise CheckpointError(
            f"checkpoint {path} does not fit a network of {architecture.depth} blocks with {architecture.dim} channels "
            f"and the {architecture.stem!r} stem: {problems}; fetch it again"
        )


def misfits(tensors: Tensors, expected: Mapping[str, Tensor], prefix: str = "") -> str:
    """The tensors that are missing, too many, or of another size than expected, in one line; empty where all fit."""
    common = sorted(tensors.keys() & expected.keys())
    sizes = [
        f"{prefix}{name} {tuple(tensors[name].shape)} of {tensors[name].dtype} instead of {tuple(expected[name].shape)}"
        for name in common
        if tensors[name].shape != expected[name].shape or not tensors[name].is_floating_point()
    ]
    found = {
        "missing": [f"{prefix}{name}" for name in expected if name not in tensors],
        "not expected": [f"{prefix}{name}" for name in tensors if name not in expected],
        "of another size": sizes,
    }
    return "; ".join(f"{problem}: {listed(names)}" for problem, names in found.items() if names)
