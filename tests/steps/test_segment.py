"""What the segment step asks, keeps, and does about an image that fails."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks import segment as step
from tasks.boxed_shards import BoxedShard
from tasks.domain.artifacts import Answers, answer_id
from tasks.domain.errors import CheckpointError
from tasks.formats.masks import load_masks
from tasks.forwarding import Place
from tasks.image_files import ImageSource
from tasks.index_images import Indexer, build_named_indexes
from tasks.models import SegmenterConfig, segmenter_digest
from tasks.models.fake import FakeSegmenter
from tasks.recall import Recall
from tasks.segment import MaskQuestion, SegmentedShard, look_ahead_at_masks, segment_shards
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
    ((index, _),) = build_named_indexes(Indexer(place.source, store, Recall(store)), [ref])
    return BoxedShard(ref, index)


def segment_shard(
    store: ArtifactStore, shard: BoxedShard, question: MaskQuestion, place: Place, recall: Recall | None = None
) -> SegmentedShard:
    """The masks of one shard, as a run of its own makes them."""
    (done,) = segment_shards(store, [shard], question, place, recall or Recall(store))
    return done


def planned(store: ArtifactStore, shard: BoxedShard, question: MaskQuestion) -> int:
    """The boxes that a run would forward now."""
    todo = look_ahead_at_masks(store, shard, question, Recall(store)).todo
    return sum(len(asked.boxes) for asked in todo)


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
    assert planned(store, moved, QUESTION) == 1
    other = replace(QUESTION, digest="ab" * 32)
    assert planned(store, shard_of(store, place, ONE_EACH), other) == 4


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


# --- box by box: what earlier runs have answered, wherever they put it


def test_an_image_is_decoded_and_forwarded_with_its_missing_boxes_alone(store, place, watched, monkeypatch):
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    watched.calls.clear()
    read: list[str] = []
    monkeypatch.setattr(ImageSource, "read", _telling(read, ImageSource.read))
    boxes = [*ONE_EACH, (2, (1.0, 1.0, 9.0, 9.0)), (2, (2.0, 2.0, 9.0, 9.0))]
    done = segment_shard(store, shard_of(store, place, boxes), QUESTION, place)
    assert (done.forwarded, watched.calls, read) == (2, [[2]], ["2.png"])


def _telling(told: list[str], read: Any) -> Any:
    return lambda source, key: told.append(key) or read(source, key)


def test_equal_boxes_of_an_image_are_asked_about_once_and_each_gets_the_mask(store, place, watched):
    shard = shard_of(store, place, [ONE_EACH[1]] * 3)
    assert planned(store, shard, QUESTION) == 1
    done = segment_shard(store, shard, QUESTION, place)
    (answers,) = load_masks(store.read(done.masks))[0].values()
    assert (done.forwarded, watched.calls) == (1, [[1]])
    assert answers[0]
    assert answers == (answers[0],) * 3


def test_boxes_that_differ_in_the_last_bit_are_different_questions(store, place):
    left, *rest = ONE_EACH[1][1]
    segment_shard(store, shard_of(store, place, [ONE_EACH[1]]), QUESTION, place)
    shard = shard_of(store, place, [ONE_EACH[1], (1, (math.nextafter(left, 99), *rest))])
    assert planned(store, shard, QUESTION) == segment_shard(store, shard, QUESTION, place).forwarded == 1


def test_what_an_answer_is_about_is_compared_and_not_its_name_alone(store, place):
    """Two questions whose names begin alike must not get each other's masks."""
    asked_about, other = (shard_of(store, place, [(1, (x, 1.0, 9.0, 9.0))]) for x in (1.0, 30.0))
    (wanted,) = look_ahead_at_masks(store, other, QUESTION, Recall(store)).asked
    made = segment_shard(store, asked_about, QUESTION, place).masks
    forged = Answers(QUESTION.about, tuple(answer_id(*question) for question in wanted.questions))
    store.publish("masks", "ab" * 32, store.read(made), {"failures": 0}, answers=forged)
    assert len(Recall(store).holding("masks", QUESTION.about, forged.to)) == 1
    assert planned(store, other, QUESTION) == segment_shard(store, other, QUESTION, place).forwarded == 1


def test_known_boxes_of_an_image_that_fails_are_not_lost(store, place, images):
    segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place)
    shard = shard_of(store, place, [*ONE_EACH, (2, (1.0, 1.0, 9.0, 9.0))])
    kept = (images / "2.png").read_bytes()
    (images / "2.png").unlink()
    failed = segment_shard(store, shard, QUESTION, place)
    (images / "2.png").write_bytes(kept)
    mended = segment_shard(store, shard, QUESTION, place)
    assert sorted(load_masks(store.read(failed.masks))[0]) == ["0.png", "1.png", "3.png"]
    assert (failed.failures, failed.forwarded, mended.failures, mended.forwarded) == (1, 0, 0, 1)


def test_a_task_that_is_tried_again_takes_over_what_its_first_try_has_made(store, place, images):
    """A run's own answers are not recalled; those under the key of the shard are found all the same."""
    shard, recall = shard_of(store, place, ONE_EACH), Recall(store)
    kept = (images / "2.png").read_bytes()
    (images / "2.png").unlink()
    first = segment_shard(store, shard, QUESTION, place, recall)
    (images / "2.png").write_bytes(kept)
    second = segment_shard(store, shard, QUESTION, place, recall)
    assert (first.forwarded, second.forwarded, second.failures) == (3, 1, 0)


