"""A training under Prefect: what it leaves, that it goes on where it stopped, and what it refuses before it begins."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from flows import train_mal as flow_module
from flows.train_mal import train_mal
from tasks.domain.errors import CheckpointError, ImageError, SpecError
from tasks.domain.scenes import SHAPES, draw_scene
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.formats.scene_truth import dump_scene_truth
from tasks.models.mal.checkpoints import load_network
from tasks.models.mal.training_state import dump_state, load_state

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

NETWORK = {"dim": 16, "depth": 1, "heads": 2, "mask_head_hidden_channel": 8, "mask_head_out_channel": 8}
RECIPE = {"num_epochs": 2, "batch_size": 4, "lr": 1e-3, "loss_mil_step": 0, "loss_crf_step": 2, "crf_num_iter": 3}

MakeSpec = Callable[..., TrainMalSpec]


def draw(folder: Path, seeds: range) -> None:
    """Drawn scenes under images/, and boxes.json with their boxes and masks."""
    scenes = [(f"{seed}.png", draw_scene(seed, width=96, height=96)) for seed in seeds]
    (folder / "images").mkdir(parents=True)
    for name, scene in scenes:
        Image.fromarray(scene.pixels).save(folder / "images" / name)
    (folder / "boxes.json").write_bytes(dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))


@pytest.fixture
def make_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSpec:
    """Makes a spec of a tiny network over two scenes to learn from and one to measure with."""
    monkeypatch.setenv("AUTOLABEL_DEVICE", "cpu")
    draw(tmp_path / "train", range(2))
    draw(tmp_path / "val", range(5, 6))

    def made(results: str = "out", dataset: Mapping[str, Any] | None = None, **train: Any) -> TrainMalSpec:
        data = {
            "train_ann_path": str(tmp_path / "train" / "boxes.json"),
            "train_img_dir": str(tmp_path / "train" / "images"),
            "val_ann_path": str(tmp_path / "val" / "boxes.json"),
            "val_img_dir": str(tmp_path / "val" / "images"),
            "crop_size": 32,
            "min_obj_size": 0,
        }
        return TrainMalSpec.model_validate(
            {
                "results_dir": str(tmp_path / results),
                "dataset": data | dict(dataset or {}),
                "model": NETWORK,
                "train": RECIPE | train,
            }
        )

    return made


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


class PowerCut:
    """A step that ends the run."""

    def submit(self, *arguments: Any) -> Any:
        raise RuntimeError("power cut")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "mal" / "model.safetensors")


def test_a_training_leaves_networks_record_and_curve(make_spec: MakeSpec, tmp_path: Path) -> None:
    train_mal(make_spec())
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left >= {"mal", "mal_best", "checkpoints", "train.json", "training_curve.svg", "status.json"}
    assert '"SUCCESS"' in (tmp_path / "out" / "status.json").read_text().splitlines()[-1]


def test_the_record_tells_the_course_of_the_training(make_spec: MakeSpec, tmp_path: Path) -> None:
    record = train_mal(make_spec())
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    boxes = json.loads((tmp_path / "train" / "boxes.json").read_text())["annotations"]
    assert (written["boxes"], [epoch["epoch"] for epoch in written["epochs"]]) == (len(boxes), [0, 1])
    assert all(epoch["samples"] % 4 == 0 and epoch["samples"] >= len(boxes) for epoch in written["epochs"])
    assert written["best_epoch"] in (0, 1)
    assert json.loads(json.dumps(record.to_json())) == written


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_network_opens_as_a_checkpoint_to_label_with(make_spec: MakeSpec, tmp_path: Path, role: Any) -> None:
    train_mal(make_spec())
    assert load_network(tmp_path / "out" / "mal", role).architecture.dim == NETWORK["dim"]


def test_the_same_spec_again_trains_nothing_more(make_spec: MakeSpec, tmp_path: Path) -> None:
    first = train_mal(make_spec())
    before = (tmp_path / "out" / "mal" / "model.safetensors").read_bytes()
    assert train_mal(make_spec()) == first
    assert (tmp_path / "out" / "mal" / "model.safetensors").read_bytes() == before


def test_a_training_that_broke_off_between_epochs_goes_on_to_the_same_bytes(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAL-11: users who resumed the published training got NaN from the second batch on."""
    train_mal(make_spec("straight"))
    with monkeypatch.context() as patch:
        patch.setattr(flow_module, "validate_epoch", PowerCut())
        with pytest.raises(RuntimeError, match="power cut"):
            train_mal(make_spec())
    record = train_mal(make_spec())
    results = [(tmp_path / name / "mal" / "model.safetensors").read_bytes() for name in ("straight", "out")]
    assert results[0] == results[1]
    assert all(epoch.validation for epoch in record.epochs)


