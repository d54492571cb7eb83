"""Checkpoints of Mask Auto-Labeler: files as NVlabs and TAO save them, made here."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.domain.errors import CheckpointError, SpecError
from tasks.models.mal.architecture import ARCHITECTURES, MalArchitecture
from tasks.models.mal.checkpoints import Overrides, describe_mal, load_mal, load_network
from tasks.models.mal.layouts import infer
from tasks.models.mal.network import MalNetwork

SMALL = MalArchitecture(dim=64, depth=2, heads=1, head_hidden=16, head_out=16)
BOTH_STEMS = pytest.mark.parametrize("stem", ["conv", "patch"])
CROPS, BOXES = torch.ones(1, 3, 64, 64), torch.tensor([[0.0, 0.0, 50.0, 50.0]])


def network(sizes: MalArchitecture, seed: int) -> MalNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MalNetwork(sizes)


def published(sizes: MalArchitecture = SMALL, roles: tuple[str, ...] = ("student", "teacher")) -> dict[str, Tensor]:
    """The `state_dict` of a file; TAO 6, which has the "patch" stem, leaves an unused classifier in it."""
    tensors = {}
    for seed, role in enumerate(roles):
        tensors |= {f"{role}.{name}": tensor for name, tensor in network(sizes, seed).state_dict().items()}
        if sizes.stem == "patch":
            tensors[f"{role}.backbone.head.weight"] = torch.ones(1000, sizes.dim)
            tensors[f"{role}.backbone.head.bias"] = torch.ones(1000)
    return tensors


def lightning(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {
        "epoch": 6,
        "global_step": 1234,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": tensors,
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-6}]}],
        "tao_model": "mal",
    }


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    torch.save(lightning(tensors), path)
    return path


def refused(path: Path, *sayings: str, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        load_network(path)
    for saying in sayings:
        assert saying in str(caught.value)
    return str(caught.value)


# Containers

CONTAINERS: dict[str, Callable[[Mapping[str, Tensor], Path], None]] = {
    "lightning.ckpt": lambda tensors, path: torch.save(lightning(tensors), path),
    "lightning.pth": lambda tensors, path: torch.save(lightning(tensors), path),
    "old.pth": lambda tensors, path: torch.save(lightning(tensors), path, _use_new_zipfile_serialization=False),
    "model.pt": lambda tensors, path: torch.save({"model": tensors}, path),
    "bare.pt": lambda tensors, path: torch.save(dict(tensors), path),
    "half.pth": lambda tensors, path: torch.save({name: tensor.half() for name, tensor in tensors.items()}, path),
    "bare.safetensors": lambda tensors, path: save_file(dict(tensors), path),
}


@BOTH_STEMS
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_weight_of_either_network_is_read_from_every_container(tmp_path, name, stem):
    """MAL-4: files of both layouts load; TAO 6 takes no older one."""
    tensors = published(replace(SMALL, stem=stem))
    CONTAINERS[name](tensors, tmp_path / name)

    for role in ("student", "teacher"):
        loaded = load_network(tmp_path / name, role)

        assert loaded.architecture == replace(SMALL, stem=stem)
        assert not loaded.training
        for key, tensor in loaded.state_dict().items():
            expected = tensors[f"{role}.{key}"]
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected.half().float() if name == "half.pth" else expected)


def test_a_loaded_network_answers_as_the_one_that_was_saved_and_can_be_trained_on(tmp_path):
    original = network(SMALL, 0)
    loaded = load_network(saved(tmp_path / "mal.ckpt", published()))

    answer = loaded(CROPS, BOXES)
    answer.sum().backward()

    assert torch.equal(answer, original.eval()(CROPS, BOXES))
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_a_loaded_network_does_not_change_with_its_file(tmp_path):
    path = saved(tmp_path / "mal.ckpt", published())
    loaded = load_network(path)
    before = loaded(CROPS, BOXES)

    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)

    assert torch.equal(loaded(CROPS, BOXES), before)


@pytest.mark.slow
@BOTH_STEMS
def test_a_checkpoint_of_the_published_size_is_loaded(tmp_path, stem):
    sizes = MalArchitecture(768, 12, 12, stem=stem)
    tensors = published(sizes, ("student",))
    path = saved(tmp_path / "epoch=6-arch=vit-mae-base-16.ckpt", tensors)

    loaded = load_network(path)

    assert loaded.architecture == sizes
    assert all(torch.equal(tensor, tensors[f"student.{key}"]) for key, tensor in loaded.state_dict().items())


# What the tensors tell


@BOTH_STEMS
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sizes_of_every_published_network_are_read_off_its_tensors(name, stem):
    sizes = replace(ARCHITECTURES[name], stem=stem)
    with torch.device("meta"):
        tensors = MalNetwork(sizes).state_dict()

    assert infer({"student": tensors, "teacher": tensors}, Path("mal.ckpt")) == sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 128, "heads": 2, "depth": 3},
        {"head_convs": 5, "head_hidden": 24, "head_out": 8},
        {"grid": 16},
        {"stem": "patch", "patch": 14, "grid": 16},
        {"head_convs": 2, "adjusts_scale": False},
    ],
    ids=str,
)
def test_other_sizes_are_read_off_the_tensors_too(tmp_path, changes):
    sizes = replace(SMALL, **changes)

    assert load_network(saved(tmp_path / "mal.pth", published(sizes))).architecture == sizes


def test_what_no_tensor_tells_is_as_published_unless_something_else_is_said(tmp_path):
    path = saved(tmp_path / "mal.pth", published())

    description = describe_mal(path, ("student",))
    other = describe_mal(path, ("student",), Overrides(adjusts_scale=False, scale_before=2, scale=1.5))

    assert (description.weights, description.architecture, description.crop_size) == (path, SMALL, 512)
    assert other.architecture == replace(SMALL, adjusts_scale=False, scale_before=2, scale=1.5)


def test_the_description_is_that_of_what_is_loaded(tmp_path):
    path = saved(tmp_path / "mal.pth", published())
    said = Overrides(adjusts_scale=False)

    description, networks = load_mal(path, ("student", "teacher"), said)

    assert description == describe_mal(path, ("student",), said)
    assert [one.architecture for one in networks] == [description.architecture] * 2


def test_factors_that_make_no_network_are_refused(tmp_path):
    path = saved(tmp_path / "mal.pth", published())

    with pytest.raises(SpecError, match="not_adjust_scale: true"):
        describe_mal(path, ("student",), Overrides(scale=3.0))


def test_the_name_of_the_network_is_accepted_where_it_fits(tmp_path):
    """MAL-1: tiny, which the published programs list and cannot build."""
    tiny = ARCHITECTURES["vit-deit-tiny/16"]
    path = saved(tmp_path / "mal.pth", published(tiny, ("student",)))

    assert describe_mal(path, ("student",), Overrides(arch="vit-deit-tiny/16")).architecture == tiny
    with pytest.raises(CheckpointError, match=r"192 channels.*\(vit-deit-tiny/16\), not vit-mae-base/16; correct arch"):
        describe_mal(path, ("student",), Overrides(arch="vit-mae-base/16"))
    with pytest.raises(SpecError, match=r"fan_small.*expected one of vit-deit-tiny/16"):
        describe_mal(path, ("student",), Overrides(arch="fan_small"))


# Never a part of a network


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    "name", ["student.backbone.norm.bias", "teacher.roi_head.mlp1.bias", "student.backbone.blocks.0.attn.qkv.weight"]
)
def test_a_missing_tensor_is_named(tmp_path, name):
    refused(saved(tmp_path / "mal.ckpt", without(published(), name)), f"missing: {name}; fetch it again")


@pytest.mark.parametrize(
    "name",
    [
        "student.backbone.cls_token",
        "student.backbone.pos_embed",
        "student.roi_head.mlp2.weight",
        "student.mask_head.convs.0.conv.weight",
    ],
)
def test_a_missing_tensor_that_sizes_are_read_from_is_named(tmp_path, name):
    refused(saved(tmp_path / "mal.ckpt", without(published(), name)), f"{name.removeprefix('student.')} is missing")


def test_a_tensor_too_many_is_named(tmp_path):
    extra = {"student.mask_head.extra.weight": torch.ones(2), "student.backbone.head.bias": torch.ones(1000)}

    message = refused(saved(tmp_path / "mal.ckpt", published() | extra))

    assert "not expected: student.backbone.head.bias, student.mask_head.extra.weight" in message


def test_a_tensor_beside_the_two_networks_is_named(tmp_path):
    refused(saved(tmp_path / "mal.ckpt", published() | {"critic.weight": torch.ones(2)}), "has not: critic.weight")


def test_a_tensor_of_another_size_is_named(tmp_path):
    wrong = {"student.backbone.blocks.1.mlp.fc1.weight": torch.ones(128, 64)}

    refused(saved(tmp_path / "mal.ckpt", published() | wrong), "blocks.1.mlp.fc1.weight (128, 64)", "(256, 64)")


def test_a_tensor_of_whole_numbers_is_named(tmp_path):
    wrong = {"student.backbone.norm.weight": torch.ones(64, dtype=torch.int8)}

    refused(saved(tmp_path / "mal.ckpt", published() | wrong), "of another size: student.backbone.norm.weight", "int8")


def test_a_position_embedding_that_is_no_square_is_refused(tmp_path):
    wrong = {"student.backbone.pos_embed": torch.ones(1, 198, 64)}

    refused(saved(tmp_path / "mal.ckpt", published() | wrong), "198 rows; expected one more than a square")


def test_a_width_that_heads_cannot_be_told_from_is_refused(tmp_path):
    sizes = replace(SMALL, dim=48, heads=3)

    refused(saved(tmp_path / "mal.ckpt", published(sizes)), "48 channels; expected a multiple of 64")


def test_a_tensor_of_another_rank_is_refused(tmp_path):
    wrong = {"student.backbone.cls_token": torch.ones(64)}

    refused(saved(tmp_path / "mal.ckpt", published() | wrong), "cls_token has the shape (64,), expected 3 dimensions")


def test_a_file_whose_two_networks_differ_is_refused(tmp_path):
    other = published(replace(SMALL, depth=1), ("teacher",))
    mixed = {**published(roles=("student",)), **other}

    refused(saved(tmp_path / "mal.ckpt", mixed), "mixes networks", "expected one architecture")


# The two layouts


@BOTH_STEMS
def test_the_tensors_of_one_layout_under_the_names_of_the_other_are_refused(tmp_path, stem):
    """MAL-4: checkpoints of the conv stem do not load into TAO 6, nor its own anywhere else."""
    one, other = "patch_embed.proj.3.3.", "patch_embed.proj."
    if stem == "conv":
        renamed = {name.replace(one, other): tensor for name, tensor in published().items()}
        renamed = {name: t for name, t in renamed.items() if not re.search(r"patch_embed\.proj\.\d", name)}
    else:
        tensors = published(replace(SMALL, stem="patch"))
        renamed = {name.replace(other, "patch_embed.proj.0.0."): tensor for name, tensor in tensors.items()}

    refused(saved(tmp_path / "mal.ckpt", renamed), "does not fit", "of another size")


def test_a_file_that_mixes_the_layouts_is_refused(tmp_path):
    """MAL-4: checkpoints of the conv stem do not load into TAO 6, nor its own anywhere else."""
    patch = published(replace(SMALL, stem="patch"))

    refused(saved(tmp_path / "mal.ckpt", published() | patch), "two layouts are mixed", "give the file as it was saved")


def test_networks_of_different_layouts_are_refused(tmp_path):
    mixed = published(roles=("student",)) | published(replace(SMALL, stem="patch"), ("teacher",))

    refused(saved(tmp_path / "mal.ckpt", mixed), "mixes networks")


def test_a_file_without_a_stem_is_refused(tmp_path):
    tensors = {name: tensor for name, tensor in published().items() if "patch_embed" not in name}

    refused(saved(tmp_path / "mal.ckpt", tensors), "found neither", "expected one of them")


# Other files


@pytest.mark.parametrize(
    ("names", "kind", "way_out"),
    [
        (["module.feat_map.weight", "module.transformer.level_embed"], "Grounding DINO", "grounding_dino.checkpoint"),
        (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"], "a bare backbone", "training can start"),
        (["backbone.cls_token", "mask_head.convs.0.conv.bias"], "without its prefix", "under 'student.'"),
        (["image_encoder.blocks.0.attn.qkv.weight"], "a Segment Anything", "use segmenter sam or sam2"),
        (["conv1.weight", "fc.bias"], "conv1.weight, fc.bias", "that MAL's training saved"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_it_is_and_the_way_out(tmp_path, names, kind, way_out):
    path = saved(tmp_path / "other.pth", {name: torch.ones(2) for name in names})

    refused(path, "no Mask Auto-Labeler", kind, way_out)


def test_a_network_with_a_fan_backbone_is_refused(tmp_path):
    """MAL-1: some of them could never work."""
    tensors = without(published(), "student.backbone.pos_embed")
    tensors["student.backbone.cls_attn_blocks.0.norm1.weight"] = torch.ones(64)

    refused(saved(tmp_path / "fan.pth", tensors), "no plain vision transformer", "FAN", "use a checkpoint with a ViT")


def test_an_encrypted_file_is_refused_with_the_reason(tmp_path):
    torch.save({"state_dict": b"\x8a\x01", "state_dict_encrypted": True}, tmp_path / "mal.pth")
    (tmp_path / "mal.tlt").write_bytes(b"\x8a\x01")

    refused(tmp_path / "mal.pth", "is encrypted", "without an encryption key")
    refused(tmp_path / "mal.tlt", "encrypted", "without an encryption key")


def test_a_pickle_with_other_objects_is_not_opened_and_the_message_says_how_to_save_its_tensors(tmp_path):
    old, new = tmp_path / "mal.ckpt", tmp_path / "tensors.pth"
    torch.save(lightning(published()) | {"hyper_parameters": SimpleNamespace(lr=1)}, old)

    message = refused(old, "types.SimpleNamespace", "a pickle can run code")
    torch.save({"state_dict": torch.load(old, weights_only=False)["state_dict"]}, new)

    assert "torch.save({'state_dict': torch.load(old, weights_only=False)['state_dict']}, new)" in message
    assert load_network(new).architecture == SMALL


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-has-gone-off",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(lightning(published()) | {"callbacks": Bomb()}, "mal.ckpt")

    refused(Path("mal.ckpt"), "mkdir")
    assert not Path("bomb-has-gone-off").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["lightning.ckpt", "old.pth", "bare.safetensors"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name, share):
    CONTAINERS[name](published(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])

    refused(tmp_path / name, "fetch it again")


@pytest.mark.filterwarnings("error")
def test_a_file_of_the_old_format_is_refused_wherever_it_was_cut_off(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(3)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    for end in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:end])
        refused(tmp_path / "cut.pth", "fetch it again")


def test_an_original_file_takes_what_it_cannot_tell_from_the_overrides(tmp_path):
    path = saved(tmp_path / "mal.pth", published())

    network = load_network(path, overrides=Overrides(adjusts_scale=False, scale_before=2))

    assert network.architecture == replace(SMALL, adjusts_scale=False, scale_before=2)


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("sparse.pth", {"a": torch.ones(2, 2).to_sparse()}, "holds sparse tensors (a); save them dense"),
        ("list.pth", [torch.ones(2)], "holds list; expected tensors by name"),
        ("number.pth", {"state_dict": 3}, "holds int; expected tensors by name"),
        ("plain.pth", {"epoch": 3}, "holds no tensors, but epoch"),
    ],
)
def test_a_file_without_tensors_by_name_is_refused(tmp_path, name, content, saying):
    torch.save(content, tmp_path / name)

    refused(tmp_path / name, saying)


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
    refused(tmp_path / "mal.ckpt", "does not exist; check the path")


def test_a_file_of_another_suffix_is_refused(tmp_path):
    (tmp_path / "mal.onnx").write_bytes(b"")

    refused(tmp_path / "mal.onnx", "is a .onnx; expected .ckpt, .pth, .pt, .safetensors, or a folder")
