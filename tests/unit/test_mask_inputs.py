"""What a spec asks of the segmenter, in the words of the port."""

import pytest

from flows.mask_inputs import masks_path, segmenter_of
from flows.run_inputs import store_of
from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec, validate_spec
from tasks.models import SegmenterConfig


def spec(**mal: object) -> ExperimentSpec:
    block = {"checkpoint": "fake", "inference": {"ann_path": "boxes.json", "img_dir": "images"}, **mal}
    return validate_spec({"autolabel_type": "mal", "results_dir": "out/", "mal": block})


def test_a_spec_that_says_nothing_asks_for_what_tao_does():
    assert segmenter_of(spec()) == SegmenterConfig("mal", "fake")


def test_every_field_reaches_the_segmenter():
    """M-6: TAO labels with the student, at 16 bits, and never outside of the box, whatever its spec says."""
    asked = spec(
        segmenter="sam2",
        precision="bf16",
        clip_to_box=False,
        weights="mixed",
        flip_test=True,
        dataset={"crop_size": 224},
        train={"test_margin_rate": [0.4, 0.9], "mask_thres": [0.1, 0.2, 0.3]},
    )
    assert segmenter_of(asked) == SegmenterConfig(
        segmenter="sam2",
        checkpoint="fake",
        precision="bf16",
        clip_to_box=False,
        thresholds=(0.1, 0.2, 0.3),
        crop_size=224,
        margin=0.2,
        weights="mixed",
        flip=True,
    )


def test_one_threshold_is_that_of_all_sizes():
    assert segmenter_of(spec(train={"mask_thres": [0.5]})).thresholds == (0.5, 0.5, 0.5)


def test_a_crop_that_is_said_and_one_that_came_back_from_json_are_the_same():
    again = validate_spec(spec().model_dump(mode="json"))
    assert segmenter_of(again) == segmenter_of(spec())


@pytest.mark.parametrize("crop_size", [16, 100, 513])
def test_a_crop_that_is_no_whole_number_of_patches_is_refused(crop_size):
    with pytest.raises(SpecError, match=rf"mal\.dataset\.crop_size: found {crop_size}, expected"):
        spec(dataset={"crop_size": crop_size})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.json", "out/a.json"),
        ("b/a.json", "out/b/a.json"),
        ("/a.json", "/a.json"),
        ("s3://b/a.json", "s3://b/a.json"),
        ("~nobodyx/a.json", "out/~nobodyx/a.json"),
    ],
)
def test_the_masks_go_below_results_dir_or_where_a_whole_path_says(name, path):
    inference = {"ann_path": "boxes.json", "img_dir": "images", "label_dump_path": name}
    assert masks_path(spec(inference=inference)) == path


def test_masks_with_results_directly_below_a_protocol_stay_behind_it():
    top = {"autolabel_type": "mal", "results_dir": "memory://"}
    inference = {"ann_path": "boxes.json", "img_dir": "images", "label_dump_path": "a.json"}
    asked = validate_spec({**top, "mal": {"checkpoint": "fake", "inference": inference}})
    assert (masks_path(asked), store_of(asked).uri) == ("memory://a.json", "memory://cache")


def test_a_missing_segmenter_is_told_with_examples():
    with pytest.raises(SpecError, match=r"mal\.checkpoint: found nothing.*facebook/sam-vit-base"):
        spec(checkpoint=None)
