"""Files that are written piece by piece appear whole or not at all, on every backend."""

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from tasks.domain.errors import ArtifactError, FormatError
from tasks.storage.folder import CHUNK, Folder


@pytest.fixture(params=["path", "file URL", "memory URL"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    folder = tmp_path / "a folder"
    yield {"path": str(folder), "file URL": f"file://{folder}", "memory URL": f"memory://{uuid4()}"}[request.param]
    fsspec.filesystem("memory").store.clear()
    assert list(tmp_path.rglob(".tmp-*")) == []


@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"", b"bc"], [b"x" * CHUNK, b"y" * CHUNK, b"z"]])
def test_the_pieces_follow_each_other(uri, pieces):
    folder = Folder(uri)
    folder.write_stream("deep/file.json", iter(pieces))
    assert folder.read("deep/file.json") == b"".join(pieces)
    assert folder.names("deep") == ["file.json"]


def test_an_error_between_the_pieces_is_raised_as_it_is_and_leaves_the_old_file(uri):
    def broken() -> Iterator[bytes]:
        yield b"new" * CHUNK
        raise FormatError("in the middle")

    folder = Folder(uri)
    folder.write("file.json", b"old")
    with pytest.raises(FormatError, match="in the middle"):
        folder.write_stream("file.json", broken())
    assert folder.read("file.json") == b"old"
    assert folder.names() == ["file.json"]


def test_a_path_that_leaves_the_folder_is_refused_before_the_first_piece(uri):
    pieces = iter([b"x"])
    with pytest.raises(ArtifactError, match="does not name a file inside"):
        Folder(uri).write_stream("../file.json", pieces)
    assert next(pieces) == b"x"


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="check the address"):
        Folder(str(tmp_path / "file")).write_stream("a.json", [b"x"])


def test_a_file_of_any_size_takes_the_memory_of_a_piece(tmp_path):
    tracemalloc.start()
    Folder(str(tmp_path)).write_stream("big", (bytes(CHUNK) for _ in range(50)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "big").stat().st_size == 50 * CHUNK
    assert peak < 8 * CHUNK
