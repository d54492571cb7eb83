"""The spec of a training: TAO's as it is, ours beside it, and every problem at once."""

import json
import re

import jsonschema
import pytest
import yaml

from flows import spec_docs
from flows.spec_files import read_train_mal_spec, shipped_training_specs
from tasks.domain.errors import SpecError
from tasks.domain.spec_fields import SpecBlock, blocks_in, is_unused
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.formats.spec_yaml import parse_root, spec_as_dict

# A train spec of TAO 6 to 7 with every key at its default; what a user has to fill in is filled in.
TAO = """
model_name: mal
encryption_key: tlt_encode
results_dir: /results/mal
strategy: ddp
wandb: {enable: true, project: TAO Toolkit, tags: [training, tao-toolkit], reinit: false}
dataset:
  type: coco
  train_ann_path: /data/instances_train.json
  train_img_dir: /data/train
  val_ann_path: /data/instances_val.json
  val_img_dir: /data/val
  min_obj_size: 2048
  max_obj_size: 1e10
  num_workers_per_gpu: 2
  load_mask: true
  crop_size: 512
model:
  arch: vit-mae-base/16
  frozen_stages: [-1]
  mask_head_num_convs: 4
  mask_head_hidden_channel: 256
  mask_head_out_channel: 256
  teacher_momentum: 0.996
  not_adjust_scale: false
  mask_scale_ratio_pre: 1
  mask_scale_ratio: 2.0
  vit_dpr: 0
train:
  num_gpus: 1
  gpu_ids: [0]
  num_nodes: 1
  seed: 1234
  cudnn: {benchmark: false, deterministic: true}
  num_epochs: 10
  checkpoint_interval: 1
  checkpoint_interval_unit: epoch
  validation_interval: 1
  resume_training_checkpoint_path: null
  results_dir: elsewhere
  batch_size: 3
  accum_grad_batches: 1
  use_amp: true
  pretrained_model_path: null
  optim_type: adamw
  optim_momentum: 0.9
  lr: 1e-6
  min_lr: 0
  min_lr_rate: 0.2
  num_wave: 1
  wd: 0.0005
  optim_eps: 1e-8
  optim_betas: [0.9, 0.9]
  warmup_epochs: 1
  margin_rate: [0, 1.2]
  test_margin_rate: [0.6, 0.6]
  mask_thres: [0.1]
  loss_mil_weight: 4
  loss_crf_weight: 0.5
  crf_zeta: 0.1
  crf_kernel_size: 3
  crf_num_iter: 100
  loss_crf_step: 4000
  loss_mil_step: 1000
  crf_size_ratio: 1
  crf_value_high_thres: 0.9
  crf_value_low_thres: 0.1
evaluate: {num_gpus: 1, checkpoint: /results/mal.pth, batch_size: 3, use_flip_test: false}
inference: {num_gpus: 1, checkpoint: /results/mal.pth, ann_path: a.json, img_dir: b, label_dump_path: c.json}
"""
MINE = {"results_dir": "out", "dataset": {"train_ann_path": "boxes.json", "train_img_dir": "images"}}


def parse(text: str, *overrides: str) -> TrainMalSpec:
    return parse_root(TrainMalSpec, text, overrides, source="spec.yaml")


def mine(*overrides: str) -> TrainMalSpec:
    return parse(yaml.safe_dump(MINE), *overrides)


def problems_of(*overrides: str) -> str:
    with pytest.raises(SpecError) as refused:
        mine(*overrides)
    return str(refused.value)


def blocks_of(block: type[SpecBlock]) -> list[type[SpecBlock]]:
    inner = [part for field in block.model_fields.values() for part in blocks_in(field.annotation)]
    return [block, *(found for part in inner for found in blocks_of(part))]


# --- TAO's specs


def test_a_train_spec_of_tao_runs_as_it_is() -> None:
    spec = parse(TAO)
    assert (spec.train.lr, spec.dataset.max_obj_size, spec.train.optim_betas) == (1e-6, 1e10, (0.9, 0.9))


def test_the_keys_of_tao_that_have_no_effect_are_named() -> None:
    """MAL-8, MAL-22: TAO documents `strategy`, which its code no longer has."""
    named = ["encryption_key", "evaluate", "inference", "model_name", "strategy", "train.min_lr", "train.num_nodes"]
    assert set(named) <= set(parse(TAO).unused_keys())


def test_no_other_key_of_tao_is_named() -> None:
    kept = {"evaluate", "inference", "wandb", "model_name", "encryption_key", "strategy", "dataset.type"}
    kept |= {f"train.{key}" for key in ("num_nodes", "min_lr", "optim_momentum", "results_dir")}
    assert set(parse(TAO).unused_keys()) == kept


def test_every_default_is_that_of_tao() -> None:
    asked = yaml.safe_load(TAO.replace("1e10", "1.0e+10").replace("1e-6", "1.0e-6").replace("1e-8", "1.0e-8"))
    spec = mine()
    for name, block in (("model", spec.model), ("train", spec.train), ("dataset", spec.dataset)):
        for key, value in asked[name].items():
            if not key.endswith(("_path", "_dir")) and key != "cudnn":
                found = getattr(block, key)
                assert (list(found) if isinstance(found, tuple) else found) == value, key


def test_the_older_names_of_tao_are_accepted_and_named() -> None:
    spec = mine("gpu_ids=[0]", "train.save_every_k_epoch=1", "train.val_interval=1")
    assert spec.unused_keys() == ["gpu_ids", "train.save_every_k_epoch", "train.val_interval"]


