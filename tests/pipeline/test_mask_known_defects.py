"""What the published programs for masks do wrong and these flows must not: docs/known_defects.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.segment_masks import segment_masks
from flows.train_mal import train_mal
from tasks.domain.scenes import SHAPES, draw_scene
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.formats.scene_truth import dump_scene_truth

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

BOX = (20, 10, 60, 40)
NETWORK = {"dim": 16, "depth": 1, "heads": 2, "mask_head_hidden_channel": 8, "mask_head_out_channel": 8}
RECIPE = {"num_epochs": 1, "batch_size": 4, "lr": 1e-3, "loss_mil_step": 0, "loss_crf_step": 0, "crf_num_iter": 3}

Document = dict[str, Any]


class Training:
    """Trains a tiny network on two scenes, whose COCO file may be changed before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenes = [(f"{seed}.png", draw_scene(seed, width=96, height=96)) for seed in range(2)]
        (folder / "images").mkdir()
        for name, scene in scenes:
            Image.fromarray(scene.pixels).save(folder / "images" / name)
        self.document: Document = json.loads(dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))

    def spec(self, name: str, document: Document, **dataset: Any) -> TrainMalSpec:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(document))
        where = {"train_ann_path": str(path), "train_img_dir": str(self.folder / "images")}
        return TrainMalSpec.model_validate(
            {
                "results_dir": str(self.folder / name),
                "dataset": {**where, "crop_size": 32, "min_obj_size": 0, **dataset},
                "model": NETWORK,
                "train": RECIPE,
            }
        )

    def weights(self, name: str, change: Callable[[Document], None]) -> bytes:
        """The network that is learned from the changed file."""
        document = json.loads(json.dumps(self.document))
        change(document)
        train_mal(self.spec(name, document))
        return (self.folder / name / "mal" / "model.safetensors").read_bytes()


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setenv("AUTOLABEL_DEVICE", "cpu")
    return Training(tmp_path)


def without_masks(document: Document) -> None:
    for row in document["annotations"]:
        row.pop("segmentation")
        row.pop("area", None)


def with_masks_of_the_whole_image(document: Document) -> None:
    for row in document["annotations"]:
        row["segmentation"] = [[0, 0, 96, 0, 96, 96, 0, 96]]


def with_classes_of_ones_own(document: Document) -> None:
    for number, row in enumerate(document["categories"]):
        row |= {"id": row["id"] + 900_000, "name": f"Größe {number}"}
    for row in document["annotations"]:
        row["category_id"] += 900_000


@pytest.mark.parametrize("change", [without_masks, with_masks_of_the_whole_image])
def test_the_masks_in_a_file_of_boxes_change_no_weight(training: Training, change: Callable[[Document], None]) -> None:
    """MAL-10, MAL-12: users took the published training for one with masks, and it needs a file that never shipped."""
    assert training.weights("changed", change) == training.weights("as-it-is", lambda document: None)


def test_a_data_set_of_ones_own_is_trained_on_as_any_other(training: Training) -> None:
    """MAL-9: the published code knows four data sets by name; others need a change of the code."""
    own = training.weights("own", with_classes_of_ones_own)
    assert own == training.weights("as-it-is", lambda document: None)


def test_small_boxes_are_trained_on_where_the_spec_says_so(training: Training) -> None:
    """MAL-3: with the published default no box up to 2048 square pixels is, and one branch never sees training."""
    small = [row | {"bbox": [*row["bbox"][:2], 20, 20]} for row in training.document["annotations"]]
    spec = training.spec("small", training.document | {"annotations": small})
    record = train_mal(spec)
    assert (record.boxes, record.left_out) == (len(small), {})


def test_a_training_writes_nothing_that_was_not_asked_for(training: Training) -> None:
    """MAL-18: the published training also logs a picture of every large object that it gets wrong."""
    train_mal(training.spec("out", training.document))
    left = {path.name for path in (training.folder / "out").iterdir()}
    names = {"cache", "checkpoints", "failures.jsonl", "mal", "status.json", "train.json", "training_curve.svg"}
    assert left == names


@pytest.mark.parametrize("name", ["labels", "labels.coco", "labels.json"])
def test_the_masks_are_in_one_file_of_exactly_the_name_given(paint_image, write_boxes, make_mask_spec, results, name):
    """MAL-15: the published code writes a second file with the suffix `.result`, and users looked for a `.json`."""
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    segment_masks(make_mask_spec({"label_dump_path": name}))
    assert {path.name for path in results.iterdir()} == {"cache", "failures.jsonl", "run.json", "status.json", name}
    assert len(json.loads((results / name).read_text())["annotations"]) == 1
