"""Photos, micrographs and awkward files through the whole command line: every image ends in exactly one state."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tasks.image_sources.image_roots import SUFFIXES
from tasks.pictures import picture_name

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = ("bccd", "coco_mini", "microcontroller", "nuts")
IMAGES_OF_A_SET = 6
CLASSES = ["circle", "ring", "square"]

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason=f"the shared data sets are not at {DATA}"),
]


@dataclass(frozen=True)
class Labelled:
    """A finished run over a folder of images: its exit status, and what it left."""

    images: Path
    results: Path
    status: int

    @property
    def run(self) -> dict[str, Any]:
        return dict(json.loads((self.results / "run.json").read_text()))

    @property
    def coco(self) -> COCO:
        return COCO(self.results / "annotations.json")

    @property
    def failed(self) -> set[str]:
        return {json.loads(line)["image"] for line in (self.results / "failures.jsonl").read_text().splitlines()}

    def listed(self) -> set[str]:
        """The keys of what is named like an image, as `find` without `-L` would list them."""
        return {
            os.fsencode(Path(folder, name).relative_to(self.images)).decode("utf-8", "backslashreplace")
            for folder, folders, files in os.walk(self.images)
            for name in [*files, *folders]
            if name.lower().endswith(SUFFIXES)
        }


@pytest.fixture(scope="module")
def label(autolabel):
    def labelled(folder: Path, images: Path, classes: Sequence[str], *keys: str) -> Labelled:
        (folder / "spec.yaml").write_text("autolabel_type: grounding_dino\n")
        dataset = [f"grounding_dino.dataset.image_dir={images}", f"grounding_dino.dataset.class_names={classes}"]
        done = autolabel("generate", "-e", "spec.yaml", "results_dir=results", *dataset, *keys, cwd=folder)
        assert "Traceback" not in done.stderr
        return Labelled(images, folder / "results", done.returncode)

    return labelled


@pytest.fixture(scope="module")
def photos(tmp_path_factory, label) -> Labelled:
    """A few images of every set, in folders named after the sets, asked for what the bundled detector knows."""
    folder = tmp_path_factory.mktemp("photos")
    for name in SETS:
        (folder / "images" / name).mkdir(parents=True)
        for image in sorted((DATA / name / "images").iterdir())[:IMAGES_OF_A_SET]:
            shutil.copy(image, folder / "images" / name)
    schedule = "grounding_dino.iteration_scheduler=[{conf_threshold: 0.3}, {conf_threshold: 0.1}]"
    checkpoint = "grounding_dino.checkpoint=bundled:grounding_dino_scenes"
    return label(folder, folder / "images", CLASSES, schedule, checkpoint)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory, paint_picture, label) -> Labelled:
    """The collection of awkward files, and a turned picture with the one object that the fake detector can find."""
    folder = tmp_path_factory.mktemp("awkward")
    subprocess.run([sys.executable, DATA / "make_nasty.py", folder / "made"], check=True, capture_output=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # display it turned by 90 degrees clockwise
    upright = Image.open(paint_picture(folder / "upright.png", [("cat", 0.9, (150, 10, 190, 50))]))
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "made" / "files" / "turned_cat.png", exif=exif)
    schedule = "grounding_dino.iteration_scheduler=[{conf_threshold: 0.1}]"
    return label(folder, folder / "made" / "files", ["cat", "dog"], schedule, "grounding_dino.checkpoint=fake")


def assert_every_image_is_in_one_state(labelled: Labelled) -> None:
    states = labelled.run["images"]
    coco = labelled.coco
    looked_at = {image["file_name"] for image in coco.imgs.values()}
    with_labels = {coco.imgs[annotation["image_id"]]["file_name"] for annotation in coco.anns.values()}
    assert (looked_at | labelled.failed, looked_at & labelled.failed) == (labelled.listed(), set())
    assert states == {
        "labelled": len(with_labels),
        "empty": len(looked_at - with_labels),
        "failed": len(labelled.failed),
    }


def assert_boxes_are_inside_their_images(labelled: Labelled) -> None:
    coco = labelled.coco
    boxes = np.array([annotation["bbox"] for annotation in coco.anns.values()]).reshape(-1, 4)
    images = [coco.imgs[annotation["image_id"]] for annotation in coco.anns.values()]
    sizes = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes + 1e-6).all()


def assert_every_image_has_its_picture(labelled: Labelled) -> None:
    below = labelled.results / "images_annotated"
    drawn = {path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file()}
    assert drawn == {picture_name(image["file_name"]) for image in labelled.coco.imgs.values()}


def test_every_photo_is_labelled_or_empty(photos):
    assert_every_image_is_in_one_state(photos)
    assert (photos.status, photos.failed, len(photos.listed())) == (0, set(), 4 * IMAGES_OF_A_SET)


def test_every_photo_has_the_size_that_its_data_set_says(photos):
    told = {
        f"{name}/{image['file_name']}": (image["width"], image["height"])
        for name in SETS
        for image in json.loads((DATA / name / "annotations.json").read_text())["images"]
    }
    found = {image["file_name"]: (image["width"], image["height"]) for image in photos.coco.imgs.values()}
    assert found == {key: told[key] for key in found}


def test_the_boxes_on_photos_are_inside_them(photos):
    assert photos.coco.anns
    assert_boxes_are_inside_their_images(photos)


def test_every_photo_has_its_picture(photos):
    assert_every_image_has_its_picture(photos)


def test_awkward_files_end_the_run_with_status_3_and_a_reason_each(awkward):
    assert awkward.status == 3
    reasons = [json.loads(line)["reason"] for line in (awkward.results / "failures.jsonl").read_text().splitlines()]
    assert len(reasons) > 10
    assert all(reasons)


def test_every_awkward_file_is_in_one_state(awkward):
    assert_every_image_is_in_one_state(awkward)


def test_an_awkward_file_is_looked_at_upright_or_a_failure_as_its_maker_expects(awkward):
    manifest = json.loads((awkward.images.parent / "manifest.json").read_text())
    found = {image["file_name"]: [image["width"], image["height"]] for image in awkward.coco.imgs.values()}
    good = {entry["path"]: entry["size"] for entry in manifest if entry["expect"] == "ok"}
    bad = {entry["path"] for entry in manifest if entry["expect"] == "reject"}
    assert {key: found.get(key) for key in good} == good
    assert bad - awkward.failed == set()


def test_the_box_of_a_turned_picture_is_inside_it_as_it_is_displayed(awkward):
    assert [annotation["bbox"] for annotation in awkward.coco.anns.values()] == [[150, 10, 40, 40]]
    assert_boxes_are_inside_their_images(awkward)


def test_every_readable_awkward_file_has_its_picture(awkward):
    assert_every_image_has_its_picture(awkward)