# --- problems


def test_what_is_missing_is_told_all_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        parse("{}")
    assert re.findall(r"^  (\S+):", str(refused.value), re.MULTILINE) == [
        "results_dir",
        "dataset.train_ann_path",
        "dataset.train_img_dir",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.crop_size=100", "dataset.crop_size: found 100, expected a multiple of 32"),
        ("dataset.crop_size=16", "dataset.crop_size: found 16, expected at least 32"),
        ("dataset.min_obj_size=1e10", "dataset.min_obj_size: found 10000000000.0, expected less than max_obj_size"),
        ("dataset.val_ann_path=v.json", "dataset.val_img_dir: found nothing, expected both of val_ann_path and"),
        ("model.dim=96", "model.depth: found nothing, expected all of dim, depth and heads, or none of them"),
        ("model={dim: 96, depth: 4, heads: 5}", "model.dim: found 96, expected a multiple of 8 and of heads (5)"),
        ("model.frozen_stages=[]", "model.frozen_stages: found an empty list, expected at least 1 of them"),
        ("model.mask_scale_ratio=1", "model.mask_scale_ratio: found 1.0, expected 2 where the map follows"),
        ("model.mask_head_num_convs=3", "model.mask_head_num_convs: found 3, expected at least 4"),
        ("model.arch=fan_small_12_p4_hybrid", "model.arch: found"),
        ("train.gpu_ids=[1, 1]", "train.gpu_ids: found a list, expected every GPU once"),
        ("train.seed=4294967296", "train.seed: found 4294967296, expected at most 4294967295"),
        ("train.optim_eps=0", "train.optim_eps: found 0, expected more than 0"),
        ("train.crf_kernel_size=4", "train.crf_kernel_size: found 4, expected an odd number"),
        ("train.margin_rate=[1.2, 0]", "train.margin_rate: found a list, expected the smaller number first"),
        ("train.crf_value_low_thres=0.95", "train.crf_value_low_thres: found 0.95, expected less than"),
        ("train.mask_thres=[0.1, 0.2]", "train.mask_thres: found a list, expected 1 or 3 thresholds"),
        ("results_dir=???", "results_dir: fill in: found ???"),
        ("train.epochs=3", "train.epochs: unknown key; did you mean num_epochs?"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_where_it_stands(override: str, message: str) -> None:
    assert message in problems_of(override)


def test_stages_to_freeze_can_be_named_one_by_one() -> None:
    assert mine("model.frozen_stages=[0, 2, 4]").model.frozen_stages == (0, 2, 4)


def test_a_crop_of_an_odd_number_of_tokens_fits_a_network_of_one_scale() -> None:
    spec = mine("dataset.crop_size=48", "model.not_adjust_scale=true", "model.mask_scale_ratio=1.0")
    assert spec.dataset.crop_size == 48


# --- what the weights depend on


@pytest.mark.parametrize(
    "override",
    ["results_dir=b", "dataset.num_workers_per_gpu=0", "train.checkpoint_interval_unit=step", "train.mask_thres=[0.5]"],
)
def test_where_and_how_fast_is_no_part_of_what_is_learned(override: str) -> None:
    assert mine(override).learned_from == mine().learned_from


@pytest.mark.parametrize(
    "override", ["train.lr=2e-6", "model.dim=8", "dataset.crop_size=64", "train.seed=1", "train.amp_precision=bf16"]
)
def test_every_part_of_the_recipe_is(override: str) -> None:
    overrides = [override, "model.depth=1", "model.heads=1"] if "dim" in override else [override]
    assert mine(*overrides).learned_from != mine().learned_from


def test_secrets_are_in_nothing_that_is_written_down() -> None:
    spec = mine("storage_options={secret: hunter2}")
    written = [json.dumps(spec_as_dict(spec)), spec.model_dump_json(), json.dumps(spec.learned_from), repr(spec)]
    assert not any("hunter2" in text for text in written)


# --- what is made from the model, and what ships


def test_the_schema_in_the_repository_is_that_of_the_model() -> None:
    assert spec_docs.TRAINING_SCHEMA_FILE.read_text(encoding="utf-8") == spec_docs.training_schema()


def test_the_page_in_the_repository_is_that_of_the_model() -> None:
    assert spec_docs.TRAINING_PAGE_FILE.read_text(encoding="utf-8") == spec_docs.training_page()


def test_every_key_that_is_read_says_what_it_means() -> None:
    fields = [(name, field) for block in blocks_of(TrainMalSpec) for name, field in block.model_fields.items()]
    silent = [name for name, f in fields if not (is_unused(f) or f.description or blocks_in(f.annotation))]
    assert silent == []


def test_the_page_has_a_row_for_every_key_that_is_read() -> None:
    page = spec_docs.training_page()
    fields = [(name, field) for block in blocks_of(TrainMalSpec) for name, field in block.model_fields.items()]
    keys = [name for name, field in fields if not is_unused(field) and not blocks_in(field.annotation)]
    assert [key for key in keys if f"\n| `{key}` | " not in page] == []


def test_the_spec_that_ships_is_complete_once_it_is_filled_in() -> None:
    filled = ["results_dir=r", "dataset.train_ann_path=a", "dataset.train_img_dir=i"]
    assert read_train_mal_spec("train_mal", filled).unused_keys() == []


def test_the_spec_that_ships_follows_the_schema_that_editors_check_it_with() -> None:
    (path,) = shipped_training_specs().values()
    schema = json.loads(spec_docs.TRAINING_SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)
