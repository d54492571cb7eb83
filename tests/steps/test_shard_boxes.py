"""A COCO file in the store: read once, cut by file names, and the labels of a detection beside it."""

import json
import logging
from pathlib import Path

import fsspec
import pytest

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError, FormatError
from tasks.formats.coco_boxes import load_head, load_image_rows
from tasks.formats.label_shards import LabelShards, dump_label_shards
from tasks.shard_boxes import CocoFile, build_boxes, labels_as_boxes
from tasks.store import ArtifactStore

CATEGORIES = [{"id": 7, "name": "cat"}]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "cache"))


def boxes_file(folder: Path, names: list[str], **parts: object) -> CocoFile:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    rows = [{"id": i, "image_id": i, "category_id": 7, "bbox": [0, 0, 9, 9]} for i in range(len(names))]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES, **parts}))
    return CocoFile(str(path))


def names_by_shard(store: ArtifactStore, refs: tuple[ArtifactRef, ...]) -> list[list[str]]:
    return [[rows.key for rows in load_image_rows(store.read(ref))] for ref in refs]


def test_every_image_is_in_one_shard_in_the_order_of_the_names(store, tmp_path):
    names = [f"{i:03}.png" for i in range(50)]
    dataset = build_boxes(store, boxes_file(tmp_path, names[::-1]), 5)
    shards = names_by_shard(store, dataset.shards)
    assert len(shards) > 3
    assert [name for shard in shards for name in shard] == names
    assert dataset.images == 50


def test_one_new_image_touches_one_shard(store, tmp_path):
    names = [f"{i:03}.png" for i in range(50)]
    before = build_boxes(store, boxes_file(tmp_path, names), 5).shards
    after = build_boxes(store, boxes_file(tmp_path, [*names, "0250.png"]), 5).shards
    assert len(set(after) - set(before)) == 1


def test_all_but_images_and_annotations_is_the_head(store, tmp_path):
    dataset = build_boxes(store, boxes_file(tmp_path, ["a.png"], info={"v": 1}, mine=[1]), 5)
    assert load_head(store.read(dataset.head)) == {"categories": CATEGORIES, "info": {"v": 1}, "mine": [1]}


def test_ids_that_several_annotations_share_are_named_in_one_warning(store, tmp_path, caplog):
    rows = [{"id": 5, "image_id": 0, "category_id": 7, "bbox": [0, 0, i, 9]} for i in range(3)]
    with caplog.at_level(logging.WARNING):
        build_boxes(store, boxes_file(tmp_path, ["a.png"], annotations=rows), 5)
    assert "share the id 5" in caplog.text
    assert len(caplog.records) == 1


def test_a_file_that_is_not_coco_is_named(store, tmp_path):
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.raises(FormatError, match=r"COCO file .*boxes\.json: found \[\]"):
        build_boxes(store, CocoFile(str(tmp_path / "boxes.json")), 5)


def test_a_file_directly_below_a_protocol_is_read():
    fsspec.filesystem("memory").pipe_file("/boxes-of-shard-boxes.json", b"{}")
    assert CocoFile("memory://boxes-of-shard-boxes.json").read() == b"{}"


def test_a_file_that_is_not_there_is_named(store, tmp_path):
    with pytest.raises(ArtifactError, match=r"'boxes\.json' was not found"):
        build_boxes(store, CocoFile(str(tmp_path / "boxes.json")), 5)


def test_the_labels_of_a_detection_keep_their_shards_and_have_the_head_of_their_file(store):
    refs = (ArtifactRef("annotations", "1" * 64, "ab" * 32),)
    labels = store.publish("labels", "2" * 64, dump_label_shards(LabelShards(refs, ("cat", "dog"), 3)))
    dataset = labels_as_boxes(store, labels)
    assert (dataset.shards, dataset.images) == (refs, 3)
    head = load_head(store.read(dataset.head))
    assert [(row["id"], row["name"]) for row in head["categories"]] == [(1, "cat"), (2, "dog")]
    assert set(head) == {"info", "categories"}
