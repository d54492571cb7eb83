"""Boxes, then their masks in one run, or as two flows one after the other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from flows.auto_label import auto_label
from flows.label_dataset import label_dataset
from flows.mask_plan import plan_masks
from flows.plan import plan_run
from flows.segment_masks import segment_masks
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError, CheckpointError, SpecError
from tasks.models.fake import FakeDetector, FakeSegmenter

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

CAT, DOG = (10, 10, 60, 50), (10, 80, 60, 140)
BOTH = {"autolabel_type": "grounding_dino+mal", "mal": {"checkpoint": "fake"}}
MADE = ("segmentation", "area", "mask_quality")


@pytest.fixture
def spec_of_both(make_spec):
    """Makes a spec of both fakes; arguments as for `make_spec`."""
    return lambda dataset, **keys: make_spec(dataset, **(BOTH | keys))


def document(results: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((results / "annotations.json").read_text())
    return read


def without_masks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in MADE} for row in rows]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(tmp_path: Path, *entries: tuple[str, str, list[str]]) -> dict[str, str]:
    path = tmp_path / "prompts.jsonl"
    keys = ("file_name", "caption", "noun_chunks")
    path.write_text("".join(json.dumps(dict(zip(keys, entry, strict=True))) + "\n" for entry in entries))
    return {"noun_chunk_path": str(path)}


def test_the_masks_are_added_to_what_the_detection_delivered(paint_image, make_spec, spec_of_both, results, tmp_path):
    """MAL-13: MAL does not detect; users asked why it wants boxes."""
    for i in range(5):
        paint_image(f"{i}.png", [("cat", 0.9, CAT), ("dog", 0.4, DOG)][: 1 + i % 2])
    auto_label(make_spec({"class_names": ["cat", "dog"]}, shard_size=2, results_dir=str(tmp_path / "boxes")))
    boxes = document(tmp_path / "boxes")
    done = label_dataset(spec_of_both({"class_names": ["cat", "dog"]}, shard_size=2))
    masks = document(results)
    assert masks["images"] == boxes["images"]
    assert masks["categories"] == boxes["categories"]
    assert without_masks(masks["annotations"]) == without_masks(boxes["annotations"])
    assert done.masks.masks.counts.masks == len(masks["annotations"]) == 7
    coco = COCO(results / "annotations.json")
    assert [row["area"] for row in coco.anns.values()] == [
        coco_mask.area(coco.annToRLE(row)) for row in coco.anns.values()
    ]
    for name in ("final_annotation.jsonl", "labelmap.json"):
        assert (results / name).read_bytes() == (tmp_path / "boxes" / name).read_bytes()


def test_m7_labels_of_grounding_mode_with_several_captions_get_masks(paint_image, spec_of_both, results, tmp_path):
    """M-7: TAO's converter writes nothing for them, so that they cannot reach MAL."""
    paint_image("1.png", [("a cat", 0.9, CAT), ("a dog", 0.4, DOG)])
    paint_image("2.png", [("a cow", 0.9, DOG)])
    asked = [("1.png", "one", ["a cat"]), ("1.png", "two", ["a dog", "a cat"]), ("2.png", "three", ["a cow"])]
    done = label_dataset(spec_of_both(prompts(tmp_path, *asked), shard_size=1))
    rows = document(results)["annotations"]
    names = {row["id"]: row["name"] for row in document(results)["categories"]}
    assert sorted((row["image_id"], row["caption_id"], row["phrase"]) for row in rows) == [
        (1, 0, "a cat"),
        (1, 1, "a cat"),
        (1, 1, "a dog"),
        (2, 0, "a cow"),
    ]
    assert all(names[row["category_id"]] == row["phrase"] for row in rows)
    assert all(row["segmentation"]["counts"] for row in rows)
    assert done.masks.masks.counts.masks == 4


def test_the_run_record_of_the_detection_is_extended(paint_image, spec_of_both, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    label_dataset(spec_of_both({"class_names": ["cat"]}))
    record = json.loads((results / "run.json").read_text())
    assert record["digests"] == {"detector": FakeDetector().digest, "segmenter": FakeSegmenter().digest}
    assert record["iterations"][0]["forwards"] == record["masks"]["boxes_forwarded"] == 1
    assert record["images"] == {"labelled": 1, "empty": 0, "failed": 0}


def test_status_json_tells_one_course_and_ends_when_all_is_done(paint_image, spec_of_both, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    label_dataset(spec_of_both({"class_names": ["cat"]}))
    assert [line["status"] for line in lines(results / "status.json")] == ["STARTED", "SUCCESS"]


def test_a_segmenter_that_is_not_there_is_told_before_the_detection_begins(paint_image, spec_of_both, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    with pytest.raises(CheckpointError, match=r"mal\.pth"):
        label_dataset(spec_of_both({"class_names": ["cat"]}, mal={"checkpoint": "no/mal.pth"}))
    assert sorted(path.name for path in results.iterdir()) == ["status.json"]
    assert [line["status"] for line in lines(results / "status.json")] == ["STARTED", "FAILURE"]


def test_a_second_run_forwards_nothing_and_writes_the_same_bytes(paint_image, spec_of_both, results):
    for i in range(5):
        paint_image(f"{i}.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]})
    label_dataset(spec)
    before = (results / "annotations.json").read_bytes()
    again = label_dataset(spec)
    assert sum(step.forwards for step in again.boxes.iterations) == again.masks.masks.boxes_forwarded == 0
    assert (results / "annotations.json").read_bytes() == before


def test_the_plan_counts_the_boxes_once_they_are_known(paint_image, spec_of_both):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]})
    assert plan_masks(spec, plan_run(spec).labels) is None
    auto_label(spec)
    detected = plan_masks(spec, plan_run(spec).labels)
    label_dataset(spec)
    masked = plan_masks(spec, plan_run(spec).labels)
    assert [plan and (plan.boxes, plan.boxes_to_forward) for plan in (detected, masked)] == [(1, 1), (1, 0)]


@pytest.mark.parametrize(("boxes", "masks"), [(True, False), (False, True), (False, False)])
def test_the_final_pictures_are_drawn_once_and_with_masks(paint_image, spec_of_both, results, boxes, masks):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]}, visualize=boxes, mal={"checkpoint": "fake", "visualize": masks})
    auto_label(spec)
    assert not (results / "images_annotated").exists()
    segment_masks(spec)
    assert (results / "images_annotated" / "1.png").exists() == (boxes or masks)
    assert (results / "auto_label0" / "images_annotated").exists() == boxes


