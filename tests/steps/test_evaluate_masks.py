"""Evaluation of masks: pycocotools' published numbers, mIoU counted pixel by pixel, and what is refused."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tasks.domain.errors import FormatError
from tasks.evaluate import STATS, evaluate_mask_files, evaluate_masks

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
COCO_EVAL = DATA / "coco_eval"
HEIGHT, WIDTH = 120, 160


def published_cases():
    """The cases of masks; none where the shared data is missing."""
    if not (COCO_EVAL / "expected.json").exists():
        return []
    cases = json.loads((COCO_EVAL / "expected.json").read_bytes())["cases"]
    return [case for case in cases if case["iou_type"] == "segm"]


CASES = published_cases()
needs_published_cases = pytest.mark.skipif(not CASES, reason=f"no published cases under {COCO_EVAL.name}")


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def plain(mask):
    """The same as run lengths in a list."""
    pixels = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def filled(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def row(name, of_class, bbox, segmentation=None, **more):
    """An annotation of an image and class, by their names; its box is filled where no segmentation is given."""
    segmentation = compressed(filled(*bbox)) if segmentation is None else segmentation
    return {"image": name, "class": of_class, "bbox": bbox, "segmentation": segmentation, **more}


def coco(*rows, images=("a.jpg", "b/a.jpg"), classes=("car", "truck")):
    """A COCO file of such rows."""
    image_ids, class_ids = ({name: i for i, name in enumerate(names, 1)} for names in (images, classes))
    annotations = []
    for number, entry in enumerate(rows, 1):
        rest = {key: value for key, value in entry.items() if key not in ("image", "class")}
        ids = {"image_id": image_ids[entry["image"]], "category_id": class_ids[entry["class"]]}
        annotations.append({"id": number, **ids, **rest})
    parts = {
        "images": [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for name, i in image_ids.items()],
        "categories": [{"id": i, "name": name} for name, i in class_ids.items()],
        "annotations": annotations,
    }
    return json.dumps(parts).encode()


CAR = row("a.jpg", "car", [10, 10, 20, 20])
TRUCK = row("b/a.jpg", "truck", [30, 10, 100, 100])
TRUTH = coco(CAR, TRUCK)
HALF_A_TRUCK = compressed(filled(30, 10, 50, 100))


@needs_published_cases
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_results_list_without_boxes_gets_the_published_numbers(case):
    """MAL-21: the published AP reads an argument that does not exist, and TAO's cannot be reached."""
    report = evaluate_masks((COCO_EVAL / case["dt"]).read_bytes(), (COCO_EVAL / case["gt"]).read_bytes())
    found = [-1 if report.coco[name] is None else report.coco[name] for name in STATS]
    assert found == case["stats_pycocotools_2_0_11"]
    assert found == pytest.approx(case["published"], abs=case["published_tolerance"])


# Means over the ground-truth boxes of larger splits of these data sets: of the box, filled, and of its ellipse.
FLOORS = {"coco_mini": (0.560, 0.593), "nuts": (0.685, 0.784), "nuclei": (0.745, 0.808)}


@pytest.mark.parametrize("name", FLOORS)
def test_labels_that_are_the_truth_have_full_marks_and_their_boxes_what_was_measured_elsewhere(name):
    path = DATA / name / "annotations.json"
    if not path.exists():
        pytest.skip(f"no data set {name}")
    quality = evaluate_mask_files(str(path), str(path)).overall.quality
    assert (quality.miou, quality.miou_found, quality.found) == (1.0, 1.0, quality.truths)
    # Half to a tenth of the images are here: a mean over 59 to 1302 objects moves by as much.
    assert (quality.miou_of_box, quality.miou_of_ellipse) == pytest.approx(FLOORS[name], abs=0.03)


def random_mask(rng):
    """A few thousand pixels in a box that the masks of other objects overlap."""
    left, top = rng.integers(0, 60), rng.integers(0, 40)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    height, width = rng.integers(8, 80), rng.integers(8, 100)
    mask[top : top + height, left : left + width] = rng.random((height, width)) < rng.random()
    mask[top, left] = mask[top + height - 1, left + width - 1] = True
    return mask, [int(left), int(top), int(width), int(height)]


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_miou_is_that_of_the_pixels_for_every_object_its_class_and_its_size(seed, number):
    """MAL-21: published numbers by size depend on which objects share a batch."""
    rng = np.random.default_rng(seed)
    truth, labels, expected = [], [], []
    for _ in range(number):
        mask, bbox = random_mask(rng)
        ours = mask ^ (rng.random(mask.shape) < 0.01)
        name, of_class = rng.choice(["a.jpg", "b/a.jpg"]), rng.choice(["car", "truck"])
        truth.append(row(name, of_class, bbox, rng.choice([compressed, plain])(mask)))
        labels.append(row(name, of_class, bbox, rng.choice([compressed, plain])(ours)))
        size = "small" if bbox[2] * bbox[3] <= 1024 else "medium" if bbox[2] * bbox[3] <= 9216 else "large"
        expected.append((of_class, size, (mask & ours).sum() / (mask | ours).sum()))
    report = evaluate_masks(coco(*labels), coco(*truth))
    assert report.overall.quality.miou == pytest.approx(np.mean([iou for *_, iou in expected]))
    for name, scores in report.classes.items():
        assert scores.quality.miou == mean_or_none(iou for of_class, _, iou in expected if of_class == name)
    for name, quality in report.sizes.items():
        assert quality.miou == mean_or_none(iou for _, size, iou in expected if size == name)


