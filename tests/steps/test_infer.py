"""What the infer step asks, keeps, and does about an image that fails."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.domain.artifacts import ArtifactRef
from tasks.formats.candidates import load_candidates
from tasks.formats.image_index import read_image_index
from tasks.image_files import ImageSource
from tasks.index_images import build_index
from tasks.infer import Place, Question, infer_shard
from tasks.models import DetectorConfig, load_prompter
from tasks.models.fake import paint
from tasks.shard_images import build_dataset
from tasks.store import ArtifactStore

FAKE = DetectorConfig("fake")
QUESTION = Question(FAKE, load_prompter(FAKE).digest, keep_floor=0.05, reprompt="undetected")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, score in (("1.png", 0.9), ("2.png", 0.8)):
        pixels = np.full((60, 80, 3), 128, np.uint8)
        pixels[10:30, 20:50] = paint("cat", score)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "cache"))


@pytest.fixture
def place(images: Path) -> Place:
    return Place(ImageSource((str(images),)), device="cpu", batch_size=2, read_ahead=2)


@pytest.fixture
def shard(place: Place, store: ArtifactStore) -> ArtifactRef:
    index, _ = build_index(place.source, store)
    dataset = build_dataset(store, read_image_index(store.read(index)), {}, ("cat",), 64)
    return dataset.shards[0].annotations


def test_a_shard_is_forwarded_once_and_read_from_the_store_after_that(store, place, shard):
    first = infer_shard(store, shard, None, QUESTION, place)
    again = infer_shard(store, shard, None, QUESTION, place)
    assert (first.forwards, again.forwards, again.reused) == (2, 0, True)
    assert first.candidates == again.candidates


def test_an_image_that_changed_after_it_was_indexed_is_a_failure_and_no_label(store, place, shard, images):
    (images / "2.png").write_bytes((images / "1.png").read_bytes())
    answered = infer_shard(store, shard, None, QUESTION, place)
    looked_at, failures = load_candidates(store.read(answered.candidates))
    assert [key for key, _, _ in looked_at] == ["1.png"]
    assert [(failure.image, failure.stage) for failure in failures] == [("2.png", "infer")]


def test_an_image_that_failed_is_tried_again_and_the_others_are_reused(store, place, shard, images):
    kept = (images / "2.png").read_bytes()
    (images / "2.png").unlink()
    failed = infer_shard(store, shard, None, QUESTION, place)
    (images / "2.png").write_bytes(kept)
    mended = infer_shard(store, shard, None, QUESTION, place)
    assert (failed.failures, mended.failures, mended.forwards) == (1, 0, 1)
    assert infer_shard(store, shard, None, QUESTION, place).reused


def test_where_inference_runs_is_not_in_the_key(store, place, shard):
    first = infer_shard(store, shard, None, QUESTION, place)
    elsewhere = Place(place.source, device="cpu", batch_size=7, read_ahead=1)
    assert infer_shard(store, shard, None, QUESTION, elsewhere).candidates == first.candidates


def test_another_keep_floor_is_another_question(store, place, shard):
    infer_shard(store, shard, None, QUESTION, place)
    other = replace(QUESTION, keep_floor=0.5)
    assert infer_shard(store, shard, None, other, place).forwards == 2
