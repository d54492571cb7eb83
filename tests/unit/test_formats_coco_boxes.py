"""COCO files of boxes: every field goes through as it came, and what cannot be meant is refused by its place."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.errors import FormatError
from tasks.domain.images import Image
from tasks.formats.coco import dump_coco
from tasks.formats.coco_boxes import (
    ImageRows,
    box_of,
    dump_image_rows,
    load_image_rows,
    read_boxes_file,
    renumbered,
    told_row,
    write_document,
)


def document(**parts: Any) -> dict[str, Any]:
    return {
        "info": {"year": 2026, "née": None},
        "licenses": [{"id": 1}],
        "images": [
            {"id": 2, "file_name": "b.png", "width": 64, "height": 48, "license": 1},
            {"id": 1, "file_name": "a.png"},
        ],
        "categories": [{"id": 7, "name": "cat", "keypoints": ["nose"]}],
        "annotations": [
            {"id": 5, "image_id": 2, "category_id": 7, "bbox": [1, 2.5, 3, 4], "attributes": {"occluded": True}},
            {"id": 4, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9], "track_id": 2**70},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [9, 9, 5, 5], "note": "ü"},
        ],
        **parts,
    }


def read(content: object):
    return read_boxes_file(json.dumps(content).encode(), "COCO file boxes.json")


def written(content: object) -> dict[str, Any]:
    file = read(content)
    parsed: dict[str, Any] = json.loads(b"".join(write_document(file.head, lambda: file.images)))
    return parsed


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
extras = st.dictionaries(st.text().map("x-{}".format), values, max_size=3)


@given(extras, extras, extras, extras)
def test_every_field_goes_through_as_it_came(of_file, of_image, of_category, of_annotation):
    """M-4, MAL-14: the published output has only the fields that it writes itself."""
    whole = document()
    whole = {**of_file, **whole}
    for part, extra in (("images", of_image), ("categories", of_category), ("annotations", of_annotation)):
        whole[part] = [extra | row for row in whole[part]]
    out = written(whole)
    assert out["annotations"] == [whole["annotations"][i] for i in (1, 0, 2)]
    assert out["images"] == whole["images"][::-1]
    assert {k: v for k, v in out.items() if k not in ("images", "annotations")} == {
        k: v for k, v in whole.items() if k not in ("images", "annotations")
    }


def test_images_are_sorted_by_file_name_and_annotations_keep_their_order():
    file = read(document())
    assert [(rows.key, [row["id"] for row in rows.annotations]) for rows in file.images] == [
        ("a.png", [4]),
        ("b.png", [5, 3]),
    ]


@pytest.mark.parametrize("ids", [(1.5, 2.5), ("one", "two"), (10**30, -1)])
def test_ids_are_numbers_or_text_and_stay_what_they_are(ids):
    images = [{"id": name, "file_name": f"{i}.png"} for i, name in enumerate(ids)]
    rows = [{"id": name, "image_id": name, "category_id": 7, "bbox": [0, 0, 1, 1]} for name in ids]
    assert [row["image_id"] for row in written(document(images=images, annotations=rows))["annotations"]] == list(ids)


def test_a_box_that_is_no_number_goes_through_as_it_came():
    row = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [math.nan, 0, math.inf, 10**400]}
    (out,) = written(document(annotations=[row]))["annotations"]
    assert str(out["bbox"]) == str(row["bbox"])
    assert box_of(out)[3] == math.inf


def test_annotations_without_ids_are_numbered_in_the_order_of_the_file():
    rows = [{key: value for key, value in row.items() if key != "id"} for row in document()["annotations"]]
    assert [row["id"] for row in written(document(annotations=rows))["annotations"]] == [2, 1, 3]


def test_ids_that_several_annotations_share_are_told():
    rows = [row | {"id": 5} for row in document()["annotations"]]
    file = read(document(annotations=rows))
    assert file.repeated_ids == (5,)
    assert sum(len(rows.annotations) for rows in file.images) == 3


def changed(part: str, position: int, **fields: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        whole = document()
        row = whole[part][position] | fields
        whole[part][position] = {name: value for name, value in row.items() if value is not ...}
        return whole

    return make


REFUSED = {
    "no annotations": (lambda: document(annotations=...), "found no `annotations`, expected a list"),
    "a list": (lambda: [1], r"found \[1\], expected a COCO file"),
    "text": (lambda: document(images="x"), 'found "x" as `images`'),
    "a row that is none": (lambda: document(images=[3]), "`images` of the COCO file boxes.json: entry 0 is 3"),
    "an image without a name": (changed("images", 1, file_name=...), "entry 1 is"),
    "a name that no file has": (changed("images", 1, file_name="\ud800.png"), "entry 1 is"),
    "a width in words": (changed("images", 1, width="64"), "width and height, where given, are numbers"),
    "an image twice": (changed("images", 1, id=2), "entry 1 has the id 2 of entry 0"),
    "a file twice": (changed("images", 1, file_name="b.png"), 'entry 1 has the file_name "b.png" of entry 0'),
    "a category without a name": (changed("categories", 0, name=...), "`categories` of the"),
    "no box": (changed("annotations", 2, bbox=...), "entry 2 is"),
    "a box of three": (changed("annotations", 2, bbox=[1, 2, 3]), "a bbox is four numbers"),
    "a box of text": (changed("annotations", 2, bbox=["1", "2", "3", "4"]), "a bbox is four numbers"),
    "a crowd of two": (changed("annotations", 2, iscrowd=2), "iscrowd is 0 or 1"),
    "a list as an id": (changed("annotations", 2, image_id=[]), "entry 2 is"),
    "no such image": (changed("annotations", 2, image_id=9), "entry 2 has image_id 9; expected an id that `images`"),
    "no such category": (changed("annotations", 2, category_id=9), "category_id 9; expected an id that `categories`"),
    "some ids": (changed("annotations", 2, id=...), "or no id in any"),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_by_its_place(make, told):
    content = make()
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if value is not ...}
    with pytest.raises(FormatError, match=told):
        read(content)


@pytest.mark.parametrize(
    ("wrong", "told"), [({"bbox": [1, "x", 3, 4]}, '"bbox": [1, "x", 3, 4]'), ({"id": []}, '"id": []')]
)
def test_a_refused_row_is_told_by_the_fields_that_are_judged(wrong, told):
    whole = document()
    whole["annotations"][2] = {"segmentation": [[10.25] * 400], "area": 3} | whole["annotations"][2] | wrong
    with pytest.raises(FormatError, match=re.escape(told)) as refused:
        read(whole)
    assert "segmentation" not in str(refused.value)


def test_what_is_cut_from_a_refused_row_is_marked():
    assert told_row({"id": 1, "file_name": "ü" * 7}) == json.dumps({"id": 1, "file_name": "ü" * 7})
    assert told_row({"id": "x" * 500}) == '{"id": "' + "x" * 192 + "..."
    assert told_row([0] * 500).endswith("...")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000])
def test_what_is_no_json_is_refused(data):
    with pytest.raises(FormatError, match=r"the COCO file boxes\.json: not JSON"):
        read_boxes_file(data, "COCO file boxes.json")


def test_a_byte_order_mark_is_no_part_of_the_file():
    assert len(read_boxes_file(b"\xef\xbb\xbf" + json.dumps(document()).encode(), "COCO file").images) == 2


def test_a_shard_comes_back_as_it_was():
    images = read(document()).images
    assert load_image_rows(dump_image_rows(images)) == images


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"images":[{}],"annotations":[{}]}'])
def test_what_is_no_shard_is_refused(data):
    with pytest.raises(FormatError, match="not a shard"):
        load_image_rows(data)


def labelled(key: str, *phrases: str) -> LabelledImage:
    found = tuple(Annotation(phrase, (1.0, 2.0, 30.0, 40.0), 0.75, 0, 0.5, ()) for phrase in phrases)
    return LabelledImage(Image(key, "ab" * 32, 64, 48), (Record(0, "a caption", tuple(sorted(set(phrases))), found),))


def test_m7_shards_of_grounding_mode_get_the_ids_that_they_have_in_one_file():
    """M-7: TAO's converter writes nothing for them."""
    images = [labelled("a.png", "a dog", "a cat"), labelled("b.png"), labelled("c.png", "a cow")]
    whole = json.loads(dump_coco(images, ()))
    shards = [load_image_rows(dump_coco(shard, ())) for shard in (images[:1], images[1:])]
    rows = list(renumbered((image for shard in shards for image in shard), whole["categories"]))
    assert [image.row for image in rows] == whole["images"]
    assert [row for image in rows for row in image.annotations] == whole["annotations"]


def test_a_file_without_images_is_still_a_file():
    assert json.loads(b"".join(write_document({}, lambda: iter([])))) == {"annotations": [], "images": []}


def test_the_images_are_asked_for_anew_so_that_none_has_to_be_kept():
    rows = ImageRows({"id": 1, "file_name": "a.png"}, ({"id": 1},))
    asked = []
    list(write_document({}, lambda: asked.append(1) or iter([rows])))
    assert len(asked) == 2