def mean_or_none(values):
    listed = list(values)
    return pytest.approx(np.mean(listed)) if listed else None


def test_an_object_counts_for_its_own_class_and_size_whatever_else_is_in_its_image():
    """MAL-21: the published mIoU by size credits an object to every class of its batch."""
    both = [row("a.jpg", "car", [0, 0, 10, 10]), row("a.jpg", "truck", [30, 10, 100, 100])]
    report = evaluate_masks(coco(both[0], {**both[1], "segmentation": HALF_A_TRUCK}), coco(*both))
    assert {name: scores.quality.miou for name, scores in report.classes.items()} == {"car": 1.0, "truck": 0.5}
    assert {size: quality.miou for size, quality in report.sizes.items()} == {
        "small": 1.0,
        "medium": None,
        "large": 0.5,
    }
    assert (report.overall.quality.miou, report.miou_classes) == (0.75, 0.75)


def test_the_mean_of_the_classes_gives_a_rare_class_the_weight_of_a_frequent_one():
    cars = [row("a.jpg", "car", [20 * i, 0, 10, 10]) for i in range(3)]
    ours = coco(*cars, {**TRUCK, "segmentation": HALF_A_TRUCK})
    report = evaluate_masks(ours, coco(*cars, TRUCK))
    assert (report.overall.quality.miou, report.miou_classes) == (3.5 / 4, 1.5 / 2)


def test_a_class_without_objects_is_not_in_the_mean_of_the_classes():
    report = evaluate_masks(coco(CAR), coco(CAR))
    assert (report.miou_classes, report.classes["truck"].quality.miou) == (1.0, None)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.randoms())
def test_the_order_of_images_and_annotations_does_not_matter(seed, shuffler):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(8):
        mask, bbox = random_mask(rng)
        names = {"image": rng.choice(["a.jpg", "b/a.jpg"]), "class": rng.choice(["car", "truck"])}
        rows.append({**row("", "", bbox, compressed(mask)), **names, "score": (number + 1) / 10})
    truth = [{**entry, "segmentation": compressed(random_mask(rng)[0])} for entry in rows]
    documents = [json.loads(coco(*part)) for part in (rows, truth)]
    before = evaluate_masks(*(json.dumps(document).encode() for document in documents))
    for document in documents:
        for part in document.values():
            shuffler.shuffle(part)
    assert evaluate_masks(*(json.dumps(document).encode() for document in documents)) == before


def test_an_object_without_a_label_counts_as_zero():
    quality = evaluate_masks(coco(CAR), TRUTH).overall.quality
    assert (quality.truths, quality.found, quality.miou, quality.miou_found) == (2, 1, 0.5, 1.0)
    assert (quality.miou_of_box, quality.miou_of_ellipse) == (0.5, pytest.approx(np.pi / 8, abs=0.01))


@pytest.mark.parametrize("failed", [{"segmentation": [], "mask_failure": "no pixel"}, {"segmentation": None}], ids=str)
def test_a_label_without_a_mask_is_counted_and_finds_its_object_with_an_overlap_of_zero(failed):
    report = evaluate_masks(coco(CAR, {**TRUCK, **failed}), TRUTH)
    quality = report.overall.quality
    assert (report.overall.labels, report.overall.labels_without_mask) == (2, 1)
    assert (quality.found, quality.miou, quality.miou_found, quality.miou_of_box) == (2, 0.5, 0.5, 1.0)
    assert report.overall.ap == pytest.approx(0.5)
    assert (report.classes["truck"].labels_without_mask, report.classes["truck"].ap) == (1, 0.0)


def test_an_object_of_the_truth_without_a_mask_makes_no_label_right_or_wrong():
    report = evaluate_masks(coco(CAR, TRUCK), coco(CAR, {**TRUCK, "segmentation": []}))
    assert (report.truths_without_mask, report.overall.quality.truths) == (1, 1)
    assert (report.overall.ap, report.classes["truck"].ap) == (pytest.approx(1), None)


