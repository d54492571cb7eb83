"""The image index is made once for what is there, and made again for what changed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from uuid import uuid4

import fsspec
import pytest
from PIL import Image as PillowImage
from prefect.client.schemas.objects import State

from tasks.domain.errors import SpecError
from tasks.domain.images import ImageIndex
from tasks.formats.image_index import joined_index, read_image_index
from tasks.image_files import FetchError, ImageSource
from tasks.index_images import Indexer, build_index, index_images
from tasks.progress import listening
from tasks.recall import Recall
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore


@pytest.fixture
def place() -> Iterator[str]:
    yield f"memory://{uuid4()}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(place: str) -> ArtifactStore:
    return ArtifactStore(f"{place}/store")


def images(place: str, **sizes: tuple[int, int]) -> ImageSource:
    """A source with one PNG of each size (width, height)."""
    for name, size in sizes.items():
        file = BytesIO()
        PillowImage.new("RGB", size).save(file, "PNG")
        Folder(f"{place}/images").write(f"{name}.png", file.getvalue())
    return ImageSource((f"{place}/images",))


class Heard:
    """Remembers the progress that it is told."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.images = 0

    def begin(self, stage: str, total: int | None) -> None:
        self.totals.append(total)

    def advance(self, stage: str, images: int) -> None:
        self.images += images


def made(source: ImageSource, store: ArtifactStore) -> ImageIndex:
    return joined_index(read_image_index(store.read(ref)) for ref, _ in build_index(indexer(source, store)))


def indexer(source: ImageSource, store: ArtifactStore) -> Indexer:
    return Indexer(source, store, Recall(store))


def test_the_index_holds_the_upright_sizes_sorted_by_key(place: str, store: ArtifactStore) -> None:
    index = made(images(place, b=(4, 3), a=(8, 6)), store)
    assert [(image.key, image.width, image.height) for image in index.images] == [("a.png", 8, 6), ("b.png", 4, 3)]


def test_an_unchanged_data_set_is_not_looked_at_again(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6), b=(4, 3))
    [(first, reused_at_first)] = build_index(indexer(source, store))
    [(again, reused)] = build_index(indexer(Unreadable(source.roots), store))
    assert (again, reused_at_first, reused) == (first, False, True)


class Unreadable(ImageSource):
    """A source that is not to be read."""

    def read(self, key: str) -> bytes:
        raise AssertionError(f"{key} was read")


def test_of_a_changed_data_set_only_what_is_new_is_looked_at(place: str, store: ArtifactStore) -> None:
    made(images(place, a=(8, 6), b=(4, 3)), store)
    source = ReadOnce(images(place, c=(2, 2)).roots)
    assert [image.key for image in made(source, store).images] == ["a.png", "b.png", "c.png"]
    assert source.files == ["c.png"]


@dataclass(frozen=True)
class ReadOnce(ImageSource):
    """A source that remembers what was read."""

    files: list[str] = field(default_factory=list)

    def read(self, key: str) -> bytes:
        self.files.append(key)
        return super().read(key)


@pytest.mark.parametrize("change", ["another image", "a new image", "an image less"])
def test_a_changed_data_set_is_indexed_anew(place: str, store: ArtifactStore, change: str) -> None:
    made(images(place, a=(8, 6), b=(4, 3)), store)
    if change == "an image less":
        Folder(f"{place}/images").delete_tree("b.png")
        source, expected = ImageSource((f"{place}/images",)), {"a.png": 8}
    elif change == "a new image":
        source, expected = images(place, c=(2, 2)), {"a.png": 8, "b.png": 4, "c.png": 2}
    else:
        source, expected = images(place, b=(5, 5)), {"a.png": 8, "b.png": 5}
    assert {image.key: image.width for image in made(source, store).images} == expected


