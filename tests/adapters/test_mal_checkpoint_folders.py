"""Checkpoints of Mask Auto-Labeler in the folders that our training writes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.domain.errors import CheckpointError, SpecError
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.checkpoints import Overrides, describe_mal, load_mal, load_network, save_checkpoint
from tasks.models.mal.network import MalNetwork

SMALL = MalArchitecture(dim=64, depth=2, heads=1, head_hidden=16, head_out=16)


def network(sizes: MalArchitecture, seed: int) -> MalNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MalNetwork(sizes)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_checkpoint(tmp_path / "own", {"student": network(SMALL, 0), "teacher": network(SMALL, 1)}, 128)
    return tmp_path / "own"


@pytest.mark.parametrize(
    "changes", [{}, {"stem": "patch"}, {"dim": 48, "heads": 3}, {"adjusts_scale": False, "scale_before": 2}], ids=str
)
def test_what_was_saved_is_loaded_again_bit_by_bit(tmp_path, changes):
    sizes = replace(SMALL, **changes)
    student, teacher = network(sizes, 0), network(sizes, 1)

    save_checkpoint(tmp_path, {"student": student, "teacher": teacher}, 128)
    description, loaded = load_mal(tmp_path, ("student", "teacher"))

    assert (description.architecture, description.crop_size) == (sizes, 128)
    for before, after in zip((student, teacher), loaded, strict=True):
        assert all(torch.equal(tensor, after.state_dict()[key]) for key, tensor in before.state_dict().items())


def test_half_precision_takes_half_of_the_bytes_and_is_loaded_in_single_precision(tmp_path):
    student = network(SMALL, 0)

    save_checkpoint(tmp_path / "whole", {"student": student}, 128)
    save_checkpoint(tmp_path / "half", {"student": student}, 128, dtype=torch.float16)

    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    for key, tensor in load_network(tmp_path / "half").state_dict().items():
        assert torch.equal(tensor, student.state_dict()[key].half().float())


def test_the_folder_holds_the_names_of_the_original_files_and_all_that_no_tensor_tells(folder):
    config = json.loads((folder / "config.json").read_text())

    assert config["model_type"] == "mal"
    assert config["format"] == 1
    assert config["crop_size"] == 128
    assert MalArchitecture(**config["architecture"]) == SMALL
    names = {f"{role}.{name}" for role in ("student", "teacher") for name in network(SMALL, 0).state_dict()}
    assert load_file(folder / "model.safetensors").keys() == names


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    save_checkpoint(tmp_path / "again", {"teacher": network(SMALL, 1), "student": network(SMALL, 0)}, 128)

    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_saving_into_a_folder_replaces_the_checkpoint_in_it(folder):
    save_checkpoint(folder, {"student": network(replace(SMALL, depth=1), 0)}, 64)

    assert describe_mal(folder, ("student",)).architecture.depth == 1


def test_a_folder_with_the_student_alone_has_no_teacher_to_load(tmp_path):
    save_checkpoint(tmp_path, {"student": network(SMALL, 0)}, 128)

    with pytest.raises(CheckpointError, match="holds no teacher; use weights student"):
        load_network(tmp_path, "teacher")


def test_a_diverged_network_is_not_saved(tmp_path):
    broken = network(SMALL, 0)
    torch.nn.init.constant_(broken.roi_head.mlp1.bias, float("nan"))

    with pytest.raises(CheckpointError, match=r"not finite in torch\.float32, in student\.roi_head\.mlp1\.bias"):
        save_checkpoint(tmp_path / "own", {"student": broken}, 128)
    assert not (tmp_path / "own").exists()


def test_numbers_that_half_precision_has_not_are_not_saved_in_it(tmp_path):
    large = network(SMALL, 0)
    torch.nn.init.constant_(large.roi_head.mlp1.bias, 1e5)

    with pytest.raises(CheckpointError, match=r"needs torch\.float32"):
        save_checkpoint(tmp_path / "own", {"student": large}, 128, dtype=torch.float16)


def test_networks_of_different_architectures_are_not_saved_together(tmp_path):
    with pytest.raises(CheckpointError, match="2 architectures"):
        save_checkpoint(tmp_path, {"student": network(SMALL, 0), "teacher": network(replace(SMALL, depth=1), 0)}, 128)
    with pytest.raises(CheckpointError, match="0 architectures"):
        save_checkpoint(tmp_path, {}, 128)


def test_a_crop_that_the_network_cannot_take_is_not_saved(tmp_path):
    with pytest.raises(SpecError, match="expected a multiple of 32"):
        save_checkpoint(tmp_path, {"student": network(SMALL, 0)}, 100)


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"model_type": "sam"}, "is of a 'sam', expected 'mal'; for another model set segmenter"),
        ({"format": 2}, "is of format 2, expected 1; update this package"),
        ({"crop_size": "128"}, "crop_size: Input should be a valid integer"),
        ({"crop_size": 0}, "crop_size: Input should be greater than 0"),
        ({"architecture": {"dim": 64}}, "architecture.depth"),
        ({"architecture": {"dim": 64, "depth": 2, "heads": 1, "colour": 3}}, "architecture.colour"),
        ({"architecture": {"dim": 64, "depth": 2, "heads": 7}}, "expected positive numbers"),
        ({"author": "me"}, "author: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_is_refused(folder, changes, saying):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))

    with pytest.raises(CheckpointError, match=re.escape(saying)):
        load_network(folder)


def test_tensors_that_do_not_fit_the_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"a network of 3 blocks.*missing: student\.backbone\.blocks\.2\.attn"):
        load_network(folder)


def test_a_config_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_network(folder)


def test_a_folder_without_a_checkpoint_is_refused_and_its_files_are_named(tmp_path):
    (tmp_path / "epoch=6.ckpt").touch()

    with pytest.raises(
        CheckpointError, match=r"lacks config\.json .* original checkpoint, give the file: epoch=6\.ckpt"
    ):
        load_network(tmp_path)


def test_what_is_said_goes_before_what_a_folder_says(tmp_path):
    save_checkpoint(tmp_path, {"student": network(replace(SMALL, adjusts_scale=False, scale_before=2), 0)}, 128)

    assert describe_mal(tmp_path, ("student",)).architecture.scale_before == 2
    said = describe_mal(tmp_path, ("student",), Overrides(adjusts_scale=True, scale_before=1))
    assert said.architecture == SMALL