def test_the_label_of_an_object_without_a_mask_does_not_take_its_neighbour():
    neighbour = row("a.jpg", "car", [12, 10, 20, 20])
    ours = coco({**neighbour, "id": 11}, {**CAR, "id": 12})
    report = evaluate_masks(ours, coco({**neighbour, "segmentation": []}, CAR))
    assert report.overall.quality.miou == 1.0


def test_crowd_regions_are_neither_objects_nor_labels():
    crowd = {**row("a.jpg", "car", [0, 0, 40, 40]), "iscrowd": 1}
    report = evaluate_masks(coco(crowd, CAR, TRUCK), coco(crowd, CAR, TRUCK))
    assert (report.overall.labels, report.crowd_labels, report.overall.quality.truths) == (2, 1, 2)
    assert (report.overall.quality.miou, report.overall.ap) == (1.0, pytest.approx(1))


def test_two_objects_in_one_box_get_the_labels_of_their_own_ids():
    left, right = compressed(filled(10, 10, 10, 20)), compressed(filled(20, 10, 10, 20))
    pair = [{**CAR, "segmentation": mask, "id": number} for mask, number in ((left, 7), (right, 8))]
    for ours in (pair, pair[::-1]):
        assert evaluate_masks(coco(*ours), coco(*pair)).overall.quality.miou == 1.0
    strangers = [{**entry, "id": entry["id"] + 10} for entry in pair]
    assert evaluate_masks(coco(*strangers), coco(*pair)).overall.quality.miou == 0.0


def test_labels_without_a_score_rank_as_one_and_are_counted():
    wrong = {**row("a.jpg", "car", [100, 60, 20, 20]), "score": 0.9}
    report = evaluate_masks(coco(wrong, CAR), coco(CAR))
    assert (report.labels_without_score, report.overall.ap) == (1, pytest.approx(1))


def test_labels_beyond_the_hundred_that_coco_ranks_are_counted():
    cars = [row("a.jpg", "car", [x, y, 4, 4]) for x in range(0, 100, 8) for y in range(0, 80, 8)]
    report = evaluate_masks(coco(*cars), coco(*cars))
    assert (len(cars), report.labels_not_ranked, report.overall.quality.miou) == (130, 30, 1.0)
    assert report.overall.ap == pytest.approx(100 / 130, abs=0.01)


def test_a_label_of_another_class_is_wrong_until_classes_do_not_count():
    ours = coco({**CAR, "class": "truck"}, TRUCK)
    assert evaluate_masks(ours, TRUTH).overall.quality.miou == 0.5
    agnostic = evaluate_masks(ours, TRUTH, class_agnostic=True)
    assert (agnostic.overall.quality.miou, list(agnostic.classes)) == (1.0, ["object"])


def test_what_only_one_side_has_is_told():
    ours = coco(CAR, row("c.jpg", "bus", [0, 0, 9, 9]), images=("a.jpg", "c.jpg"), classes=("car", "bus"))
    coverage = evaluate_masks(ours, TRUTH).coverage
    assert (coverage.images_only_in_labels, coverage.images_only_in_truth) == (("c.jpg",), ("b/a.jpg",))
    assert (coverage.classes_only_in_labels, coverage.labels_left_out) == (("bus",), 1)


def test_polygons_and_both_run_length_codes_are_the_same_mask():
    mask = filled(10, 10, 20, 20)
    polygon = [[10, 10, 30, 10, 30, 30, 10, 30]]
    for segmentation in (polygon, compressed(mask), plain(mask)):
        assert evaluate_masks(coco({**CAR, "segmentation": segmentation}), coco(CAR)).overall.quality.miou == 1.0


def test_a_label_without_a_box_has_the_one_around_its_mask():
    ours = json.loads(coco(CAR, TRUCK))
    for entry in ours["annotations"]:
        del entry["bbox"]
    for labels in (ours, ours["annotations"]):
        quality = evaluate_masks(json.dumps(labels).encode(), TRUTH).overall.quality
        assert (quality.miou, quality.miou_of_box) == (1.0, 1.0)


def test_the_report_is_json():
    """MAL-21: no number of a report is NaN."""
    report = evaluate_masks(coco(CAR), TRUTH).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert report["overall"] == {
        "labels": 1,
        "labels_without_mask": 0,
        "truths": 2,
        "found": 1,
        "miou": 0.5,
        "miou_found": 1.0,
        "miou_of_box": 0.5,
        "miou_of_ellipse": pytest.approx(np.pi / 8, abs=0.01),
        "AP": pytest.approx(0.5),
        "AP50": pytest.approx(0.5),
    }
    assert set(report["coco"]) == set(STATS)


def test_a_results_dir_and_a_file_are_read_alike(tmp_path):
    (tmp_path / "annotations.json").write_bytes(coco(CAR))
    (tmp_path / "truth.json").write_bytes(TRUTH)
    by_folder = evaluate_mask_files(str(tmp_path), str(tmp_path / "truth.json"))
    assert by_folder == evaluate_mask_files(str(tmp_path / "annotations.json"), str(tmp_path / "truth.json"))