def test_two_flows_one_after_the_other_are_the_same_as_one(paint_image, spec_of_both, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]})
    label_dataset(spec)
    whole = (results / "annotations.json").read_bytes()
    labels = auto_label(spec).labels
    for given in (None, labels, vars(labels)):
        assert segment_masks(spec, given).masks.counts.masks == 1
        assert (results / "annotations.json").read_bytes() == whole
        assert json.loads((results / "run.json").read_text())["iterations"]


def test_parameters_may_come_as_json(paint_image, spec_of_both, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    parameters = json.loads(spec_of_both({"class_names": ["cat"]}).model_dump_json())
    done = label_dataset(parameters)
    again = segment_masks(parameters, json.loads((results / "run.json").read_text())["labels"])
    assert (done.masks.masks.counts.masks, again.masks.boxes_forwarded) == (1, 0)


def test_masks_of_a_detection_that_never_ran_are_refused(spec_of_both):
    with pytest.raises(SpecError, match=r"holds no run\.json of a detection"):
        segment_masks(spec_of_both({"class_names": ["cat"]}))


@pytest.mark.parametrize("kind", ["labels", "annotations"])
def test_labels_that_are_gone_from_the_cache_are_told_with_the_command_that_makes_them(
    paint_image, spec_of_both, results, kind
):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]})
    auto_label(spec)
    shutil.rmtree(results / "cache" / kind)
    with pytest.raises(ArtifactError, match=r"is missing; check cache_dir, or run `autolabel generate`") as told:
        segment_masks(spec)
    assert "run the same command again" not in str(told.value)
    assert label_dataset(spec).masks.masks.counts.masks == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"labels": None},
        {"labels": "labels"},
        {"labels": {"kind": "labels", "key": "1" * 64}},
        {"labels": {"kind": "labels", "key": "1" * 64, "sha256": "1" * 64, "more": ""}},
        {"labels": {"kind": "labels", "key": 1, "sha256": "1" * 64}},
        {"digests": None},
        {"digests": ["detector"]},
    ],
)
def test_a_damaged_record_of_a_detection_is_none(paint_image, spec_of_both, results, damage):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = spec_of_both({"class_names": ["cat"]})
    auto_label(spec)
    record = json.loads((results / "run.json").read_text())
    (results / "run.json").write_text(json.dumps(record | damage))
    with pytest.raises(SpecError, match=r"holds no run\.json of a detection"):
        segment_masks(spec)


def test_the_labels_of_a_detection_are_no_boxes_of_a_file(make_mask_spec, write_boxes):
    write_boxes({})
    with pytest.raises(SpecError, match=r"labels: found the labels of a detection, expected none"):
        segment_masks(make_mask_spec(), ArtifactRef("labels", "0" * 64, "0" * 64))


def test_a_spec_without_boxes_is_not_for_the_detection(make_mask_spec, write_boxes):
    write_boxes({})
    with pytest.raises(SpecError, match="which make boxes"):
        auto_label(make_mask_spec())


def test_failures_of_the_detection_stay_and_those_of_the_masks_come_beside_them_once(
    paint_image, spec_of_both, results, tmp_path
):
    paint_image("good.png", [("cat", 0.9, CAT)])
    lost = paint_image("lost.png", [("cat", 0.8, CAT)])  # equal pictures would be one to the store
    (tmp_path / "images" / "broken.png").write_bytes(b"broken")
    spec = spec_of_both({"class_names": ["cat"]})
    auto_label(spec)
    lost.unlink()
    for _ in range(2):
        record = segment_masks(spec)
        told = [(line["image"], line["stage"]) for line in lines(results / "failures.jsonl")]
        assert told == [("broken.png", "index"), ("lost.png", "segment")]
        assert (record.images.labelled, record.images.failed) == (1, 2)
    rows = document(results)["annotations"]
    assert [row.get("mask_failure", "").startswith("the image is not there") for row in rows] == [False, True]