def test_another_recipe_does_not_go_on_from_this_state(make_spec: MakeSpec) -> None:
    train_mal(make_spec(num_epochs=1))
    with pytest.raises(SpecError, match=r"train\.lr: 0\.001 then, 0\.002 now\n.*choose another results_dir"):
        train_mal(make_spec(num_epochs=1, lr=2e-3))


def test_other_boxes_do_not_go_on_from_this_state(make_spec: MakeSpec, tmp_path: Path) -> None:
    train_mal(make_spec(num_epochs=1))
    edit(tmp_path / "train" / "boxes.json", lambda document: document["annotations"].pop())
    with pytest.raises(SpecError, match="boxes: "):
        train_mal(make_spec(num_epochs=1))


def test_where_and_how_fast_may_change_between_two_runs(make_spec: MakeSpec) -> None:
    first = train_mal(make_spec())
    again = train_mal(make_spec(dataset={"num_workers_per_gpu": 0}, checkpoint_interval_unit="step"))
    assert again.epochs == first.epochs


def test_a_training_goes_on_from_the_state_of_another_results_dir(make_spec: MakeSpec, tmp_path: Path) -> None:
    first = train_mal(make_spec())
    state = tmp_path / "out" / "checkpoints" / "last.pt"
    again = train_mal(make_spec("elsewhere", resume_training_checkpoint_path=str(state)))
    assert [epoch.projection_loss for epoch in again.epochs] == [epoch.projection_loss for epoch in first.epochs]


def test_a_state_that_is_not_there_is_an_error_that_says_what_is_expected(make_spec: MakeSpec) -> None:
    with pytest.raises(CheckpointError, match=r"resume_training_checkpoint_path none\.pt cannot be read: No such file"):
        train_mal(make_spec(resume_training_checkpoint_path="none.pt"))


def test_a_state_of_another_training_is_refused_by_its_path(make_spec: MakeSpec, tmp_path: Path) -> None:
    train_mal(make_spec(num_epochs=1))
    state = tmp_path / "out" / "checkpoints" / "last.pt"
    with pytest.raises(SpecError) as refused:
        train_mal(make_spec("elsewhere", num_epochs=1, lr=2e-3, resume_training_checkpoint_path=str(state)))
    assert f"train.resume_training_checkpoint_path {state} is of another training" in str(refused.value)
    assert "leave it out to begin anew, or give the mal folder beside" in str(refused.value)


def test_a_state_from_before_a_key_existed_goes_on_where_the_key_has_its_default(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    first = train_mal(make_spec(num_epochs=1))
    file = tmp_path / "out" / "checkpoints" / "last.pt"
    state = load_state(file.read_bytes(), "last.pt")
    del state.asked["train.wd"], state.asked["train.augmentation.flip_prob"]
    file.write_bytes(dump_state(state))
    assert train_mal(make_spec(num_epochs=1)).epochs == first.epochs


@pytest.mark.parametrize("device", ["foo", "cuda:77"])
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    spec = make_spec()
    monkeypatch.setenv("AUTOLABEL_DEVICE", device)
    with pytest.raises(SpecError, match=f"device '{device}' cannot be used"):
        train_mal(spec)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"status.json"}


