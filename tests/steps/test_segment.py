"""What the segment step asks, keeps, and does about an image that fails."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import segment as step
from tasks.boxed_shards import BoxedShard
from tasks.domain.errors import CheckpointError
from tasks.formats.masks import load_masks
from tasks.forwarding import Place
from tasks.image_files import ImageSource
from tasks.index_images import build_named_indexes
from tasks.models import SegmenterConfig, segmenter_digest
from tasks.models.fake import FakeSegmenter
from tasks.segment import MaskQuestion, look_ahead_at_masks, segment_shard
from tasks.shard_boxes import CocoFile, build_boxes
from tasks.store import ArtifactStore

FAKE = SegmenterConfig("mal", "fake")
QUESTION = MaskQuestion(FAKE, segmenter_digest(FAKE))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((60, 80, 3), i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "cache"))


@pytest.fixture
def place(images: Path) -> Place:
    return Place(ImageSource((str(images),)), device="cpu", batch_size=2, read_ahead=2)


def shard_of(
    store: ArtifactStore, place: Place, boxes: Sequence[tuple[int, Sequence[float]]], **keys: Any
) -> BoxedShard:
    """A shard of the four images, with an annotation for every (image, bbox)."""
    rows = [{"id": i, "image_id": n, "category_id": 7, "bbox": bbox, **keys} for i, (n, bbox) in enumerate(boxes)]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    path = Path(store.uri).parent / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 7, "name": "cat"}]}))
    (ref,) = build_boxes(store, CocoFile(str(path)), 1000).shards
    ((index, _),) = build_named_indexes(place.source, store, [ref])
    return BoxedShard(ref, index)


ONE_EACH = [(i, (10.0 * i, 5.0, 20.0, 30.0)) for i in range(4)]


class Watched(FakeSegmenter):
    """Remembers what it was asked in each call: the boxes by image."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def segment(self, images, boxes, *, batch_size=1):
        self.calls.append([len(of_image) for of_image in boxes])
        return super().segment(images, boxes, batch_size=batch_size)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    segmenter = Watched()
    monkeypatch.setattr(step, "load_segmenter", lambda config, device: segmenter)
    return segmenter


def test_a_shard_is_forwarded_once_and_read_from_the_store_after_that(store, place):
    shard = shard_of(store, place, ONE_EACH)
    first, again = (segment_shard(store, shard, QUESTION, place) for _ in range(2))
    assert (first.forwarded, again.forwarded, again.reused) == (4, 0, True)
    assert first.masks == again.masks


def test_a_shard_without_boxes_needs_no_segmenter(store, place, watched):
    done = segment_shard(store, shard_of(store, place, []), QUESTION, place)
    assert (done.forwarded, done.failures, watched.calls) == (0, 0, [])


@pytest.mark.parametrize("changes", [{"score": 0.1}, {"attributes": {"a": 1}}, {"area": 3.5}, {"segmentation": []}])
def test_what_the_segmenter_does_not_see_costs_no_forward_pass(store, place, changes):
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    again = segment_shard(store, shard_of(store, place, ONE_EACH, **changes), QUESTION, place)
    assert (again.forwarded, again.reused) == (0, True)


def test_other_boxes_and_another_segmenter_are_other_questions(store, place):
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    moved = shard_of(store, place, [*ONE_EACH[:3], (3, (1.0, 1.0, 5.0, 5.0))])
    assert not look_ahead_at_masks(store, moved, QUESTION).masks
    other = replace(QUESTION, digest="ab" * 32)
    assert not look_ahead_at_masks(store, shard_of(store, place, ONE_EACH), other).masks


def test_crowds_and_boxes_outside_are_not_asked_about(store, place, watched):
    segment_shard(store, shard_of(store, place, [(0, (99.0, 99.0, 5.0, 5.0))]), QUESTION, place)
    segment_shard(store, shard_of(store, place, ONE_EACH, iscrowd=1), QUESTION, place)
    assert watched.calls == []


