"""What the infer step asks, keeps, and does about an image that fails."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.domain.artifacts import ArtifactRef
from tasks.formats.candidates import load_candidates
from tasks.image_files import ImageSource
from tasks.index_images import Indexer, build_index
from tasks.infer import AnsweredShard, Place, Question, infer_shards
from tasks.models import DetectorConfig, load_prompter
from tasks.models.fake import paint
from tasks.recall import Recall
from tasks.shard_images import build_dataset
from tasks.storage.folder import Folder
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
    return sharded(place, store)


def sharded(place: Place, store: ArtifactStore, shard_size: int = 64) -> ArtifactRef:
    """The first shard of the images of a place."""
    index = [ref for ref, _ in build_index(Indexer(place.source, store, Recall(store)))]
    return build_dataset(store, index, {}, ("cat",), shard_size).shards[0].annotations


def infer_shard(store: ArtifactStore, shard: ArtifactRef, question: Question, place: Place) -> AnsweredShard:
    """What a new run makes of a shard."""
    [answered] = infer_shards(store, [(shard, None)], question, place, Recall(store))
    return answered


def test_a_shard_is_forwarded_once_and_read_from_the_store_after_that(store, place, shard):
    first = infer_shard(store, shard, QUESTION, place)
    again = infer_shard(store, shard, QUESTION, place)
    assert (first.forwards, again.forwards, again.reused) == (2, 0, True)
    assert first.candidates == again.candidates


def test_an_image_that_changed_after_it_was_indexed_is_a_failure_and_no_label(store, place, shard, images):
    (images / "2.png").write_bytes((images / "1.png").read_bytes())
    answered = infer_shard(store, shard, QUESTION, place)
    looked_at, failures = load_candidates(store.read(answered.candidates))
    assert [key for key, *_ in looked_at] == ["1.png"]
    assert [(failure.image, failure.stage) for failure in failures] == [("2.png", "infer")]


def test_an_image_that_failed_is_tried_again_and_the_others_are_reused(store, place, shard, images):
    kept = (images / "2.png").read_bytes()
    (images / "2.png").unlink()
    failed = infer_shard(store, shard, QUESTION, place)
    (images / "2.png").write_bytes(kept)
    mended = infer_shard(store, shard, QUESTION, place)
    assert (failed.failures, mended.failures, mended.forwards) == (1, 0, 1)
    assert infer_shard(store, shard, QUESTION, place).reused


def test_where_inference_runs_is_not_in_the_key(store, place, shard):
    first = infer_shard(store, shard, QUESTION, place)
    elsewhere = Place(place.source, device="cpu", batch_size=7, read_ahead=1)
    assert infer_shard(store, shard, QUESTION, elsewhere).candidates == first.candidates


def test_another_keep_floor_is_another_question(store, place, shard):
    infer_shard(store, shard, QUESTION, place)
    other = replace(QUESTION, keep_floor=0.5)
    assert infer_shard(store, shard, other, place).forwards == 2


def test_a_new_image_of_a_shard_costs_one_forward(store, place, shard, images):
    infer_shard(store, shard, QUESTION, place)
    Image.new("RGB", (80, 60)).save(images / "3.png")
    assert infer_shard(store, sharded(place, store), QUESTION, place).forwards == 1


def test_the_same_bytes_under_a_new_name_cost_nothing(store, place, shard, images):
    before = load_candidates(store.read(infer_shard(store, shard, QUESTION, place).candidates))[0]
    (images / "1.png").rename(images / "0.png")
    answered = infer_shard(store, sharded(place, store), QUESTION, place)
    after = load_candidates(store.read(answered.candidates))[0]
    assert (answered.forwards, [look.image for look in after]) == (0, ["0.png", "2.png"])
    assert [look.found.scores.tolist() for look in after] == [look.found.scores.tolist() for look in before]


def test_another_prompt_is_asked_whatever_is_known_of_the_image(store, place, images):
    infer_shard(store, sharded(place, store), QUESTION, place)
    index = [ref for ref, _ in build_index(Indexer(place.source, store, Recall(store)))]
    dataset = build_dataset(store, index, {}, ("cat", "dog"), 64)
    assert infer_shard(store, dataset.shards[0].annotations, QUESTION, place).forwards == 2


def test_a_damaged_artifact_that_holds_answers_is_told_and_they_are_asked_again(store, place, shard, images, caplog):
    known = infer_shard(store, shard, QUESTION, place).candidates
    Folder(store.uri).delete_tree(f"candidates/{known.key[:2]}/{known.key}.{known.sha256[:16]}.json")
    Image.new("RGB", (80, 60)).save(images / "3.png")
    assert infer_shard(store, sharded(place, store), QUESTION, place).forwards == 3
    assert [record.message.count("is missing; what it answered is asked again") for record in caplog.records] == [1]


def test_shards_of_a_batch_are_answered_each_with_its_own_images(store, place, images):
    for number in range(3, 9):
        Image.new("RGB", (80, 60), (number, number, number)).save(images / f"{number}.png")
    recall = Recall(store)
    index = [ref for ref, _ in build_index(Indexer(place.source, store, recall))]
    shards = [shard.annotations for shard in build_dataset(store, index, {}, ("cat",), 2).shards]
    done = infer_shards(store, [(shard, None) for shard in shards], QUESTION, place, recall)
    looked_at = [look.image for one in done for look in load_candidates(store.read(one.candidates))[0]]
    assert (looked_at, len(done) > 2) == ([f"{number}.png" for number in range(1, 9)], True)
