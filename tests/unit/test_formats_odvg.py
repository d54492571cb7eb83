"""ODVG and remaining.jsonl: TAO's names, and what TAO's own files lose."""

import json

import pytest

from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.errors import FormatError
from tasks.domain.images import Image
from tasks.formats.coco import dump_coco
from tasks.formats.labelmap import dump_labelmap, load_labelmap
from tasks.formats.noun_chunks import load_noun_chunks
from tasks.formats.odvg import OdvgEntry, Region, dump_odvg, dump_remaining, load_odvg, odvg_entries

CLASSES = ("car", "truck")


def label(phrase, score=0.75, box=(1.0, 2.0, 30.5, 40.25)):
    return Annotation(phrase, box, score, 0, 0.5, ())


def image(key, *records):
    return LabelledImage(Image(key, "ab" * 32, 640, 480), records)


def lines(images, categories=CLASSES):
    return [json.loads(line) for line in dump_odvg(odvg_entries(images, categories))]


def remaining(images):
    return [json.loads(line) for line in dump_remaining(images)]


def test_a_line_of_detection_mode_has_taos_names():
    assert lines([image("a/1.jpg", Record(0, None, CLASSES, (label("truck"),)))]) == [
        {
            "file_name": "a/1.jpg",
            "height": 480,
            "width": 640,
            "detection": {
                "instances": [{"bbox": [1.0, 2.0, 30.5, 40.25], "category": "truck", "label": 1, "score": 0.75}]
            },
        }
    ]


def test_d10_a_line_of_grounding_mode_has_its_caption_under_taos_first_name_for_it():
    assert lines([image("a/1.jpg", Record(0, "a dog runs", ("a dog",), (label("a dog"),)))]) == [
        {
            "file_name": "a/1.jpg",
            "height": 480,
            "width": 640,
            "grounding": {
                "caption": "a dog runs",
                "caption_id": 0,
                "regions": [{"bbox": [1.0, 2.0, 30.5, 40.25], "phrase": "a dog", "score": 0.75}],
            },
        }
    ]


def test_entries_come_back_exactly():
    images = [
        image("a.jpg", Record(0, None, CLASSES, (label("truck", 1 / 3), label("car")))),
        image("b.jpg", Record(0, None, CLASSES)),
        image("c.jpg", Record(0, "one", ("a dog",), (label("a dog"),)), Record(3, "", ("a man",))),
    ]
    entries = tuple(odvg_entries(images, CLASSES))
    assert load_odvg(b"".join(dump_odvg(entries)), "final_annotation.jsonl") == entries


def test_an_image_without_labels_is_a_line_with_an_empty_list():
    assert lines([image("a.jpg", Record(0, None, CLASSES))])[0]["detection"] == {"instances": []}


def test_d9_every_caption_of_an_image_is_a_line():
    records = [Record(i, f"caption {i}", ("a dog",), (label("a dog"),)) for i in range(5)]
    assert [line["grounding"]["caption_id"] for line in lines([image("a.jpg", *records)])] == [0, 1, 2, 3, 4]


def test_d11_an_empty_caption_stays_grounding_and_keeps_its_regions():
    (entry,) = load_odvg(
        b"".join(dump_odvg(odvg_entries([image("a.jpg", Record(0, "", ("a",), (label("a"),)))], ()))), ""
    )
    assert (entry.caption, len(entry.regions)) == ("", 1)


def test_d14_a_region_carries_its_score():
    (entry,) = odvg_entries([image("a.jpg", Record(0, "x", ("a",), (label("a", 0.375),)))], ())
    assert entry.regions[0].score == 0.375


def test_d15_lines_stand_in_the_order_of_the_images():
    keys = [f"{i}.jpg" for i in range(20)]
    assert [line["file_name"] for line in lines([image(key, Record(0, None, CLASSES)) for key in keys])] == keys