@pytest.mark.parametrize(
    "truth",
    [
        coco(),
        coco({**CAR, "segmentation": []}),
        coco({**CAR, "iscrowd": 1}),
        coco({**CAR, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}),
    ],
)
def test_a_truth_without_any_mask_is_refused(truth):
    """MAL-21: the published mIoU is NaN without masks to compare with."""
    with pytest.raises(FormatError, match=r"the ground truth has no mask: .* expected a COCO file with masks"):
        evaluate_masks(coco(CAR), truth)


MALFORMED = [
    {"size": [HEIGHT, WIDTH], "counts": "~garbage~"},
    {"size": [HEIGHT, WIDTH], "counts": "0000"},
    {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
    {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
    [[1, 2, 3, 4]],
    [[1, 2, float("nan"), 4, 5, 6]],
    [[0, 0, 1e9, 0, 1e9, 1e9]],
    "mask.png",
]


@pytest.mark.parametrize("segmentation", MALFORMED, ids=str)
def test_a_malformed_mask_is_refused_with_its_file_and_entry(segmentation, tmp_path):
    places = {name: tmp_path / f"{name}.json" for name in ("sound", "broken", "list")}
    broken = coco(CAR, {**TRUCK, "segmentation": segmentation})
    places["sound"].write_bytes(TRUTH)
    places["broken"].write_bytes(broken)
    places["list"].write_text(json.dumps(json.loads(broken)["annotations"]))
    for labels, truth, where in (
        ("broken", "sound", f"`annotations` of the labels {places['broken']}"),
        ("sound", "broken", f"`annotations` of the ground truth {places['broken']}"),
        ("list", "sound", f"the labels {places['list']}"),
    ):
        with pytest.raises(FormatError) as error:
            evaluate_mask_files(str(places[labels]), str(places[truth]))
        assert str(error.value).startswith(f"{where}: the `segmentation` of entry 1 cannot be read: found ")


@pytest.mark.parametrize(
    "change",
    [{"height": None}, {"width": 0}, {"width": -3}, {"height": "120"}, {"height": 2**20, "width": 2**20}],
    ids=str,
)
def test_an_image_of_the_truth_without_a_size_is_refused(change):
    document = json.loads(TRUTH)
    document["images"][1] |= change
    with pytest.raises(FormatError, match="`images` of the ground truth: entry 1 has the height and width"):
        evaluate_masks(coco(CAR), json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "entry 1 has the score null"),
        ({"score": -1}, "entry 1 has the score -1"),
        ({"bbox": None}, "entry 1 has the bbox null"),
        ({"bbox": [0, 0, -1, 4]}, "entry 1 has the bbox"),
        ({"iscrowd": 2}, "entry 1 has the iscrowd 2"),
        ({"image_id": "x"}, "entry 1 has the image_id"),
    ],
    ids=str,
)
def test_a_label_with_a_value_that_cannot_be_meant_is_refused_with_its_place(change, message):
    results = json.loads(coco(CAR, TRUCK))["annotations"]
    results[1] |= change
    with pytest.raises(FormatError, match=f"the labels: {message}"):
        evaluate_masks(json.dumps(results).encode(), TRUTH)


def test_a_label_with_neither_box_nor_mask_is_refused():
    results = [{"image_id": 1, "category_id": 1, "segmentation": []}]
    with pytest.raises(FormatError, match="the labels: entry 0 has neither a box nor a mask"):
        evaluate_masks(json.dumps(results).encode(), TRUTH)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["a.jpg", "car", "0", "PPP"])),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
    max_leaves=10,
)
FIELDS = ("id", "file_name", "name", "width", "height", "image_id", "category_id")
MASK_FIELDS = ("bbox", "score", "area", "iscrowd", "segmentation")


@settings(max_examples=100)
@given(
    st.sampled_from(["images", "categories", "annotations"]),
    st.dictionaries(st.sampled_from(FIELDS + MASK_FIELDS), json_values),
)
def test_whatever_stands_in_a_file_is_evaluated_or_refused_in_words(part, change):
    document = json.loads(TRUTH)
    document[part][1] |= change
    changed = json.dumps(document).encode()
    results = json.dumps(document["annotations"]).encode()
    with np.errstate(all="ignore"):
        for ours, reference in ((changed, TRUTH), (TRUTH, changed), (results, TRUTH)):
            with contextlib.suppress(FormatError):
                evaluate_masks(ours, reference)


def test_a_file_cut_anywhere_is_evaluated_or_refused_in_words():
    for cut in range(0, len(TRUTH), 9):
        with pytest.raises(FormatError):
            evaluate_masks(TRUTH[:cut], TRUTH)
