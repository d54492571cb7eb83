"""What a results_dir stands for: to a run over a COCO file that would write there, and to an evaluation."""

import json
from pathlib import Path

import pytest

from flows.auto_label import auto_label
from flows.segment_masks import segment_masks
from tasks.domain.errors import ArtifactError, FormatError, SpecError
from tasks.evaluate import evaluate, evaluate_mask_files

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

CAT = (10, 10, 60, 50)
BOX = (20, 10, 60, 40)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_of_a_file_are_refused_where_they_would_replace_what_a_detection_left(
    paint_image, make_spec, make_mask_spec, results
):
    paint_image("a.png", [("cat", 0.9, CAT)])
    auto_label(make_spec({"class_names": ["cat"]}, visualize=True))
    before = contents(results)
    assert "images_annotated/a.png" in before
    with pytest.raises(SpecError, match=r"results holds the labels of a detection, .* 'grounding_dino\+mal'"):
        segment_masks(make_mask_spec({"ann_path": str(results / "annotations.json")}))
    assert contents(results) == before


@pytest.mark.parametrize("where", ["relative to results_dir", "one folder deeper", "absolute", "a URL"])
def test_the_labels_of_a_run_over_a_coco_file_are_those_that_it_wrote(
    paint_image, write_boxes, make_mask_spec, results, tmp_path, where
):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX, BOX]})
    path = {
        "relative to results_dir": "masks.json",
        "one folder deeper": "deeper/masks.json",
        "absolute": str(tmp_path / "elsewhere" / "masks"),
        "a URL": f"file://{tmp_path}/elsewhere/masks.json",
    }[where]
    segment_masks(make_mask_spec({"label_dump_path": path}))
    written = {"absolute": path, "a URL": path.removeprefix("file://")}.get(where, str(results / path))
    truth = tmp_path / "truth.json"
    truth.write_bytes(Path(written).read_bytes())
    quality = evaluate_mask_files(str(results), str(truth)).overall.quality
    assert (quality.truths, quality.miou) == (2, 1.0)


def test_boxes_of_a_run_over_a_coco_file_are_compared_without_iterations(
    paint_image, write_boxes, make_mask_spec, results, tmp_path
):
    paint_image("a.png", [])
    row = {"id": 1, "image_id": 1, "category_id": 7, "bbox": list(BOX), "score": 0.5, "area": 1}
    write_boxes({"a.png": []}, annotations=[row])
    segment_masks(make_mask_spec())
    report = evaluate(str(results), str(tmp_path / "boxes.json"))
    assert (report.overall.labels, report.overall.counts.true_positives, report.iterations) == (1, 1, {})


@pytest.mark.parametrize("record", [None, {"spec": {"autolabel_type": "grounding_dino"}}, {"spec": None}, []])
def test_a_folder_without_labels_is_refused_with_the_way_out(results, record):
    results.mkdir()
    if record is not None:
        (results / "run.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"holds no annotations\.json, .*; name the COCO file itself"):
        evaluate_mask_files(str(results), "truth.json")


def test_a_record_of_masks_lists_no_iterations_and_one_of_neither_is_refused(results, write_boxes):
    boxes = write_boxes({"a.png": [BOX]})
    boxes["annotations"] = [row | {"score": 0.5} for row in boxes["annotations"]]
    for folder in (results, results / "auto_label0"):
        folder.mkdir()
        (folder / "annotations.json").write_text(json.dumps(boxes))
    (results / "run.json").write_text('{"masks": {}}')
    assert evaluate(str(results), str(results / "annotations.json")).iterations_are != "after iteration"
    (results / "run.json").write_text("{}")
    with pytest.raises(FormatError, match=r"run\.json: found no list of iterations"):
        evaluate(str(results), str(results / "annotations.json"))
