"""A file is written whole or not at all, whatever fails and wherever it lies."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.domain.errors import ArtifactError
from tasks.storage.folder import CHUNK, Folder

OLD, NEW = b"the old file", b"the new file, which is longer"


class FileServer(MemoryFileSystem):
    """A server as SMB and FTP have it: a reader sees the half of a file that is put, and a rename replaces nothing.

    The call with the number `breaks_at` does half of its work and fails, and all later ones fail.
    """

    protocol = "fileserver"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own has it so
    pseudo_dirs = [""]  # noqa: RUF012
    breaks_at = 10**6
    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("fileserver://host")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        if not self.isdir(self._parent(path)):
            raise FileNotFoundError(path)
        self._called("put", lambda: super(FileServer, self).pipe_file(path, value[: len(value) // 2]))
        super().pipe_file(path, value)

    def put_file(self, lpath: str, rpath: str, **_: object) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def mv(self, path1: str, path2: str, **_: object) -> None:
        self._called("rename")
        if self.exists(path2):
            raise FileExistsError(path2)
        type(self).store[path2] = type(self).store.pop(path1)

    def rm_file(self, path: str) -> None:
        self._called("delete")
        super().rm_file(path)

    def _called(self, name: str, half: Any = lambda: None) -> None:
        self.calls.append(name)
        if len(self.calls) >= self.breaks_at:
            half()
            raise PermissionError(f"{name} was cut")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FileServer]]:
    fsspec.register_implementation("fileserver", FileServer, clobber=True)
    for name, value in {"store": {}, "pseudo_dirs": [""], "calls": []}.items():
        monkeypatch.setattr(FileServer, name, value)
    yield FileServer
    FileServer.clear_instance_cache()


@pytest.fixture(params=["write", "write_stream", "append"])
def change(request: pytest.FixtureRequest) -> Any:
    """Makes NEW of what is in the file."""
    return {
        "write": lambda folder: folder.write("deep/file", NEW),
        "write_stream": lambda folder: folder.write_stream("deep/file", [NEW[:5], NEW[5:]]),
        "append": lambda folder: (folder.delete_tree("deep"), folder.append("deep/file", NEW)),
    }[request.param]


def test_what_is_put_is_renamed_when_it_is_whole(server, change):
    folder = Folder("fileserver://host/folder")
    change(folder)
    assert folder.read("deep/file") == NEW
    change(folder)
    assert folder.read("deep/file") == NEW
    assert [path for path in server.store if ".tmp-" in path] == []


@pytest.mark.parametrize("call", range(1, 5))
@pytest.mark.parametrize("stream", [False, True])
def test_whichever_call_fails_the_file_is_old_or_new_or_absent_and_never_half(server, monkeypatch, call, stream):
    folder = Folder("fileserver://host/folder")
    folder.write("deep/file", OLD)
    server.calls.clear()
    monkeypatch.setattr(server, "breaks_at", call)
    try:
        folder.write_stream("deep/file", [NEW]) if stream else folder.write("deep/file", NEW)
        failed = False
    except ArtifactError:
        failed = True
    assert failed == (len(server.calls) >= call)
    monkeypatch.setattr(server, "breaks_at", 10**6)
    found = folder.read("deep/file") if folder.exists("deep/file") else None
    assert found in ({OLD} if call < 3 else {OLD, NEW, None})
    folder.write("deep/file", NEW)
    assert folder.read("deep/file") == NEW


def test_what_cannot_be_renamed_is_not_left_behind(server, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no renames here")

    folder = Folder("fileserver://host/folder")
    folder.write("deep/file", OLD)
    monkeypatch.setattr(server, "mv", refuse)
    with pytest.raises(ArtifactError, match="no renames here"):
        folder.write("deep/file", NEW)
    assert [path for path in server.store if ".tmp-" in path] == []


@pytest.mark.parametrize("error", [ConnectionResetError, FileNotFoundError], ids=["answer lost", "another process"])
def test_a_file_that_was_deleted_in_another_way_is_deleted(server, monkeypatch, error):
    def delete_and_fail(filesystem: FileServer, path: str) -> None:
        delete(filesystem, path)
        if path.endswith("1"):
            raise error

    folder = Folder("fileserver://host/folder")
    for number in range(3):
        folder.write(f"deep/{number}", OLD)
    delete = server.rm_file
    monkeypatch.setattr("tasks.storage.retrying.sleep", lambda _: None)
    monkeypatch.setattr(server, "rm_file", delete_and_fail)
    folder.delete_tree("deep")
    assert server.store == {}


def test_a_server_that_could_not_be_asked_does_not_say_that_nothing_is_there(server, monkeypatch):
    def lost(_: FileServer, path: str, **__: object) -> None:
        try:
            raise ConnectionResetError
        except ConnectionResetError as error:
            raise FileNotFoundError(path) from error

    folder = Folder("fileserver://host/folder")
    monkeypatch.setattr("tasks.storage.retrying.sleep", lambda _: None)
    monkeypatch.setattr(server, "info", lost)
    monkeypatch.setattr(server, "ls", lost)
    for ask in (lambda: folder.exists("file"), folder.names, folder.files, folder.temporaries):
        with pytest.raises(ArtifactError, match="it was asked several times"):
            ask()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_disk_is_told_plainly_and_leaves_the_old_file(small_disk, stream):
    folder = Folder(str(small_disk))
    folder.write("file", OLD)
    with pytest.raises(ArtifactError, match="no space is left there, or a quota is used up; make room, then run"):
        folder.write_stream("file", [bytes(CHUNK)]) if stream else folder.write("file", bytes(CHUNK))
    assert folder.read("file") == OLD
    assert [path.name for path in small_disk.iterdir()] == ["file"]


def test_a_full_temporary_folder_is_named(small_disk, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(ArtifactError, match=rf"kept in {small_disk} until it is whole.* no space is left there"):
        Folder("memory://bucket").write_stream("file", [bytes(CHUNK)])
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_server_is_told_plainly(server, monkeypatch, number):
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(server, "pipe_file", full)
    with pytest.raises(ArtifactError, match="no space is left there, or a quota is used up"):
        Folder("fileserver://host/folder").write("file", NEW)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_bytes_of_a_stream_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch, scheme):
    """Without it a power cut may leave an empty file: some file systems write the name first."""
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", noted)
    Folder(f"{scheme}{tmp_path}").write_stream("file", [bytes(CHUNK), b"x"])
    assert synced == [(CHUNK + 1, False)]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_is_written_behind_http(scheme):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    folder = Folder(f"{scheme}://127.0.0.1:1/folder")
    pieces = iter([b"x"])
    for write in (
        lambda: folder.write("file", b"x"),
        lambda: folder.write_stream("file", pieces),
    ):
        with pytest.raises(ArtifactError, match=r"is read only.*set results_dir and cache_dir"):
            write()
    assert next(pieces) == b"x"
