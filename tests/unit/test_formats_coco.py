"""The COCO file of labels: an exact round trip, and a file that pycocotools takes for its own."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.detections import Detection
from tasks.domain.errors import FormatError
from tasks.domain.images import Image
from tasks.formats.coco import (
    box_xywh,
    box_xyxy,
    distinct_phrases,
    dump_coco,
    join_coco,
    joined_categories,
    load_coco,
)

CLASSES = ("person", "fire truck", "truck")

thousandths = st.integers(0, 70_000_000).map(lambda n: n / 1000)
boxes = st.tuples(thousandths, thousandths, thousandths, thousandths).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
unit = st.floats(0, 1)


def detections(phrases):
    return st.builds(Detection, st.sampled_from(phrases), boxes, unit, st.integers(0, 9), unit)


def annotations(phrases):
    merged = st.lists(detections(phrases), max_size=2).map(tuple)
    return st.builds(Annotation, st.sampled_from(phrases), boxes, unit, st.integers(0, 9), unit, merged)


def labels(phrases):
    return st.lists(annotations(phrases), max_size=3).map(tuple) if phrases else st.just(())


@st.composite
def detection_images(draw):
    keys = draw(st.lists(st.text(min_size=1), unique=True, max_size=4))
    images = [Image(key, f"{i:064x}", draw(st.integers(1, 70_000)), 480) for i, key in enumerate(sorted(keys))]
    return tuple(LabelledImage(image, (Record(0, None, CLASSES, draw(labels(CLASSES))),)) for image in images)


@st.composite
def grounding_records(draw):
    records = []
    for caption_id in range(draw(st.integers(0, 3))):
        phrases = tuple(draw(st.lists(st.text(min_size=1), unique=True, max_size=3)))
        records.append(Record(caption_id, draw(st.text()), phrases, draw(labels(phrases))))
    return tuple(records)


grounding_images = st.lists(grounding_records(), max_size=3).map(
    lambda all_records: tuple(
        LabelledImage(Image(f"{i}.jpg", f"{i:064x}", 640, 480), records) for i, records in enumerate(all_records)
    )
)


def label(phrase="person", box=(10.0, 20.0, 30.5, 60.25), iteration=0):
    found = Detection(phrase, box, 0.75, iteration, 0.5)
    return Annotation(phrase, box, 0.75, iteration, 0.5, (found,))


def image(key, *found, phrases=CLASSES):
    return LabelledImage(Image(key, "ab" * 32, 640, 480), (Record(0, None, phrases, found),))


@given(boxes)
def test_a_box_in_thousandths_of_a_pixel_comes_back_exactly(box):
    assert box_xyxy(box_xywh(box)) == box


@given(detection_images())
def test_images_of_detection_mode_come_back_exactly(images):
    assert load_coco(dump_coco(images, CLASSES)) == (images, CLASSES)


@given(grounding_images)
def test_images_of_grounding_mode_come_back_exactly(images):
    assert load_coco(dump_coco(images, ())) == (images, distinct_phrases(images))


@given(detection_images(), st.integers(0, 4))
def test_joined_shards_of_detection_mode_are_the_bytes_of_all_at_once(images, cut):
    shards = [dump_coco(part, CLASSES) for part in (images[:cut], images[cut:])]
    assert b"".join(join_coco(lambda: shards, CLASSES)) == dump_coco(images, CLASSES)


@given(grounding_images, st.integers(0, 3))
def test_joined_shards_of_grounding_mode_are_the_bytes_of_all_at_once(images, cut):
    shards = [dump_coco(part, ()) for part in (images[:cut], images[cut:])]
    assert b"".join(join_coco(lambda: shards, joined_categories(lambda: shards))) == dump_coco(images, ())


@pytest.mark.parametrize(
    "shard",
    [
        b'{"categories":[],"annotations":[],"images":[]}',
        dump_coco([image("a.jpg", label())], CLASSES).replace(b'{"id":1,"image_id"', b'{"image_id"'),
        dump_coco([image("a.jpg")], CLASSES).replace(b'{"id":1,"file_name"', b'{"file_name"'),
    ],
)
def test_what_no_run_has_written_is_not_joined(shard):
    with pytest.raises(FormatError, match="run again"):
        list(join_coco(lambda: [shard], CLASSES))


def test_the_file_reads_as_documented():
    images = [image("a/1.jpg", label("truck")), image("b/1.jpg")]
    assert dump_coco(images, ("person", "truck")).decode() == (
        '{"info":{"description":"Labels made by AutoLabel Flow"},\n'
        '"categories":[\n'
        '{"id":1,"name":"person","supercategory":""},\n'
        '{"id":2,"name":"truck","supercategory":""}\n'
        '],\n"annotations":[\n'
        '{"id":1,"image_id":1,"category_id":2,"phrase":"truck","bbox":[10.0,20.0,20.5,40.25],"score":0.75,'
        '"iteration":0,"threshold":0.5,"area":825.125,"iscrowd":0,"segmentation":[],"merged_from":['
        '{"phrase":"truck","bbox":[10.0,20.0,20.5,40.25],"score":0.75,"iteration":0,"threshold":0.5}],"caption_id":0}\n'
        '],\n"images":[\n'
        f'{{"id":1,"file_name":"a/1.jpg","width":640,"height":480,"sha256":"{"ab" * 32}",'
        '"records":[{"caption_id":0,"caption":null,"noun_chunks":["person","fire truck","truck"]}]},\n'
        f'{{"id":2,"file_name":"b/1.jpg","width":640,"height":480,"sha256":"{"ab" * 32}",'
        '"records":[{"caption_id":0,"caption":null,"noun_chunks":["person","fire truck","truck"]}]}\n'
        "]}\n"
    )


def test_an_image_that_was_asked_for_the_categories_says_so_by_saying_nothing():
    document = json.loads(dump_coco([image("a.jpg", label())], CLASSES))
    assert "records" not in document["images"][0]
    assert "caption_id" not in document["annotations"][0]


def opened_by_pycocotools(path: Path, images) -> COCO:
    path.write_bytes(dump_coco(images, CLASSES))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_finds_every_label_under_its_class_and_image(tmp_path):
    images = [image("a/1.jpg", label("truck"), label("person")), image("a/2.jpg", label("truck"))]
    coco = opened_by_pycocotools(tmp_path / "annotations.json", images)
    trucks = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(["truck"])))
    assert [coco.imgs[truck["image_id"]]["file_name"] for truck in trucks] == ["a/1.jpg", "a/2.jpg"]


def test_pycocotools_takes_our_annotations_as_results(tmp_path):
    images = [image("a/1.jpg", label("truck"), label("person")), image("a/2.jpg", label("truck"))]
    coco = opened_by_pycocotools(tmp_path / "annotations.json", images)
    with contextlib.redirect_stdout(io.StringIO()):
        results = coco.loadRes(json.loads((tmp_path / "annotations.json").read_bytes())["annotations"])
    assert [result["area"] for result in results.anns.values()] == [row["area"] for row in coco.anns.values()]


def test_an_image_found_empty_is_still_an_image_looked_at(tmp_path):
    coco = opened_by_pycocotools(tmp_path / "annotations.json", [image("a.jpg", label()), image("empty.jpg")])
    assert [row["file_name"] for row in coco.imgs.values()] == ["a.jpg", "empty.jpg"]


def test_d9_every_caption_of_an_image_keeps_its_own_labels():
    records = tuple(Record(i, f"caption {i}", (f"chunk {i}",), (label(f"chunk {i}"),)) for i in range(5))
    images = (LabelledImage(Image("a.jpg", "ab" * 32, 640, 480), records),)
    assert load_coco(dump_coco(images, ()))[0] == images


def test_d11_an_empty_caption_stays_a_caption():
    images = (LabelledImage(Image("a.jpg", "ab" * 32, 640, 480), (Record(0, "", ("a dog",), (label("a dog"),)),)),)
    assert load_coco(dump_coco(images, ()))[0] == images


def test_d14_an_annotation_says_how_sure_when_and_from_what():
    members = (
        Detection("truck", (1.0, 2.0, 3.0, 4.0), 0.9, 0, 0.5),
        Detection("truck", (1.0, 2.0, 3.0, 5.0), 0.4, 1, 0.3),
    )
    fused = Annotation("truck", (1.0, 2.0, 3.0, 4.5), 0.65, 0, 0.5, members)
    (row,) = json.loads(dump_coco([image("a.jpg", fused)], CLASSES))["annotations"]
    assert {name: row[name] for name in ("score", "iteration", "threshold", "phrase", "merged_from")} == {
        "score": 0.65,
        "iteration": 0,
        "threshold": 0.5,
        "phrase": "truck",
        "merged_from": [
            {"phrase": "truck", "bbox": [1.0, 2.0, 2.0, 2.0], "score": 0.9, "iteration": 0, "threshold": 0.5},
            {"phrase": "truck", "bbox": [1.0, 2.0, 2.0, 3.0], "score": 0.4, "iteration": 1, "threshold": 0.3},
        ],
    }


@given(st.permutations(["a dog", "a man", "the sky", "a leash"]))
def test_d15_the_order_of_phrases_does_not_change_the_categories(phrases):
    records = tuple(Record(i, "", (phrase,)) for i, phrase in enumerate(phrases))
    images = [LabelledImage(Image("a.jpg", "ab" * 32, 640, 480), records)]
    assert distinct_phrases(images) == ("a dog", "a leash", "a man", "the sky")


def test_a_file_name_that_is_no_unicode_comes_back_exactly():
    images = (image("caf\udce9.jpg"),)
    assert load_coco(dump_coco(images, CLASSES))[0] == images


def test_the_file_is_ascii_for_readers_that_guess_the_encoding():
    assert dump_coco([image("Größe/人.jpg")], ("人",)).isascii()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"images": [], "annotations": []}', b'{"categories": [{"id": 1}]}'])
def test_a_file_that_is_not_ours_is_refused(data):
    with pytest.raises(FormatError, match=r"not an annotations\.json of a labelling run"):
        load_coco(data)
