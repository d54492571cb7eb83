"""Every awkward image file of the shared collection ends in the one state that is expected of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from uuid import uuid4

import numpy as np
import pytest

from tasks.domain.images import ImageIndex
from tasks.formats.image_index import joined_index, read_image_index
from tasks.image_files import FetchError, ImageSource, decode
from tasks.index_images import Indexer, build_index
from tasks.recall import Recall
from tasks.store import ArtifactStore

MAKE_NASTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "make_nasty.py"
pytestmark = pytest.mark.skipif(not MAKE_NASTY.exists(), reason=f"the maker of awkward files is not at {MAKE_NASTY}")

# What this project decided where the collection says that either is right.
POLICY = {
    ".hidden.jpg": "readable",  # a hidden file is a file
    "animated.gif": "readable",  # its first frame
    "animated.png": "readable",
    "animated.webp": "readable",
    "empty_dir": "not listed",
    "float32.tif": "failure",  # no range to scale from
    "gray16.tif": "readable",  # the high byte
    "links/link.jpg": "readable",  # links to files are followed
    "links/outside.jpg": "failure",  # followed too, and what it leads to is no image
    "links/real/loop": "not listed",  # links to folders are not followed
    "names/latin1_\\xe9.jpg": "failure",  # a name that JSON cannot hold
    "no_extension": "not listed",
    "noperm.jpg": "readable" if os.geteuid() == 0 else "failure",
    "size/bomb_30000x30000.png": "failure",
    "size/bomb_warn_10000x10000.png": "readable",
    "truncated_tail.jpg": "failure",  # cut short by two bytes or by half: it cannot be told from the outside
    "two_pages.tif": "readable",  # its first page
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nasty") / "collection"
    subprocess.run([sys.executable, MAKE_NASTY, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def source(collection: Path) -> ImageSource:
    return ImageSource((str(collection / "files"),))


@pytest.fixture(scope="module")
def index(source: ImageSource) -> ImageIndex:
    store = ArtifactStore(f"memory://{uuid4()}")
    return joined_index(
        read_image_index(store.read(ref)) for ref, _ in build_index(Indexer(source, store, Recall(store)))
    )


def entries(collection: Path, expect: str) -> list[dict[str, object]]:
    return [entry for entry in json.loads((collection / "manifest.json").read_text()) if entry["expect"] == expect]


def states(index: ImageIndex) -> dict[str, str]:
    readable = {image.key: "readable" for image in index.images}
    return readable | {failure.image: "failure" for failure in index.failures}


def test_every_good_file_is_readable_with_its_upright_size(collection: Path, index: ImageIndex) -> None:
    sizes = {image.key: [image.width, image.height] for image in index.images}
    expected = {entry["path"]: entry["size"] for entry in entries(collection, "ok")}
    assert {key: sizes.get(key) for key in expected} == expected


def test_every_bad_file_is_a_failure_with_a_reason(collection: Path, index: ImageIndex) -> None:
    reasons = {failure.image: failure.reason for failure in index.failures}
    assert [entry["path"] for entry in entries(collection, "reject") if not reasons.get(entry["path"])] == []


def test_every_doubtful_file_is_in_the_state_that_was_decided(collection: Path, index: ImageIndex) -> None:
    doubtful = [entry["path"] for entry in entries(collection, "policy")]
    found = states(index)
    assert {path: found.get(path, "not listed") for path in doubtful} == {path: POLICY[path] for path in doubtful}


def test_every_file_is_in_one_state_and_none_appears_from_nowhere(collection: Path, index: ImageIndex) -> None:
    keys = [image.key for image in index.images] + [failure.image for failure in index.failures]
    expected = {entry["path"] for expect in ("ok", "reject", "policy") for entry in entries(collection, expect)}
    not_listed = {path for path, state in POLICY.items() if state == "not listed"}
    assert sorted(keys) == sorted(expected - not_listed)


def test_what_the_index_calls_readable_can_be_decoded_to_that_size(source: ImageSource, index: ImageIndex) -> None:
    small = [image for image in index.images if image.width * image.height < 10**6]
    shapes = {image.key: decode(source.read(image.key)).shape for image in small}
    assert shapes == {image.key: (image.height, image.width, 3) for image in small}


def test_a_named_pipe_is_not_waited_for(source: ImageSource) -> None:
    refused = []

    def read() -> None:
        try:
            source.read("fifo.jpg")
        except FetchError:
            refused.append("fifo.jpg")

    reader = Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=10)
    assert refused == ["fifo.jpg"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_d12_every_exif_orientation_gives_the_upright_picture(source: ImageSource, orientation: int) -> None:
    upright = decode(source.read("good.jpg")).astype(int)
    turned = decode(source.read(f"exif/orient_{orientation}.jpg")).astype(int)
    assert np.abs(turned - upright).mean() < 3  # JPEG blocks lie otherwise in a turned picture
    assert turned[30, 40, 0] > 200 > 100 > turned[30, 40, 1]  # in the red box, top left


def test_reading_the_collection_again_gives_the_same_bytes(source: ImageSource, index: ImageIndex) -> None:
    store = ArtifactStore(f"memory://{uuid4()}")
    indices = build_index(Indexer(source, store, Recall(store)))
    again = joined_index(read_image_index(store.read(ref)) for ref, _ in indices)
    assert (again, any(reused for _, reused in indices)) == (index, False)
