"""Evaluation against ground truth: pycocotools' published numbers, and names in place of ids."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.errors import ArtifactError, FormatError
from tasks.domain.images import Image
from tasks.domain.matching import Counts
from tasks.evaluate import STATS, evaluate, evaluate_boxes
from tasks.formats.coco import dump_coco

COCO_EVAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_eval"
CLASSES = ("car", "truck")


def published_cases():
    """The cases of boxes whose files are there; none where the shared data is missing."""
    if not (COCO_EVAL / "expected.json").exists():
        return []
    expected = json.loads((COCO_EVAL / "expected.json").read_bytes())
    assert tuple(expected["keys"]) == STATS
    cases = [case for case in expected["cases"] if case["iou_type"] == "bbox"]
    return [case for case in cases if (COCO_EVAL / case["gt"]).exists() and (COCO_EVAL / case["dt"]).exists()]


CASES = published_cases()
needs_published_cases = pytest.mark.skipif(not CASES, reason=f"no published cases under {COCO_EVAL.name}")


def label(phrase, box, score=0.9, iteration=0):
    return Annotation(phrase, box, score, iteration, 0.5, ())


def labelled(key, *annotations):
    return LabelledImage(Image(key, "ab" * 32, 640, 480), (Record(0, None, CLASSES, annotations),))


def labels(*images):
    return dump_coco(images, CLASSES)


def truth(objects, image_ids=None, class_ids=None, **more):
    """A COCO file of (file name, class, xywh) objects under whatever ids."""
    image_ids = image_ids or {name: 7 * i for i, name in enumerate(dict.fromkeys(name for name, _, _ in objects))}
    class_ids = class_ids or {"truck": 3, "car": 90}
    rows = [
        {"id": i, "image_id": image_ids[name], "category_id": class_ids[of_class], "bbox": bbox, **more}
        for i, (name, of_class, bbox) in enumerate(objects)
    ]
    images = [{"id": i, "file_name": name, "width": 640, "height": 480} for name, i in image_ids.items()]
    categories = [{"id": i, "name": name} for name, i in class_ids.items()]
    return json.dumps({"images": images, "annotations": rows, "categories": categories}).encode()


CAR, TRUCK = (10.0, 10.0, 60.0, 60.0), (200.0, 100.0, 300.0, 180.0)
TRUTH = truth([("a.jpg", "car", [10, 10, 50, 50]), ("b/a.jpg", "truck", [200, 100, 100, 80])])


@needs_published_cases
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_results_list_gets_the_published_numbers(case):
    report = evaluate_boxes((COCO_EVAL / case["dt"]).read_bytes(), (COCO_EVAL / case["gt"]).read_bytes())
    found = [-1 if report.coco[name] is None else report.coco[name] for name in STATS]
    assert found == pytest.approx(case["stats_pycocotools_2_0_11"], abs=1e-9)
    if case["published"] is not None:
        assert found == pytest.approx(case["published"], abs=case["published_tolerance"])


@needs_published_cases
def test_ap_is_the_mean_of_the_classes_that_have_truth():
    case = CASES[0]
    report = evaluate_boxes((COCO_EVAL / case["dt"]).read_bytes(), (COCO_EVAL / case["gt"]).read_bytes())
    per_class = [scores.ap for scores in report.classes.values() if scores.ap is not None]
    assert report.overall.ap == pytest.approx(sum(per_class) / len(per_class))


def test_labels_that_are_the_truth_get_full_marks_whatever_the_ids():
    report = evaluate_boxes(
        labels(labelled("a.jpg", label("car", CAR)), labelled("b/a.jpg", label("truck", TRUCK))), TRUTH
    )
    assert (report.coco["AP"], report.overall.counts) == (pytest.approx(1), Counts(true_positives=2))
    assert {name: scores.counts for name, scores in report.classes.items()} == {
        "car": Counts(true_positives=1),
        "truck": Counts(true_positives=1),
    }


@settings(max_examples=20)
@given(st.permutations(range(5)), st.permutations(range(5)))
def test_renumbering_the_truth_changes_nothing(image_numbers, class_numbers):
    objects = [("a.jpg", "car", [10, 10, 50, 50]), ("b/a.jpg", "truck", [200, 100, 100, 80])]
    renumbered = truth(
        objects,
        dict(zip(["a.jpg", "b/a.jpg"], image_numbers, strict=False)),
        dict(zip(["car", "truck"], class_numbers, strict=False)),
    )
    ours = labels(labelled("a.jpg", label("car", CAR), label("truck", CAR)), labelled("b/a.jpg"))
    before, after = evaluate_boxes(ours, TRUTH).to_json(), evaluate_boxes(ours, renumbered).to_json()
    assert after == before


def test_a_label_of_another_class_is_wrong_until_classes_do_not_count():
    ours = labels(labelled("a.jpg", label("truck", CAR)), labelled("b/a.jpg"))
    assert evaluate_boxes(ours, TRUTH).overall.counts == Counts(0, 1, 2)
    assert evaluate_boxes(ours, TRUTH, class_agnostic=True).overall.counts == Counts(1, 0, 1)


def test_without_classes_files_that_share_none_can_be_compared():
    objects = truth([("a.jpg", "car", [10, 10, 50, 50])], class_ids={"car": 1})
    ours = dump_coco(
        [LabelledImage(Image("a.jpg", "", 640, 480), (Record(0, "", ("a red car",), (label("a red car", CAR),)),))], ()
    )
    assert evaluate_boxes(ours, objects, class_agnostic=True).overall.counts == Counts(true_positives=1)


def test_what_only_one_side_has_is_told():
    ours = dump_coco([labelled("a.jpg", label("car", CAR)), labelled("c.jpg", label("car", CAR))], ("car", "bus"))
    coverage = evaluate_boxes(ours, TRUTH).coverage
    assert (coverage.images, coverage.images_only_in_labels, coverage.images_only_in_truth) == (
        2,
        ("c.jpg",),
        ("b/a.jpg",),
    )
    assert (coverage.classes_only_in_labels, coverage.classes_only_in_truth) == (("bus",), ("truck",))
    assert coverage.labels_left_out == 1


def test_ids_of_results_that_the_truth_does_not_have_are_told():
    results = [
        {"image_id": 0, "category_id": 90, "bbox": [10, 10, 50, 50], "score": 0.9},
        {"image_id": 99, "category_id": 90, "bbox": [10, 10, 50, 50], "score": 0.9},
        {"image_id": 0, "category_id": 5, "bbox": [10, 10, 50, 50], "score": 0.9},
    ]
    coverage = evaluate_boxes(json.dumps(results).encode(), TRUTH).coverage
    assert (coverage.images_only_in_labels, coverage.classes_only_in_labels) == (("id 99",), ("id 5",))
    assert (coverage.classes_only_in_truth, coverage.labels_left_out) == (("truck",), 2)


def test_an_object_of_an_image_that_was_not_labelled_is_missed():
    assert evaluate_boxes(labels(labelled("a.jpg", label("car", CAR))), TRUTH).overall.counts == Counts(1, 0, 1)


def test_of_a_lone_file_the_labels_up_to_each_iteration_are_judged():
    ours = labels(
        labelled("a.jpg", label("car", CAR, iteration=0)),
        labelled("b/a.jpg", label("truck", TRUCK, iteration=2), label("car", (0.0, 0.0, 9.0, 9.0), iteration=2)),
    )
    report = evaluate_boxes(ours, TRUTH)
    assert report.iterations_are == report.to_json()["iterations_are"] == "labels up to iteration"
    iterations = report.iterations
    assert {k: (scores.labels, scores.counts) for k, scores in iterations.items()} == {
        0: (1, Counts(1, 0, 1)),
        1: (1, Counts(1, 0, 1)),
        2: (3, Counts(2, 1, 0)),
    }


def write_run(folder, *after, listed=None):
    """A results_dir with the labels after each iteration, the last of them delivered, and a record that lists some."""
    for k, document in enumerate(after):
        (folder / f"auto_label{k}").mkdir()
        (folder / f"auto_label{k}" / "annotations.json").write_bytes(document)
    (folder / "annotations.json").write_bytes(after[-1])
    (folder / "truth.json").write_bytes(TRUTH)
    if listed is not None:
        (folder / "run.json").write_text(json.dumps({"iterations": [{}] * listed}))
    return str(folder), str(folder / "truth.json")


REPLACED = (
    labels(labelled("a.jpg", label("car", CAR, 0.5, iteration=0)), labelled("b/a.jpg")),
    labels(labelled("a.jpg", label("car", CAR, 0.9, iteration=1)), labelled("b/a.jpg")),
)


@pytest.mark.parametrize("listed", [None, 2])
def test_of_a_run_the_labels_as_they_stood_after_each_iteration_are_judged(listed, tmp_path):
    report = evaluate(*write_run(tmp_path, *REPLACED, listed=listed))
    assert {k: scores.counts for k, scores in report.iterations.items()} == {0: Counts(1, 0, 1), 1: Counts(1, 0, 1)}
    assert report.iterations_are == "after iteration"


def test_the_file_of_that_run_alone_knows_only_its_final_labels(tmp_path):
    _, reference = write_run(tmp_path, *REPLACED)
    report = evaluate(str(tmp_path / "annotations.json"), reference)
    assert {k: scores.counts for k, scores in report.iterations.items()} == {0: Counts(0, 0, 2), 1: Counts(1, 0, 1)}
    assert report.iterations_are == "labels up to iteration"


def test_folders_beyond_the_iterations_that_the_record_lists_are_not_judged(tmp_path):
    assert list(evaluate(*write_run(tmp_path, *REPLACED, REPLACED[1], listed=2)).iterations) == [0, 1]


def test_the_scores_after_the_last_iteration_are_those_of_the_delivered_labels(tmp_path):
    report = evaluate(*write_run(tmp_path, *REPLACED))
    assert report.iterations[1] == report.overall


def test_an_iteration_whose_classes_the_truth_does_not_have_found_nothing_of_it(tmp_path):
    strange = dump_coco(
        [LabelledImage(Image("a.jpg", "", 640, 480), (Record(0, "", ("bus",), (label("bus", CAR),)),))], ()
    )
    report = evaluate(*write_run(tmp_path, strange, REPLACED[1]))
    assert report.iterations[0].counts == Counts(0, 0, 2)


def test_classes_count_after_an_iteration_neither_if_they_do_not_count(tmp_path):
    wrong = labels(labelled("a.jpg", label("truck", CAR)), labelled("b/a.jpg"))
    report = evaluate(*write_run(tmp_path, wrong), class_agnostic=True)
    assert report.iterations[0].counts == Counts(1, 0, 1)


def test_a_record_of_a_run_that_is_none_is_named(tmp_path):
    places = write_run(tmp_path, *REPLACED)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(FormatError, match=r"run\.json: found no list of iterations"):
        evaluate(*places)


def test_labels_of_other_tools_have_no_iterations():
    results = [{"image_id": 0, "category_id": 90, "bbox": [10, 10, 50, 50], "score": 0.9}]
    assert evaluate_boxes(json.dumps(results).encode(), TRUTH).iterations == {}


def test_a_class_without_truth_has_no_ap_and_no_recall():
    objects = truth([("a.jpg", "car", [10, 10, 50, 50])])
    scores = evaluate_boxes(labels(labelled("a.jpg", label("truck", TRUCK))), objects).classes["truck"]
    assert (scores.ap, scores.ap50, scores.counts.recall, scores.counts.precision) == (None, None, None, 0.0)


def test_no_label_at_all_is_an_ap_of_zero():
    assert evaluate_boxes(labels(labelled("a.jpg"), labelled("b/a.jpg")), TRUTH).coco["AP"] == 0


def test_an_object_with_the_id_zero_can_be_found():
    objects = truth([("a.jpg", "car", [10, 10, 50, 50])])
    assert json.loads(objects)["annotations"][0]["id"] == 0
    assert evaluate_boxes(labels(labelled("a.jpg", label("car", CAR))), objects).coco["AP"] == pytest.approx(1)


def test_crowds_are_ignored():
    crowds = truth([("a.jpg", "car", [0, 0, 100, 100])], iscrowd=1, area=10000)
    assert evaluate_boxes(labels(labelled("a.jpg", label("car", CAR))), crowds).overall.counts == Counts()


def test_pycocotools_is_kept_quiet(capsys):
    evaluate_boxes(labels(labelled("a.jpg", label("car", CAR))), TRUTH)
    assert capsys.readouterr().out == ""


def test_the_report_is_json():
    report = evaluate_boxes(labels(labelled("a.jpg", label("car", CAR))), TRUTH).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert report["overall"]["recall"] == 0.5


def test_a_results_dir_and_a_file_are_read_alike(tmp_path):
    (tmp_path / "annotations.json").write_bytes(labels(labelled("a.jpg", label("car", CAR))))
    (tmp_path / "truth.json").write_bytes(TRUTH)
    by_folder = evaluate(str(tmp_path), str(tmp_path / "truth.json"))
    assert by_folder == evaluate(str(tmp_path / "annotations.json"), str(tmp_path / "truth.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"annotations\.json"):
        evaluate(str(tmp_path), str(tmp_path / "truth.json"))


@pytest.mark.parametrize("broken", [b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_json_is_named(broken, tmp_path):
    (tmp_path / "annotations.json").write_bytes(broken)
    (tmp_path / "sound.json").write_bytes(b"[]")
    with pytest.raises(FormatError, match=re.escape(f"the labels {tmp_path}/annotations.json: not JSON")):
        evaluate(str(tmp_path), str(tmp_path))
    with pytest.raises(FormatError, match=re.escape(f"the ground truth {tmp_path}/annotations.json: not JSON")):
        evaluate(str(tmp_path / "sound.json"), str(tmp_path))


RESULT = {"image_id": 0, "category_id": 90, "bbox": [10, 10, 50, 50], "score": 0.9}


@pytest.mark.parametrize(
    "change",
    [
        {"score": float("nan")},
        {"score": float("inf")},
        {"score": -0.5},
        {"score": True},
        {"bbox": [10, 10, float("nan"), 50]},
        {"bbox": [float("-inf"), 10, 50, 50]},
        {"bbox": [10, 10, -50, 50]},
        {"bbox": [10, 10, 50, -0.1]},
        {"bbox": [10, 10, 10**400, 50]},
        {"image_id": "zero"},
        {"image_id": True},
        {"image_id": 10**400},
        {"category_id": "car"},
        {"category_id": 1.5},
        {"iteration": "first"},
        {"iteration": -1},
        {"iteration": None},
    ],
    ids=str,
)
def test_a_result_with_a_value_that_cannot_be_meant_is_refused_with_its_place(change):
    results = json.dumps([RESULT, {**RESULT, **change}]).encode()
    with pytest.raises(FormatError, match="the labels: entry 1 "):
        evaluate_boxes(results, TRUTH)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("images", {"id": "seven"}),
        ("images", {"id": 0}),
        ("images", {"file_name": 3}),
        ("categories", {"id": "car"}),
        ("categories", {"name": 3}),
        ("annotations", {"image_id": "a.jpg"}),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}),
        ("annotations", {"bbox": [1, 2, -3, 4]}),
        ("annotations", {"area": float("inf")}),
        ("annotations", {"area": "large"}),
        ("annotations", {"iscrowd": None}),
    ],
    ids=str,
)
def test_a_truth_with_a_value_that_cannot_be_meant_is_refused_with_its_place(part, change):
    document = json.loads(TRUTH)
    document[part][1] |= change
    with pytest.raises(FormatError, match=f"`{part}` of the ground truth: entry 1 "):
        evaluate_boxes(b"[]", json.dumps(document).encode())


def test_ids_that_are_text_throughout_are_ids():
    reference = truth([("a.jpg", "car", [10, 10, 50, 50])], {"a.jpg": "first"}, {"car": "C"})
    results = [{**RESULT, "image_id": "first", "category_id": "C"}]
    assert evaluate_boxes(json.dumps(results).encode(), reference).overall.counts == Counts(true_positives=1)


def test_a_file_without_anything_has_no_scores():
    empty = b'{"images": [], "categories": [], "annotations": []}'
    assert evaluate_boxes(empty, empty).overall.counts == Counts()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["a.jpg", "car", "x"])),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=4,
)
FIELDS = ("id", "file_name", "name", "image_id", "category_id", "bbox", "score", "area", "iscrowd", "iteration")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["images", "categories", "annotations"]), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_whatever_stands_in_a_file_is_evaluated_or_refused_in_words(part, change):
    document = json.loads(labels(labelled("a.jpg", label("car", CAR)), labelled("b/a.jpg", label("truck", TRUCK))))
    document[part][1] |= change
    changed = json.dumps(document).encode()
    with np.errstate(all="ignore"):
        results = json.dumps([RESULT, {**RESULT, **change}]).encode()
        for ours, reference in ((changed, TRUTH), (json.dumps([RESULT]).encode(), changed), (results, TRUTH)):
            with contextlib.suppress(FormatError):
                evaluate_boxes(ours, reference)


@pytest.mark.parametrize(
    ("ours", "reference", "message"),
    [
        (b"{", TRUTH, "the labels: not JSON"),
        (b"7", TRUTH, "the labels: found 7, expected a list of objects"),
        (b'{"images": []}', TRUTH, "`categories` of the labels: found null, expected a list of objects"),
        (b"[]", b"[]", "the ground truth: found no object with images, categories, annotations"),
        (b'[{"image_id": 0, "category_id": 90, "bbox": [1, 2, 3, 4]}]', TRUTH, "entry 0 is .* expected .* score"),
        (
            b"[]",
            TRUTH.replace(b'"bbox": [10, ', b'"bbox": ["x", '),
            "`annotations` of the ground truth: entry 0 is .*bbox",
        ),
        (
            json.dumps([{"segmentation": [[1.5] * 99], "image_id": 0, "category_id": 90, "bbox": "x"}]).encode(),
            TRUTH,
            'entry 0 is {"image_id": 0, "category_id": 90, "bbox": "x"}, expected',
        ),
        (b"[]", TRUTH.replace(b'"image_id": 7', b'"image_id": 8'), "entry 1 has image_id 8 and category_id 3"),
        (labels(labelled("z.jpg")), TRUTH, "no image in common: labels have 'z.jpg', the truth has 'a.jpg', 'b/a.jpg'"),
        (dump_coco([labelled("a.jpg")], ("bus",)), TRUTH, "no class in common: labels have 'bus'"),
        (
            labels(labelled("a.jpg")),
            truth([], {"a.jpg": 1}, {"car": 1}).replace(
                b'"categories": [', b'"categories": [{"id": 2, "name": "car"}, '
            ),
            "the same `name` twice",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(ours, reference, message):
    with pytest.raises(FormatError, match=message):
        evaluate_boxes(ours, reference)
