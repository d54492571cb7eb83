"""Which images become the data set, and what is said of prompts whose images are not there."""

from collections.abc import Mapping
from uuid import uuid4

import pytest

from tasks.domain.annotations import Record
from tasks.domain.errors import SpecError
from tasks.domain.images import Failure, Image, ImageIndex
from tasks.formats.image_index import write_image_index
from tasks.shard_images import Dataset, build_dataset
from tasks.store import ArtifactStore


def index_of(*keys: str, unreadable: tuple[str, ...] = ()) -> ImageIndex:
    images = tuple(Image(key, "0" * 64, 8, 6) for key in sorted(keys))
    return ImageIndex(images, tuple(Failure(key, "index", "is empty") for key in sorted(unreadable)))


def prompted(*keys: str) -> dict[str, tuple[Record, ...]]:
    return {key: (Record(0, "a cat", ("a cat",)),) for key in keys}


def dataset(
    index: ImageIndex, records: Mapping[str, tuple[Record, ...]], classes: tuple[str, ...] = (), shard_size: int = 4
) -> Dataset:
    store = ArtifactStore(f"memory://{uuid4()}")
    halves = (ImageIndex(index.images[:2], ()), ImageIndex(index.images[2:], index.failures))
    parts = [store.publish("index", f"{i:064}", write_image_index(half)) for i, half in enumerate(halves)]
    return build_dataset(store, parts, records, classes, shard_size)


def reasons(index: ImageIndex, *keys: str) -> dict[str, str]:
    return {failure.image: failure.reason for failure in dataset(index, prompted(*keys)).failures}


def test_images_that_no_line_names_are_counted_and_left_out() -> None:
    made = dataset(index_of("1.png", "2.png", "3.png"), prompted("2.png"))
    assert (sum(shard.images for shard in made.shards), made.without_prompt, made.failures) == (1, 2, ())


def test_under_class_names_every_image_is_asked() -> None:
    made = dataset(index_of("1.png", "2.png"), {}, classes=("cat",))
    assert (sum(shard.images for shard in made.shards), made.without_prompt) == (2, 0)


def test_an_image_that_is_named_and_not_there_is_a_failure() -> None:
    assert reasons(index_of("1.png"), "1.png", "2.png") == {"2.png": "is named in the prompt file, and not there"}


def test_a_name_without_its_image_root_is_told_with_it() -> None:
    told = reasons(index_of("a/1.png", "a/2.png", "b/2.png"), "a/1.png", "1.png", "2.png", "3.png")
    assert told == {
        "1.png": "is named in the prompt file, and not there; did you mean a/1.png",
        "2.png": "is named in the prompt file, and not there; did you mean a/2.png or b/2.png",
        "3.png": "is named in the prompt file, and not there",
    }


def test_a_prompt_file_of_other_images_is_refused_with_names_from_both_sides() -> None:
    with pytest.raises(SpecError) as caught:
        dataset(index_of(*(f"a/{n}.png" for n in range(9))), prompted("x.png", "y.png"))
    assert "file_name are 'x.png', 'y.png', and" in str(caught.value)
    assert "there are 'a/0.png', 'a/1.png', 'a/2.png' and 6 more; expected" in str(caught.value)


def test_a_prompt_file_of_images_that_cannot_be_read_is_one_of_these_images() -> None:
    index = index_of("1.png", unreadable=("2.png",))
    assert reasons(index, "2.png") == {"2.png": "is empty"}