def test_d21_an_unreadable_image_is_a_failure_and_the_others_go_on(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6), c=(4, 3))
    whole = source.read("a.png")
    Folder(f"{place}/images").write("b.png", whole[: len(whole) // 2])
    index = made(source, store)
    assert [image.key for image in index.images] == ["a.png", "c.png"]
    assert [(failure.image, failure.stage, bool(failure.reason)) for failure in index.failures] == [
        ("b.png", "index", True)
    ]


@dataclass(frozen=True)
class FlakySource(ImageSource):
    """A source in which the files in `offline` cannot be fetched for the time being."""

    offline: list[str] = field(default_factory=list)

    def read(self, key: str) -> bytes:
        if key in self.offline:
            raise FetchError("cannot be read: the network is down")
        return super().read(key)


def test_an_image_that_could_not_be_fetched_is_a_failure_now_and_tried_again_by_the_next_run(
    place: str, store: ArtifactStore
) -> None:
    source = FlakySource(images(place, a=(8, 6), b=(4, 3)).roots, offline=["a.png"])
    index = made(source, store)
    assert [failure.image for failure in index.failures] == ["a.png"]
    source.offline.clear()
    assert [image.key for image in made(source, store).images] == ["a.png", "b.png"]


def test_an_image_that_went_away_after_the_listing_is_a_failure(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6), b=(4, 3))

    class VanishingSource(ImageSource):
        def list_images(self):  # type: ignore[no-untyped-def]
            listed = list(super().list_images())
            Folder(f"{place}/images").delete_tree("a.png")
            return listed

    index = made(VanishingSource(source.roots), store)
    assert [failure.image for failure in index.failures] == ["a.png"]
    assert [image.key for image in index.images] == ["b.png"]


def test_a_damaged_index_is_made_again(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6))
    [(ref, _)] = build_index(indexer(source, store))
    folder = Folder(store.uri)
    [data] = [name for name in folder.names(f"index/{ref.key[:2]}") if "manifest" not in name]
    folder.write(f"index/{ref.key[:2]}/{data}", b"")
    assert build_index(indexer(source, store)) == [(ref, False)]
    assert [image.key for image in read_image_index(store.read(ref)).images] == ["a.png"]


def test_progress_counts_every_image_once(place: str, store: ArtifactStore) -> None:
    heard = Heard()
    with listening(heard):
        build_index(indexer(images(place, a=(1, 1), b=(1, 1), c=(1, 1)), store))
    assert (heard.totals, heard.images) == ([None], 3)


def test_the_task_ends_in_the_state_cached_when_nothing_changed(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6))
    first = index_images.fn(indexer(source, store))
    again = index_images.fn(indexer(source, store))
    assert isinstance(first, State)
    assert isinstance(again, State)
    assert (again.name, again.is_completed(), again.data) == ("Cached", True, first.data)


def test_storage_options_are_in_no_key_and_no_message(place: str, store: ArtifactStore) -> None:
    roots = images(place, a=(8, 6)).roots
    first = index_images.fn(indexer(ImageSource(roots, {"secret": "hunter2"}), store))
    again = index_images.fn(indexer(ImageSource(roots, {"secret": "swordfish"}), store))
    assert isinstance(first, State)
    assert isinstance(again, State)
    assert (again.data, "swordfish" in repr(again)) == (first.data, False)


def test_a_data_set_without_images_ends_with_the_way_out(place: str, store: ArtifactStore) -> None:
    with pytest.raises(SpecError, match="check image_dir"):
        build_index(indexer(ImageSource((f"{place}/images",)), store))


def test_what_is_excluded_is_in_no_key(place: str, store: ArtifactStore) -> None:
    roots = images(place, a=(8, 6)).roots
    [(ref, _)] = build_index(indexer(ImageSource(roots), store))
    excluding = ImageSource(roots, excluded=(f"{place}/images/out",))
    assert build_index(indexer(excluding, store)) == [(ref, True)]


def test_pictures_of_an_earlier_run_below_the_image_root_do_not_become_images(place: str, store: ArtifactStore) -> None:
    source = images(place, a=(8, 6))
    results = f"{place}/images/out"
    Folder(results).write("images_annotated/a.png", source.read("a.png"))
    index = made(ImageSource(source.roots, excluded=(results,)), store)
    assert [image.key for image in index.images] == ["a.png"]


def test_an_image_for_which_memory_ran_out_is_tried_again_by_the_next_run(place, store, monkeypatch):  # type: ignore[no-untyped-def]
    source = images(place, a=(8, 6))

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PillowImage.Image, "load", no_memory)
        patch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
        [failure] = made(source, store).failures
    assert "did not fit into memory" in failure.reason
    assert [image.key for image in made(source, store).images] == ["a.png"]
