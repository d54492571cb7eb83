"""A folder is the same on a disk, in memory, in a bucket and behind SSH."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from tasks.domain.errors import ArtifactError
from tasks.storage.backends import S3_PART
from tasks.storage.folder import CHUNK, Folder, MissingFileError

ODD_NAMES = ["with space", "per%20cent#", "ünïcödé 照片", "-dash", "a::b", "[1]*?", "a+b&c=d;e", "n" * 200]


@pytest.fixture(params=["path", "memory", "s3", "sftp"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param in {"s3", "sftp"}:
        server = request.getfixturevalue(request.param)
        yield Folder(f"{server.uri}/a place %20 for ü", server.storage_options)
    else:
        yield Folder(str(tmp_path / "a place") if request.param == "path" else f"memory://{uuid4()}/a place")
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("payload", [b"", b"{}", bytes(range(256)) * 1000])
def test_what_is_written_is_read_back(folder, payload):
    folder.write("deep/er/file", payload)
    assert folder.read("deep/er/file") == payload


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_kept_as_it_is(folder, name):
    folder.write(f"{name}/{name}", b"odd")
    assert folder.read(f"{name}/{name}") == b"odd"
    assert folder.names() == folder.names(name) == [name]
    assert [file.path for file in folder.files()] == [f"{name}/{name}"]
    folder.delete_tree(name)
    assert folder.files() == []


def test_a_file_is_written_over(folder):
    folder.write("file", b"a long one")
    folder.write("file", b"short")
    assert folder.read("file") == b"short"


def test_a_file_grows_by_what_is_appended(folder):
    for line in (b"1\n", b"", b"2\n"):
        folder.append("deep/status.json", line)
    assert folder.read("deep/status.json") == b"1\n2\n"


def test_what_others_write_is_seen_at_once(folder):
    """Backends keep listings: what was not there a moment ago may be there now."""
    folder.write("a/1", b"1")
    assert folder.names("a") == ["1"]
    assert not folder.exists("a/2")
    other, path = fsspec.url_to_fs(f"{folder.uri}/a/2", **folder.storage_options, skip_instance_cache=True)
    other.pipe_file(path, b"22")
    assert folder.exists("a/2")
    assert folder.read("a/2") == b"22"
    assert folder.names("a") == ["1", "2"]
    assert [(file.path, file.bytes) for file in folder.files()] == [("a/1", 1), ("a/2", 2)]


def test_nothing_is_where_nothing_was_written(folder):
    assert folder.names() == folder.names("a") == folder.files() == folder.files("a") == []
    assert not folder.exists("a")
    folder.delete_tree("a")
    with pytest.raises(MissingFileError, match="'a/b' was not found in"):
        folder.read("a/b")


def test_files_tells_paths_sizes_and_times_below_a_folder_or_of_a_file(folder):
    folder.write("b/2", b"22")
    folder.write("b/c/3", b"333")
    folder.write("a", b"1")
    folder.write("bb", b"not below b")
    assert [(file.path, file.bytes) for file in folder.files("b")] == [("b/2", 2), ("b/c/3", 3)]
    assert [file.path for file in folder.files()] == ["a", "b/2", "b/c/3", "bb"]
    assert [(file.path, file.bytes) for file in folder.files("a")] == [("a", 1)]
    (file,) = folder.files("a")
    assert file.modified > 1.7e9  # in 2023


def test_all_that_is_there_is_read_in_the_order_asked_for(folder):
    paths = [f"{number % 7}/{number}" for number in range(40)]
    for path in paths[::2]:
        folder.write(path, path.encode())
    assert list(folder.read_all(paths)) == [(path, path.encode()) for path in paths[::2]]


def test_a_tree_is_deleted_with_all_that_is_in_it_and_nothing_beside(folder):
    for path in ("t/1", "t/u/2", "t2/3", "t*/4", "t"[:1] + "/[1]"):
        folder.write(path, b"x")
    folder.delete_tree("t")
    assert [file.path for file in folder.files()] == ["t*/4", "t2/3"]
    assert not folder.exists("t")
    folder.delete_tree("t*/4")
    assert [file.path for file in folder.files()] == ["t2/3"]


@pytest.mark.parametrize("size", [0, CHUNK, 2 * S3_PART + CHUNK + 1], ids=["empty", "a chunk", "several parts"])
def test_a_stream_of_any_size_arrives_whole(folder, size):
    piece = bytes(range(256)) * 1024
    folder.write_stream("deep/file", (piece[: size - start] for start in range(0, size, len(piece))))
    payload = folder.read("deep/file")
    assert len(payload) == size
    assert payload == (piece * (size // len(piece) + 1))[:size]
    assert folder.temporaries() == []


def test_a_large_stream_goes_to_a_bucket_in_parts(s3):
    Folder(s3.uri, s3.storage_options).write_stream("file", (b"x" * CHUNK for _ in range(2 * S3_PART // CHUNK)))
    assert [request for request in s3.faults.asked if request.startswith("PUT") and "partNumber=" in request]


def test_a_file_of_a_bucket_is_read_in_one_request_and_missed_in_one(s3):
    """Two would cost twice as much, and see two versions of a file that is written over in between."""
    folder = Folder(s3.uri, s3.storage_options)
    folder.write("a/b", b"x")
    for path in ("a/b", "a/c"):
        s3.faults.clear()
        list(folder.read_all([path]))
        assert s3.faults.asked == [f"GET /{s3.bucket}/{path}"]


def test_no_bucket_is_made_for_a_name_that_is_mistyped(s3):
    folder = Folder("s3://no-such-bucket", s3.storage_options)
    with pytest.raises(ArtifactError, match="there is no such bucket"):
        folder.write("a", b"x")
    with pytest.raises(ArtifactError, match="there is no such bucket"):
        folder.write_stream("a", [b"x"])
    assert all(not request.startswith("PUT /no-such-bucket ") for request in s3.faults.asked)
    with pytest.raises(ArtifactError, match="there is no such bucket"):
        folder.write("a", b"x")