def test_boxes_that_were_measured_with_are_checked_again_before_they_are_learned_from(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    def widen(document: dict[str, Any]) -> None:
        for row in document["annotations"]:
            row["bbox"] = [0, 0, 96, 96]

    edit(tmp_path / "val" / "boxes.json", widen)
    train_mal(make_spec(num_epochs=1, dataset={"load_mask": False}))
    val = {name: str(tmp_path / "val" / file) for name, file in (("ann_path", "boxes.json"), ("img_dir", "images"))}
    data = {f"train_{name}": path for name, path in val.items()} | {"load_mask": False}
    with pytest.raises(SpecError, match="every box is its whole image"):
        train_mal(make_spec(num_epochs=1, dataset=data))


def test_a_network_of_someone_else_is_not_replaced(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "out" / "mal").mkdir(parents=True)
    with pytest.raises(SpecError, match="holds mal, which no training has made"):
        train_mal(make_spec())


def test_two_processes_of_two_train_as_one_of_four(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAL-17: one network comes of all devices together."""
    train_mal(make_spec("one", lr=1e-4))
    monkeypatch.setattr(flow_module, "training_devices", lambda train: ("cpu", "cpu"))
    record = train_mal(make_spec("two", lr=1e-4, batch_size=2))
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float(np.abs(alone[name] - together[name]).max()) for name in alone) < 1e-5
    assert record.devices == ("cpu", "cpu")


def test_an_image_that_vanishes_in_training_ends_it_with_its_name(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_and_lose(*arguments: Any, **options: Any) -> Any:
        future = begin.submit(*arguments, **options)
        (tmp_path / "train" / "images" / "1.png").unlink()
        return future

    begin = flow_module.begin_training
    monkeypatch.setattr(flow_module, "begin_training", type("Losing", (), {"submit": staticmethod(begin_and_lose)}))
    with pytest.raises(ImageError, match=r"^1\.png is not there"):
        train_mal(make_spec())


# --- what is measured


def test_without_masks_the_loss_of_the_boxes_is_measured(make_spec: MakeSpec, tmp_path: Path) -> None:
    """MAL-21: the published mIoU is NaN without masks, which users took for a failure."""
    record = train_mal(make_spec(dataset={"load_mask": False}, num_epochs=1))
    (epoch,) = record.epochs
    assert epoch.validation is not None
    assert epoch.validation.projection_loss is not None
    assert not (tmp_path / "out" / "mal_best").exists()


def test_nothing_is_measured_where_there_is_nothing_to_measure_with(make_spec: MakeSpec) -> None:
    record = train_mal(make_spec(dataset={"val_ann_path": "", "val_img_dir": ""}, num_epochs=1))
    assert record.epochs[0].validation is None


def test_epochs_are_measured_at_the_interval_and_at_the_end(make_spec: MakeSpec) -> None:
    record = train_mal(make_spec(num_epochs=3, validation_interval=2))
    assert [epoch.validation is not None for epoch in record.epochs] == [False, True, True]


# --- bad data


def test_the_problems_of_both_files_are_told_before_anything_is_trained(make_spec: MakeSpec, tmp_path: Path) -> None:
    edit(tmp_path / "train" / "boxes.json", lambda document: document["images"][0].update(file_name="gone.png"))
    edit(tmp_path / "val" / "boxes.json", lambda document: document["annotations"][0].pop("segmentation"))
    with pytest.raises(SpecError) as refused:
        train_mal(make_spec())
    assert "gone.png is not in the image folder" in str(refused.value)
    assert "load_mask: false" in str(refused.value)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_an_image_that_cannot_be_read_is_left_out_and_told(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "train" / "images" / "1.png").write_bytes(b"\x89PNG cut")
    record = train_mal(make_spec(num_epochs=1))
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert (record.failed, json.loads(line)["image"]) == (1, "1.png")
    assert list(record.left_out) == ["in an image that cannot be read"]


def test_boxes_that_are_left_out_are_warned_of(make_spec: MakeSpec, caplog: pytest.LogCaptureFixture) -> None:
    """MAL-3, MAL-22: TAO's warning about boxes that it leaves out never prints."""
    train_mal(make_spec(dataset={"min_obj_size": 200}, num_epochs=1))
    (told,) = [line.getMessage() for line in caplog.records if line.name == "tasks.choose_boxes"]
    assert told.startswith("dataset.train_ann_path: left out are ")
    assert "boxes not larger than min_obj_size" in told
