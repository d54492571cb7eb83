"""The loop under Prefect, with painted images and the fake detector: what is labelled, when, and at what price."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from flows.auto_label import auto_label
from flows.plan import plan_run
from tasks.domain.errors import PromptError, SpecError
from tasks.domain.iteration import StopReason
from tasks.domain.spec import validate_spec
from tasks.models.fake import paint

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

CAT, SECOND_CAT, DOG = (10, 10, 60, 50), (80, 10, 140, 50), (10, 80, 60, 140)


def labels_in(results: Path) -> list[tuple[str, str, float, int]]:
    """(image, phrase, score, iteration) of every label, in the order of the file."""
    coco = json.loads((results / "annotations.json").read_text())
    keys = {image["id"]: image["file_name"] for image in coco["images"]}
    return [(keys[a["image_id"]], a["phrase"], round(a["score"], 1), a["iteration"]) for a in coco["annotations"]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_d1_an_image_empty_at_the_first_threshold_is_labelled_at_a_later_one(paint_image, make_spec, results):
    paint_image("faint.png", [("cat", 0.4, CAT)])
    auto_label(make_spec({"class_names": ["cat"]}))
    assert labels_in(results) == [("faint.png", "cat", 0.4, 1)]


def test_d1_an_image_found_empty_is_still_an_image_looked_at(paint_image, make_spec, results):
    paint_image("empty.png", [])
    record = auto_label(make_spec({"class_names": ["cat"]}))
    assert (record.images.empty, record.images.failed) == (1, 0)
    (line,) = lines(results / "final_annotation.jsonl")
    assert (line["file_name"], line["detection"]["instances"]) == ("empty.png", [])


@pytest.mark.parametrize(("reprompt", "found"), [("all", 2), ("undetected", 1)])
def test_d2_reprompt_all_finds_the_fainter_instances_of_a_class(paint_image, make_spec, results, reprompt, found):
    paint_image("two.png", [("cat", 0.9, CAT), ("cat", 0.4, SECOND_CAT)])
    auto_label(make_spec({"class_names": ["cat"]}, reprompt=reprompt))
    assert len(labels_in(results)) == found


def test_d3_no_cap_on_the_labels_of_an_image(paint_image, make_spec, results):
    dots = [("cat", score / 255, (x, y, x + 4, y + 4)) for score, (x, y) in zip(range(140, 255), _grid(), strict=False)]
    paint_image("crowd.png", dots)
    auto_label(make_spec({"class_names": ["cat"]}))
    assert len(labels_in(results)) == 115


def _grid() -> list[tuple[int, int]]:
    return [(x, y) for y in range(2, 146, 6) for x in range(2, 194, 6)]


def test_d6_three_hundred_class_names_are_all_reachable(paint_image, make_spec, results):
    names = [f"thing number {i}" for i in range(300)]
    dots = [(name, 0.9, (x, y, x + 4, y + 4)) for name, (x, y) in zip(names, _grid(), strict=False)]
    paint_image("many.png", dots)
    spec = make_spec({"class_names": names}, thresholds=(0.5,))
    plan = plan_run(spec)
    record = auto_label(spec)
    assert {label[1] for label in labels_in(results)} == set(names)
    assert plan.captions == ((plan.most, 1),)
    assert plan.least == record.iterations[0].forwards > 1


def test_d7_d8_images_of_one_name_in_two_folders_keep_their_own_labels(paint_image, make_spec, results):
    paint_image("a/1.png", [("cat", 0.9, CAT)])
    paint_image("b/1.png", [("dog", 0.4, DOG)])
    auto_label(make_spec({"class_names": ["cat", "dog"]}, visualize=True))
    assert labels_in(results) == [("a/1.png", "cat", 0.9, 0), ("b/1.png", "dog", 0.4, 1)]
    for folder in ("images_annotated", "auto_label0/images_annotated", "auto_label1/images_annotated"):
        assert sorted(p.relative_to(results / folder).as_posix() for p in (results / folder).rglob("*.png")) == [
            "a/1.png",
            "b/1.png",
        ]


def prompts(tmp_path: Path, *entries: tuple[str, str, list[str]]) -> dict[str, str]:
    """The `dataset` keys of grounding mode, for a prompt file of (file_name, caption, noun_chunks)."""
    path = tmp_path / "prompts.jsonl"
    keys = ("file_name", "caption", "noun_chunks")
    path.write_text("".join(json.dumps(dict(zip(keys, entry, strict=True))) + "\n" for entry in entries))
    return {"noun_chunk_path": str(path)}


def test_d9_d10_every_caption_of_an_image_keeps_its_regions(paint_image, make_spec, results, tmp_path):
    paint_image("1.png", [("a cat", 0.9, CAT), ("a dog", 0.4, DOG)])
    captions = [("1.png", f"caption {i}", [["a cat"], ["a dog"]][i % 2]) for i in range(5)]
    auto_label(make_spec(prompts(tmp_path, *captions)))
    final = lines(results / "final_annotation.jsonl")
    assert [line["grounding"]["caption"] for line in final] == [f"caption {i}" for i in range(5)]
    assert [[r["phrase"] for r in line["grounding"]["regions"]] for line in final] == [
        ["a cat"],
        ["a dog"],
        ["a cat"],
        ["a dog"],
        ["a cat"],
    ]


def test_d11_an_empty_caption_keeps_its_regions_in_grounding_mode(paint_image, make_spec, results, tmp_path):
    paint_image("1.png", [("a cat", 0.4, CAT)])
    auto_label(make_spec(prompts(tmp_path, ("1.png", "", ["a cat"])), visualize=True))
    (line,) = lines(results / "final_annotation.jsonl")
    assert (line["grounding"]["caption"], line["grounding"]["regions"][0]["phrase"]) == ("", "a cat")


def test_d12_boxes_of_a_turned_photo_fit_the_picture_as_it_is_displayed(make_spec, results, tmp_path):
    pixels = np.full((150, 200, 3), 128, np.uint8)
    pixels[10:30, 20:80] = paint("cat", 0.9)
    exif = Image.Exif()
    exif[0x0112] = 6  # display it turned by 90 degrees clockwise
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "images" / "turned.png", exif=exif)
    auto_label(make_spec({"class_names": ["cat"]}))
    coco = COCO(results / "annotations.json")
    assert (coco.imgs[1]["width"], coco.imgs[1]["height"]) == (200, 150)
    assert coco.anns[1]["bbox"] == [20, 10, 60, 20]


def test_d14_every_label_carries_score_iteration_and_threshold(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.4, CAT)])
    auto_label(make_spec({"class_names": ["cat"]}))
    (label,) = json.loads((results / "annotations.json").read_text())["annotations"]
    assert (label["score"], label["iteration"], label["threshold"]) == (0.4, 1, 0.3)


def test_d19_a_class_name_that_looks_like_a_score_stays_whole(paint_image, make_spec, results):
    paint_image("1.png", [("model(0.53)", 0.9, CAT)])
    auto_label(make_spec({"class_names": ["model(0.53)"]}))
    assert [label[1] for label in labels_in(results)] == ["model(0.53)"]


def test_d21_an_unreadable_image_never_ends_the_run(paint_image, make_spec, results, tmp_path):
    paint_image("good.png", [("cat", 0.9, CAT)])
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    record = auto_label(make_spec({"class_names": ["cat"]}))
    assert (record.images.labelled, record.images.failed) == (1, 1)
    (failure,) = lines(results / "failures.jsonl")
    assert (failure["image"], failure["stage"]) == ("broken.jpg", "index")


def test_d21_folders_of_an_earlier_longer_run_are_gone(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    auto_label(make_spec({"class_names": ["cat", "dog"]}, thresholds=(0.5, 0.4, 0.3)))
    auto_label(make_spec({"class_names": ["cat", "dog"]}, thresholds=(0.5,)))
    assert sorted(path.name for path in results.glob("auto_label*")) == ["auto_label0"]


def test_d22_an_image_with_all_names_found_is_not_forwarded_again(paint_image, make_spec):
    paint_image("done.png", [("cat", 0.9, CAT), ("dog", 0.9, DOG)])
    paint_image("half.png", [("cat", 0.9, CAT), ("dog", 0.4, DOG)])
    record = auto_label(make_spec({"class_names": ["cat", "dog"]}))
    assert [iteration.forwards for iteration in record.iterations] == [2, 1]


def test_an_image_whose_prompt_did_not_change_is_not_forwarded_again(paint_image, make_spec):
    paint_image("nothing.png", [])
    paint_image("half.png", [("cat", 0.9, CAT), ("dog", 0.4, DOG)])
    record = auto_label(make_spec({"class_names": ["cat", "dog"]}, thresholds=(0.5, 0.45, 0.3)))
    assert [iteration.forwards for iteration in record.iterations] == [2, 1, 0]


def test_with_reprompt_all_the_iterations_after_the_first_cost_no_forward(paint_image, make_spec):
    paint_image("1.png", [("cat", 0.9, CAT), ("cat", 0.4, SECOND_CAT), ("dog", 0.35, DOG)])
    record = auto_label(make_spec({"class_names": ["cat", "dog"]}, thresholds=(0.5, 0.38, 0.3), reprompt="all"))
    assert [(i.forwards, i.counts.new_labels) for i in record.iterations] == [(1, 1), (0, 1), (0, 1)]


def test_d29_every_image_is_labelled_once_however_many_shards_there_are(paint_image, make_spec, results):
    for i in range(30):
        paint_image(f"{i:02}.png", [("cat", 0.9, CAT)])
    record = auto_label(make_spec({"class_names": ["cat"]}, shard_size=3))
    assert record.iterations[0].shards > 3
    assert [label[0] for label in labels_in(results)] == [f"{i:02}.png" for i in range(30)]


def test_d30_an_image_without_regions_is_an_empty_record_and_no_failure(paint_image, make_spec, results, tmp_path):
    paint_image("1.png", [])
    record = auto_label(make_spec(prompts(tmp_path, ("1.png", "a cat", ["a cat"]))))
    assert lines(results / "final_annotation.jsonl")[0]["grounding"]["regions"] == []
    assert (record.images.empty, record.images.failed) == (1, 0)


def test_a_second_run_over_the_same_input_makes_no_forward_and_the_same_bytes(paint_image, make_spec, results):
    for i in range(6):
        paint_image(f"{i}.png", [("cat", 0.9 - i / 10, CAT), ("dog", 0.45, DOG)])
    spec = make_spec({"class_names": ["cat", "dog"]})
    first = auto_label(spec)
    before = {name: (results / name).read_bytes() for name in ("annotations.json", "final_annotation.jsonl")}
    assert (plan_run(spec).least, plan_run(spec).most) == (0, 0)
    second = auto_label(spec)
    assert sum(i.forwards for i in first.iterations) > 0 == sum(i.forwards for i in second.iterations)
    assert {name: (results / name).read_bytes() for name in before} == before


def test_another_threshold_over_known_prompts_costs_no_forward(paint_image, make_spec):
    paint_image("1.png", [("cat", 0.9, CAT), ("cat", 0.4, SECOND_CAT)])
    auto_label(make_spec({"class_names": ["cat"]}, thresholds=(0.5,)))
    record = auto_label(make_spec({"class_names": ["cat"]}, thresholds=(0.2,)))
    assert [(i.forwards, i.counts.labels) for i in record.iterations] == [(0, 2)]


def test_the_plan_of_the_first_iteration_is_what_the_run_then_forwards(paint_image, make_spec):
    for i in range(5):
        paint_image(f"{i}.png", [("cat", 0.9, CAT)])
    spec = make_spec({"class_names": ["cat", "dog"]})
    plan = plan_run(spec)
    record = auto_label(spec)
    assert plan.iterations[0].least == record.iterations[0].forwards == 5
    assert plan.least <= sum(i.forwards for i in record.iterations) <= plan.most


def test_the_run_record_says_why_the_loop_stopped(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    record = auto_label(make_spec({"class_names": ["cat"]}, thresholds=(0.5, 0.4, 0.3, 0.2)))
    assert record.stop_reason is StopReason.CONVERGED
    written = json.loads((results / "run.json").read_text())
    assert (written["stop_reason"], len(written["iterations"])) == ("converged", 2)
    assert written["images"] == {"labelled": 1, "empty": 0, "failed": 0}


def test_candidates_that_are_no_label_are_counted_under_a_reason(paint_image, make_spec):
    paint_image("1.png", [("cat", 0.9, CAT), ("dog", 0.2, DOG)])
    record = auto_label(make_spec({"class_names": ["cat", "dog"]}, thresholds=(0.5,)))
    counts = record.iterations[0].counts
    assert (counts.candidates, counts.labels, counts.below_threshold) == (2, 1, 1)


def test_status_json_ends_in_success_or_in_failure(paint_image, make_spec, results, tmp_path):
    paint_image("1.png", [("cat", 0.9, CAT)])
    auto_label(make_spec({"class_names": ["cat"]}))
    assert lines(results / "status.json")[-1]["status"] == "SUCCESS"
    with pytest.raises(SpecError):
        auto_label(make_spec({"class_names": ["cat"], "image_dir": str(tmp_path / "nowhere")}))
    assert lines(results / "status.json")[-1]["status"] == "FAILURE"


def test_a_phrase_that_cannot_be_asked_is_refused_before_any_image_is_read(paint_image, make_spec, results):
    paint_image("1.png", [])
    with pytest.raises(PromptError, match=r"'\?'"):
        auto_label(make_spec({"class_names": ["cat", "?"]}))
    assert not (results / "cache").exists()


def test_an_image_that_only_the_prompt_file_names_is_a_failure(paint_image, make_spec, results, tmp_path):
    paint_image("1.png", [("a cat", 0.9, CAT)])
    paint_image("unasked.png", [])
    spec = make_spec(prompts(tmp_path, ("1.png", "", ["a cat"]), ("missing.png", "", ["a cat"])))
    record = auto_label(spec)
    assert (record.images.labelled, record.images.failed, record.without_prompt) == (1, 1, 1)
    assert [failure["image"] for failure in lines(results / "failures.jsonl")] == ["missing.png"]


def test_what_a_strict_nms_threshold_suppressed_does_not_come_back_under_a_lax_one(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.6, (10, 10, 70, 60)), ("cat", 0.9, (14, 14, 66, 54))])
    spec = make_spec({"class_names": ["cat", "dog"]}, reprompt="all")
    entries = [{"conf_threshold": 0.5, "nms_threshold": 0.5}, {"conf_threshold": 0.4, "nms_threshold": 0.0}]
    data = spec.model_dump()
    data["grounding_dino"]["iteration_scheduler"] = entries
    record = auto_label(validate_spec(data))
    assert [iteration.counts.labels for iteration in record.iterations] == [1, 1]


def test_a_run_with_wbf_is_not_answered_with_the_labels_of_nms(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.6, (10, 10, 70, 60)), ("cat", 0.9, (14, 14, 66, 54))])
    boxes = []
    for method in ("nms", "wbf"):
        auto_label(make_spec({"class_names": ["cat"]}, aggregation={"method": method, "iou": 0.55}))
        boxes.append(json.loads((results / "annotations.json").read_text())["annotations"][0]["bbox"])
    assert boxes[0] != boxes[1]


def test_a_data_set_in_which_nothing_can_be_read_is_not_converged(make_spec, results, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"broken")
    record = auto_label(make_spec({"class_names": ["cat"]}))
    assert record.stop_reason is StopReason.SCHEDULE_FLOOR
    assert record.iterations[-1].missing == ("cat",)
    assert record.images.failed == 1


def test_every_class_with_a_label_somewhere_and_none_added_ends_detection_mode(paint_image, make_spec, results):
    paint_image("a.png", [("cat", 0.9, CAT)])
    paint_image("b.png", [("cat", 0.35, CAT)])
    record = auto_label(make_spec({"class_names": ["cat"]}, thresholds=(0.6, 0.45, 0.3)))
    assert (record.stop_reason, len(record.iterations)) == (StopReason.CONVERGED, 2)


def test_a_picture_that_cannot_be_made_costs_no_label(make_spec, results, tmp_path):
    (tmp_path / "images").mkdir()
    strip = np.full((8, 17_000, 3), 128, np.uint8)
    strip[2:6, 100:300] = paint("cat", 0.9)
    Image.fromarray(strip).save(tmp_path / "images" / "strip.webp", format="PNG")  # WebP itself ends at 16 383
    record = auto_label(make_spec({"class_names": ["cat"]}, visualize=True))
    assert (record.images.labelled, record.images.failed, record.undrawn) == (1, 0, 1)
    assert (results / "failures.jsonl").read_bytes() == b""


def test_folders_that_no_run_has_made_are_never_deleted(paint_image, make_spec, results):
    paint_image("1.png", [("cat", 0.9, CAT)])
    mine = results / "images_annotated" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(SpecError, match="images_annotated"):
        auto_label(make_spec({"class_names": ["cat"]}))
    assert mine.read_bytes() == b"mine"


def test_pictures_of_an_earlier_run_below_the_images_are_no_images(paint_image, make_spec, tmp_path):
    paint_image("1.png", [("cat", 0.9, CAT)])
    spec = make_spec({"class_names": ["cat"]}, results_dir=str(tmp_path / "images" / "labels"), visualize=True)
    assert [auto_label(spec).images.labelled for _ in range(2)] == [1, 1]
