"""How good the labels of the models that ship are, on 200 scenes that neither training nor tuning has seen."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.evaluate import BoxReport, MaskReport, evaluate, evaluate_mask_files

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


class Demo(NamedTuple):
    """What a demo leaves, compared with the truth."""

    folder: Path
    truth: Path
    boxes: BoxReport
    masks: MaskReport


@pytest.fixture(scope="module")
def demo(autolabel: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the demo as a user does, without pictures, and evaluates what it leaves."""

    def made(*options: str, truth: str) -> Demo:
        folder: Path = tmp_path_factory.mktemp("demo")
        keys = ("results_dir=out", "grounding_dino.visualize=false")
        answer = autolabel("demo", "--scenes", "200", *options, *keys, cwd=folder)
        assert answer.returncode == 0, answer.stderr
        compared = (str(folder / "out"), str(folder / "out" / "scenes" / truth))
        return Demo(folder, folder / "out" / "scenes" / truth, evaluate(*compared), evaluate_mask_files(*compared))

    return made


@pytest.fixture(scope="module")
def class_names(demo: Any) -> Demo:
    """The demo with class names."""
    return demo(truth="ground_truth.json")


def test_class_names_are_found_with_an_ap50_of_nine_tenths_and_as_much_precision_and_recall(class_names):
    classes = class_names.boxes.overall
    assert min(classes.ap50, classes.counts.precision, classes.counts.recall) >= 0.90


def test_from_words_to_masks_the_ap50_of_masks_is_085(class_names):
    assert class_names.masks.overall.ap50 >= 0.85


def test_masks_of_true_boxes_have_a_mean_iou_of_085_and_010_more_than_box_and_ellipse(class_names, autolabel):
    spec = {
        "results_dir": "masks",
        "mal.segmenter": "mal",
        "mal.checkpoint": "bundled:mal_scenes",
        "mal.inference.ann_path": class_names.truth,
        "mal.inference.img_dir": class_names.truth.parent / "images",
        "mal.train.mask_thres": "[0.5]",
    }
    keys = [f"{key}={value}" for key, value in spec.items()]
    answer = autolabel("generate", "-e", "box2seg", *keys, cwd=class_names.folder)
    assert answer.returncode == 0, answer.stderr
    labels = class_names.folder / "masks" / "masks.json"
    quality = evaluate_mask_files(str(labels), str(class_names.truth)).overall.quality
    assert quality.found == quality.truths
    assert quality.miou >= 0.85
    assert quality.miou >= max(quality.miou_of_box, quality.miou_of_ellipse) + 0.10


def test_phrases_of_colour_and_shape_are_found_among_phrases_that_are_absent(demo):
    phrases = demo("--grounding", truth="ground_truth_phrases.json")
    assert phrases.boxes.overall.ap50 >= 0.85
    assert min(phrases.boxes.overall.counts.precision, phrases.boxes.overall.counts.recall) >= 0.90
    assert phrases.masks.overall.ap50 >= 0.85