def test_d17_label_map_odvg_and_coco_number_the_classes_by_one_rule():
    labelled = image("a.jpg", Record(0, None, CLASSES, (label("car"), label("truck"))))
    coco = json.loads(dump_coco([labelled], CLASSES))
    by_id = {category["id"]: category["name"] for category in coco["categories"]}
    by_label = load_labelmap(dump_labelmap(CLASSES))
    instances = lines([labelled])[0]["detection"]["instances"]
    assert [by_label[instance["label"]] for instance in instances] == ["car", "truck"]
    assert [by_id[row["category_id"]] for row in coco["annotations"]] == ["car", "truck"]
    assert [row["category_id"] - 1 for row in coco["annotations"]] == [instance["label"] for instance in instances]


def test_d30_a_caption_without_labels_is_a_line_with_no_regions_that_can_be_told_and_left_out():
    images = [image("a.jpg", Record(0, "x", ("a",))), image("b.jpg", Record(0, "y", ("b",), (label("b"),)))]
    assert [len(line["grounding"]["regions"]) for line in lines(images)] == [0, 1]


def test_a_detection_file_as_tao_writes_it_is_read_without_scores():
    line = (
        b'{"file_name": "1.jpg", "height": 40, "width": 60, '
        b'"detection": {"instances": [{"bbox": [-1.5, 2, 3, 4], "category": "car", "label": 0}]}}\n'
    )
    assert load_odvg(line, "final_annotation.jsonl") == (
        OdvgEntry("1.jpg", 40, 60, (Region((-1.5, 2.0, 3.0, 4.0), "car", label=0),)),
    )


def test_captions_as_taos_merger_writes_them_are_numbered_per_image():
    text = '{{"file_name": "{}", "width": 60, "height": 40, "grounding": {{"captions": "{}", "regions": []}}}}\n'
    data = "".join(text.format(*line) for line in [("1.jpg", "one"), ("2.jpg", "two"), ("1.jpg", "three")]).encode()
    assert [(e.file_name, e.caption_id, e.caption) for e in load_odvg(data, "final_annotation.jsonl")] == [
        ("1.jpg", 0, "one"),
        ("2.jpg", 0, "two"),
        ("1.jpg", 1, "three"),
    ]


def test_every_bad_line_is_named_at_once():
    data = b'{"file_name": "1.jpg"}\n\n{"file_name": 7}\nnonsense\n'
    with pytest.raises(FormatError) as caught:
        load_odvg(data, "labels.jsonl")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()] == [
        "labels.jsonl cannot be read",
        "line 1",
        "line 3",
        "line 4",
    ]


@pytest.mark.parametrize("bbox", ["[1, 2, 3]", '[1, 2, 3, "4"]', "[1, 2, 3, null]"])
def test_a_box_that_is_not_four_numbers_is_refused(bbox):
    line = '{"file_name": "1.jpg", "height": 4, "width": 6, "grounding": {"caption": "", "regions": [{"bbox": %s}]}}'
    with pytest.raises(FormatError, match=r"line 1: 'bbox' is .* expected .left, top, right, bottom."):
        load_odvg((line % bbox).encode(), "labels.jsonl")


def test_what_remains_are_the_phrases_without_a_label_in_the_order_asked():
    record = Record(0, "a man walks a dog on a leash", ("a man", "a dog", "a leash"), (label("a dog"),))
    assert remaining([image("a.jpg", record)]) == [
        {"file_name": "a.jpg", "caption": "a man walks a dog on a leash", "noun_chunks": ["a man", "a leash"]}
    ]


def test_the_caption_of_what_remains_in_detection_mode_is_every_class_name():
    assert remaining([image("a.jpg", Record(0, None, CLASSES, (label("car"),)))]) == [
        {"file_name": "a.jpg", "caption": "car . truck", "noun_chunks": ["truck"]}
    ]


def test_an_image_with_every_phrase_found_does_not_remain():
    assert remaining([image("a.jpg", Record(0, None, ("car",), (label("car"),)))]) == []


def test_what_remains_can_be_asked_as_a_prompt_file():
    images = [image("a.jpg", Record(0, "x", ("a man", "a dog"), (label("a dog"),)), Record(1, "", ("a cat",)))]
    data = b"".join(dump_remaining(images))
    assert load_noun_chunks(data, "remaining.jsonl") == {
        "a.jpg": (Record(0, "x", ("a man",)), Record(1, "", ("a cat",)))
    }