def test_an_image_that_failed_gets_the_masks_of_a_copy_of_it(store, place, images):
    shutil.copy(images / "1.png", images / "2.png")
    shard = shard_of(store, place, [(1, (1.0, 1.0, 9.0, 9.0)), (2, (1.0, 1.0, 9.0, 9.0))])
    (images / "1.png").unlink()
    failed = segment_shard(store, shard, QUESTION, place)
    assert list(load_masks(store.read(failed.masks))[0]) == ["2.png"]
    assert planned(store, shard, QUESTION) == 0
    mended = segment_shard(store, shard, QUESTION, place)
    assert (failed.failures, failed.forwarded, mended.failures, mended.forwarded) == (1, 1, 0, 0)


def test_what_a_damaged_artifact_answered_is_asked_again(store, place, caplog):
    made = segment_shard(store, shard_of(store, place, ONE_EACH), QUESTION, place).masks
    (path,) = Path(store.uri).glob(f"masks/*/{made.key}.*[!t].json")
    path.write_bytes(path.read_bytes().replace(b"area", b"aera"))
    shard = shard_of(store, place, [*ONE_EACH, (2, (1.0, 1.0, 9.0, 9.0))])
    assert planned(store, shard, QUESTION) == 5
    assert segment_shard(store, shard, QUESTION, place).forwarded == 5
    assert caplog.text.count("what it answered is asked again") == 1


def test_images_are_read_ahead_into_the_next_shard(store, place, monkeypatch):
    shards = [shard_of(store, place, ONE_EACH[:1]), shard_of(store, place, ONE_EACH[1:])]
    read: list[str] = []
    at_work: list[bool] = []

    class Waiting(FakeSegmenter):
        def segment(self, images, boxes, *, batch_size=1):
            if not at_work:  # the first image; the others come while it is at work, or never
                deadline = monotonic() + 10
                while len(read) < 4 and monotonic() < deadline:
                    sleep(0.01)
            at_work.append(len(read) == 4)
            return super().segment(images, boxes, batch_size=batch_size)

    monkeypatch.setattr(step, "load_segmenter", lambda config, device: Waiting())
    monkeypatch.setattr(ImageSource, "read", _telling(read, ImageSource.read))
    done = segment_shards(store, shards, QUESTION, place, Recall(store))
    assert at_work == [True, True]
    assert [shard.forwarded for shard in done] == [1, 3]


def encoded(size: tuple[int, int]) -> bytes:
    Image.new("RGB", size).save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


CONTENTS = [encoded(size) for size in ((60, 40), (61, 41), (62, 42))]  # whose masks differ in their sizes
data_sets = st.dictionaries(
    st.sampled_from([f"{folder}/{i}.png" for folder in "ab" for i in range(4)]),
    st.tuples(
        st.integers(0, len(CONTENTS) - 1),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)).map(lambda at: (*at, 20.0, 10.0)), max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=25)
@given(st.lists(st.tuples(data_sets, st.integers(1, 4)), min_size=2, max_size=4))
def test_whatever_changes_between_runs_exactly_the_boxes_never_asked_about_are_forwarded(runs):
    """Names, contents, boxes and shards in any way; and the masks are those of a run in an empty cache."""
    known: set[tuple[int, tuple[float, ...]]] = set()
    with TemporaryDirectory() as folder:
        cache = ArtifactStore(f"{folder}/cache")
        for number, (images, shard_size) in enumerate(runs):
            shards, place = _written(Path(folder) / str(number), cache, images, shard_size)
            expected = sum(len({(content, box) for box in boxes} - known) for content, boxes in images.values())
            assert sum(planned(cache, shard, QUESTION) for shard in shards) == expected
            done = segment_shards(cache, shards, QUESTION, place, Recall(cache))
            assert sum(shard.forwarded for shard in done) == expected
            known |= {(content, box) for content, boxes in images.values() for box in boxes}
            empty = ArtifactStore(f"{folder}/empty {number}")
            shards, place = _written(Path(folder) / str(number), empty, images, shard_size)
            fresh = segment_shards(empty, shards, QUESTION, place, Recall(empty))
            assert [shard.masks for shard in done] == [shard.masks for shard in fresh]


def _written(
    folder: Path, store: ArtifactStore, images: Mapping[str, tuple[int, Sequence[Any]]], shard_size: int
) -> tuple[list[BoxedShard], Place]:
    """The images and their boxes as files, and as what the step is given."""
    for key, (content, _) in images.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(CONTENTS[content])
    rows = [(key, box) for key, (_, boxes) in images.items() for box in boxes]
    ids = {key: i for i, key in enumerate(images)}
    document = {
        "images": [{"id": i, "file_name": key} for key, i in ids.items()],
        "annotations": [
            {"id": i, "image_id": ids[key], "category_id": 7, "bbox": box} for i, (key, box) in enumerate(rows)
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    folder.mkdir(exist_ok=True)
    (folder / "boxes.json").write_text(json.dumps(document))
    place = Place(ImageSource((str(folder),)), device="cpu", batch_size=2, read_ahead=2)
    refs = build_boxes(store, CocoFile(str(folder / "boxes.json")), shard_size).shards
    indexes = build_named_indexes(Indexer(place.source, store, Recall(store)), refs)
    return [BoxedShard(ref, index) for ref, (index, _) in zip(refs, indexes, strict=True)], place


def test_another_segmenter_under_the_same_name_is_not_asked(store, place):
    shard = shard_of(store, place, ONE_EACH)
    with pytest.raises(CheckpointError, match="changed while the run went on"):
        segment_shard(store, shard, replace(QUESTION, digest="ab" * 32), place)
