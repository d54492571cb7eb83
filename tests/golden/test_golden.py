"""The delivered files, byte for byte: a change of format shows as a reviewed diff of the files beside this test."""

from pathlib import Path

import numpy as np
import pytest

from tasks.domain.aggregation import AggregationRules, Nms, aggregate
from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.detections import Candidates, Detection
from tasks.domain.images import Failure, Image
from tasks.formats.candidates import LookedAt, dump_candidates
from tasks.formats.coco import dump_coco
from tasks.results import write_iteration, write_labels
from tasks.storage.folder import Folder

HERE = Path(__file__).parent
CLASSES = ("person", "fire truck")
FOUND = (
    Detection("person", (10.0, 20.0, 50.5, 120.25), 0.9, 0, 0.5),
    Detection("person", (11.0, 20.0, 50.5, 121.0), 0.4, 1, 0.3),
    Detection("fire truck", (60.0, 5.125, 200.0, 99.0), 0.35, 1, 0.3),
)


def labelled(record: Record) -> list[LabelledImage]:
    """Two images: one with the labels of `FOUND` under the record's phrases, one that was looked at and is empty."""
    labels = aggregate([], FOUND, record.phrases, AggregationRules(Nms(0.7))).annotations
    full = Record(record.caption_id, record.caption, record.phrases, labels)
    return [
        LabelledImage(Image("a/street.jpg", "1" * 64, 640, 480), (full,)),
        LabelledImage(Image("b/empty.jpg", "2" * 64, 320, 200), (record,)),
    ]


def assert_golden(name: str, actual: bytes) -> None:
    """Compare with the file of this name; where there is none, write it for review and fail."""
    path = HERE / name
    if not path.exists():
        path.write_bytes(actual)
        pytest.fail(f"{name} was not there; it is now: review it and commit it")
    assert actual.decode() == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["detection", "grounding"])
def test_the_delivered_files_are_those_reviewed(mode, tmp_path):
    classes = CLASSES if mode == "detection" else ()
    images = labelled(Record(0, None if classes else "a person beside a fire truck", CLASSES))
    folder, shards = Folder(str(tmp_path)), [dump_coco(images, classes)]
    write_labels(folder, lambda: shards, classes, [Failure("c/broken.jpg", "index", "is empty")])
    write_iteration(folder, 1, lambda: shards, classes)
    for name in ("annotations.json", "final_annotation.jsonl", "failures.jsonl", "auto_label1/autolabelled.jsonl"):
        assert_golden(f"{mode}.{name.replace('/', '.')}", folder.read(name))
    assert_golden(f"{mode}.remaining.jsonl", folder.read("auto_label1/remaining.jsonl"))


def test_the_candidates_of_a_shard_are_those_reviewed():
    found = Candidates(CLASSES, np.array([[1.0, 2.0, 30.5, 40.25]]), np.array([0.123456]), np.array([1]), degenerate=2)
    looked_at = [LookedAt("a/street.jpg", "0" * 64, 0, found)]
    assert_golden("candidates.json", dump_candidates(looked_at, [Failure("b/gone.jpg", "infer", "is not there")]))