def test_where_the_segmenter_runs_changes_no_byte(store, place):
    shard = shard_of(store, place, [*ONE_EACH, (0, (0.0, 0.0, 80.0, 60.0)), (2, (3.5, 3.5, 9.0, 9.0))])
    first = segment_shard(store, shard, QUESTION, place)
    other = ArtifactStore(f"{store.uri}-2")
    for ref in (shard.rows, shard.index):
        assert ref is not None
        other.publish(ref.kind, ref.key, store.read(ref), store.counts(ref))
    elsewhere = replace(place, batch_size=7, read_ahead=1)
    assert segment_shard(other, shard, QUESTION, elsewhere).masks == first.masks


def test_m6_every_image_is_read_and_decoded_once_however_many_boxes_it_has(store, place, monkeypatch):
    """M-6, MAL-14: the published code reads the image once for each box."""
    shard = shard_of(store, place, [(i % 4, (1.0, 1.0, 10.0 + i, 10.0)) for i in range(40)])
    reads: list[str] = []
    decoded: list[int] = []
    read, decode = ImageSource.read, step.decode_unchanged
    monkeypatch.setattr(ImageSource, "read", lambda self, key: reads.append(key) or read(self, key))
    monkeypatch.setattr(step, "decode_unchanged", lambda *given: decoded.append(1) or decode(*given))
    segment_shard(store, shard, QUESTION, place)
    assert sorted(reads) == ["0.png", "1.png", "2.png", "3.png"]
    assert len(decoded) == 4


def test_the_boxes_of_several_images_go_into_one_call(store, place, watched):
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    assert watched.calls == [[1, 1, 1, 1]]


def test_an_image_with_a_crowd_of_boxes_is_asked_about_in_several_calls_and_decoded_once(
    store, place, watched, monkeypatch
):
    monkeypatch.setattr(step, "BOXES_AT_A_TIME", 10)
    boxes = [(0, (1.0, 1.0, 10.0 + i, 20.0)) for i in range(25)]
    done = segment_shard(store, shard_of(store, place, boxes), QUESTION, place)
    assert watched.calls == [[10], [10], [5]]
    masks, _ = load_masks(store.read(done.masks))
    areas = [mask.area for mask in masks["0.png"] if mask]
    assert len(areas) == 25
    assert areas == sorted(areas)


def test_large_images_are_asked_about_one_by_one(store, place, watched, monkeypatch):
    monkeypatch.setattr(step, "PIXELS_AT_A_TIME", 60 * 80)
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    assert watched.calls == [[1], [1], [1], [1]]


def test_an_image_that_changed_after_it_was_indexed_is_a_failure_and_gets_no_mask(store, place, images):
    shard = shard_of(store, place, ONE_EACH)
    (images / "2.png").write_bytes((images / "1.png").read_bytes())
    done = segment_shard(store, shard, QUESTION, place)
    masks, failures = load_masks(store.read(done.masks))
    assert sorted(masks) == ["0.png", "1.png", "3.png"]
    assert [(failure.image, failure.stage) for failure in failures] == [("2.png", "segment")]


def test_an_image_that_failed_is_tried_again_and_the_others_are_reused(store, place, images):
    shard = shard_of(store, place, ONE_EACH)
    kept = (images / "2.png").read_bytes()
    (images / "2.png").unlink()
    failed = segment_shard(store, shard, QUESTION, place)
    (images / "2.png").write_bytes(kept)
    mended = segment_shard(store, shard, QUESTION, place)
    assert (failed.failures, failed.forwarded, mended.failures, mended.forwarded) == (1, 3, 0, 1)
    assert segment_shard(store, shard, QUESTION, place).reused


def test_another_segmenter_under_the_same_name_is_not_asked(store, place):
    shard = shard_of(store, place, ONE_EACH)
    with pytest.raises(CheckpointError, match="changed while the run went on"):
        segment_shard(store, shard, replace(QUESTION, digest="ab" * 32), place)
