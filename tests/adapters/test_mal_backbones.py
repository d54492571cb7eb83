"""Backbones that a training of Mask Auto-Labeler starts from: files as MAE and DeiT are published, made here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.domain.errors import CheckpointError
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.backbones import load_backbone
from tasks.models.mal.checkpoints import save_checkpoint
from tasks.models.mal.network import MalNetwork

SMALL = MalArchitecture(dim=64, depth=2, heads=1, head_hidden=16, head_out=16)
PATCH = replace(SMALL, stem="patch")
DEIT_EXTRAS = {"head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000)}
MAE_EXTRAS = {
    "mask_token": torch.ones(1, 1, 32),
    "decoder_pos_embed": torch.ones(1, 197, 32),
    "decoder_blocks.0.norm1.weight": torch.ones(32),
}


def network(sizes: MalArchitecture, seed: int) -> MalNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MalNetwork(sizes)


def pretrained() -> dict[str, Tensor]:
    """The tensors of a plain vision transformer by the names of MAE and DeiT."""
    return network(PATCH, 5).backbone.state_dict()


def saved(path: Path, tensors: dict[str, Tensor], key: str | None = "model") -> Path:
    torch.save(tensors if key is None else {key: tensors, "epoch": 3}, path)
    return path


def weights(of: MalNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("extras", [{}, DEIT_EXTRAS, MAE_EXTRAS], ids=["plain", "deit", "mae"])
def test_a_backbone_goes_into_the_network_without_its_classifier_or_decoder(tmp_path, extras, key):
    student = network(PATCH, 0)
    before = weights(student)

    left = load_backbone(student, saved(tmp_path / "vit.pth", pretrained() | extras, key))

    assert left == ("roi_head", "mask_head")
    assert all(torch.equal(tensor, pretrained()[key]) for key, tensor in student.backbone.state_dict().items())
    heads = [name for name in before if not name.startswith("backbone.")]
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in heads)


def test_the_convolutions_of_the_conv_stem_stay_random_and_this_is_said(tmp_path):
    """MAL-4: no published backbone has them."""
    student = network(SMALL, 0)
    before = weights(student)

    left = load_backbone(student, saved(tmp_path / "vit.pth", pretrained()))

    assert left == ("backbone.patch_embed", "roi_head", "mask_head")
    for name, tensor in student.backbone.state_dict().items():
        expected = before[f"backbone.{name}"] if name.startswith("patch_embed.") else pretrained()[name]
        assert torch.equal(tensor, expected)


def test_a_patch_embedding_of_another_kernel_stays_out_and_this_is_said(tmp_path):
    """The file of huge/14 has patches of 14 pixels, and the published network tokens of 16."""
    kernel = {"patch_embed.proj.weight": torch.ones(64, 3, 14, 14)}

    assert "backbone.patch_embed" in load_backbone(
        network(PATCH, 0), saved(tmp_path / "vit.pth", pretrained() | kernel)
    )


@pytest.mark.parametrize("missing", ["cls_token", "pos_embed", "blocks.1.mlp.fc2.bias", "norm.weight"])
def test_a_backbone_with_a_gap_is_refused_and_the_network_stays_as_it_was(tmp_path, missing):
    student = network(SMALL, 0)
    before = weights(student)
    tensors = {name: tensor for name, tensor in pretrained().items() if name != missing}

    with pytest.raises(CheckpointError, match=f"missing: {missing}"):
        load_backbone(student, saved(tmp_path / "vit.pth", tensors))

    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"pos_embed": torch.ones(1, 198, 64)}, r"of another size: pos_embed \(1, 198, 64\)"),
        ({"pos_embed": torch.ones(1, 196, 64)}, r"of another size: pos_embed \(1, 196, 64\)"),
        ({"pos_embed": torch.ones(1, 577, 64)}, "pretrained on 224 pixels"),
        ({"dist_token": torch.ones(1, 1, 64)}, "a distilled DeiT, which has two class tokens; use MAE, or a DeiT"),
        ({"blocks.0.gamma_1": torch.ones(64)}, "a DeiT III or BEiT, whose blocks scale their answers"),
        ({"blocks.2.norm1.weight": torch.ones(64)}, r"not expected: blocks\.2\.norm1\.weight"),
        ({"cls_token": torch.ones(1, 1, 128)}, "give the file of the same size"),
    ],
    ids=["198 rows", "196 rows", "384 pixels", "distilled", "deit iii", "a block too many", "another width"],
)
def test_a_backbone_of_another_kind_or_size_is_refused(tmp_path, changes, saying):
    with pytest.raises(CheckpointError, match=saying):
        load_backbone(network(SMALL, 0), saved(tmp_path / "vit.pth", pretrained() | changes))


def test_a_moco_is_refused_and_never_leaves_the_backbone_random(tmp_path):
    """Its names match none, which once went unnoticed."""
    tensors = {f"module.base_encoder.{name}": tensor for name, tensor in pretrained().items()}

    with pytest.raises(CheckpointError, match="a MoCo, whose backbone has other names; use MAE"):
        load_backbone(network(SMALL, 0), saved(tmp_path / "vit.pth", tensors, "state_dict"))


@pytest.mark.parametrize("own_format", [True, False], ids=["folder", "lightning"])
def test_a_whole_mal_gives_its_student(tmp_path, own_format):
    trained, student = network(SMALL, 1), network(replace(SMALL, adjusts_scale=False), 0)
    path = tmp_path / "mal"
    if own_format:
        save_checkpoint(path, {"student": trained, "teacher": network(SMALL, 2)}, 128)
    else:
        path = path.with_suffix(".ckpt")
        both = {"student": trained, "teacher": network(SMALL, 2)}
        tensors = {f"{role}.{name}": tensor for role, one in both.items() for name, tensor in one.state_dict().items()}
        saved(path, tensors, "state_dict")

    assert load_backbone(student, path) == ()
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"depth": 1}, r"model\.depth \(or arch\) is 1 there and 2 here;"),
        ({"stem": "patch"}, r"model\.stem is patch there and conv here;"),
        ({"dim": 128, "heads": 2}, r"model\.dim \(or arch\) is 128 there and 64 here, model\.heads \(or arch\) is 2"),
        ({"head_out": 8}, r"model\.mask_head_out_channel is 8 there and 16 here;"),
        ({"grid": 8}, r"the grid of tokens \(dataset\.crop_size / 16 with model\.dim\) is 8 there and 14 here;"),
    ],
    ids=str,
)
def test_a_mal_of_another_architecture_is_refused_with_what_differs_in_the_words_of_the_spec(tmp_path, changes, saying):
    save_checkpoint(tmp_path, {"student": network(replace(SMALL, **changes), 1)}, 128)

    with pytest.raises(CheckpointError, match=f"is another network: {saying}"):
        load_backbone(network(SMALL, 0), tmp_path)


def test_heads_that_no_tensor_tells_are_compared_too(tmp_path):
    save_checkpoint(tmp_path, {"student": network(replace(SMALL, heads=4), 1)}, 128)

    with pytest.raises(CheckpointError, match=r"model\.heads \(or arch\) is 4 there and 1 here"):
        load_backbone(network(SMALL, 0), tmp_path)
