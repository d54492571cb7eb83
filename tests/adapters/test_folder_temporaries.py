"""Files that a killed process was writing are found and deleted, and those of living ones are not."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tasks.storage.folder import Folder
from tasks.storage.temporaries import is_left_over, temporary_name

DAY = 86_400
WRITING = """
import sys, time
from pathlib import Path
from tasks.storage.folder import Folder

def pieces():
    yield bytes(2**20)
    print("writing", flush=True)
    time.sleep(60)

Folder(sys.argv[1]).write_stream("deep/file", pieces())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "folder"))


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's temporary folder."""
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    return spool


@pytest.fixture
def writer(folder: Folder) -> Iterator["subprocess.Popen[str]"]:
    """Another process in the middle of a file."""
    with writing(folder.uri) as process:
        yield process
        process.kill()


def writing(uri: str, **environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, uri],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def temporaries(place: Path) -> list[Path]:
    return sorted(place.rglob(".tmp-*"))


def left_by(place: Path, name: str, age: float = 0.0) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(b"half a f")
    os.utime(place / name, (time.time() - age, time.time() - age))
    return place / name


def test_what_a_killed_process_was_writing_is_deleted(folder, writer):
    writer.kill()
    writer.wait()
    (left,) = temporaries(Path(folder.uri))
    assert [f"{folder.uri}/{file.path}" for file in folder.temporaries()] == [str(left)]
    assert folder.delete_temporaries() == 1
    assert temporaries(Path(folder.uri)) == []
    assert folder.delete_temporaries() == 0


def test_what_a_living_process_writes_is_left_alone_however_long_it_takes(folder, writer):
    (written,) = temporaries(Path(folder.uri))
    os.utime(written, (1.0, 1.0))
    assert folder.temporaries() == []
    assert folder.delete_temporaries() == 0
    assert temporaries(Path(folder.uri)) == [written]


def test_the_process_that_got_the_id_of_a_dead_one_does_not_keep_its_files(folder):
    host, pid, started, _ = temporary_name().removeprefix(".tmp-").split("-")
    left_by(Path(folder.uri), f".tmp-{host}-{pid}-{int(started) - 1}-{'0' * 16}")
    assert folder.delete_temporaries() == 1


@pytest.mark.parametrize("name", ["01234567-1-1-" + "0" * 16, "0" * 16], ids=["another host", "version 0.1"])
def test_who_cannot_be_asked_is_given_a_day(folder, name):
    young = left_by(Path(folder.uri) / "young", f".tmp-{name}", DAY - 60)
    left_by(Path(folder.uri) / "old", f".tmp-{name}", DAY + 60)
    assert folder.delete_temporaries() == 1
    assert temporaries(Path(folder.uri)) == [young]


def test_a_file_whose_age_is_not_told_is_kept():
    assert not is_left_over(".tmp-" + "0" * 16, None)


def test_only_names_that_are_ours_are_deleted(folder):
    others = [".tmp-notes", ".tmp-", "tmp-" + "0" * 16, ".tmp-" + "0" * 17, "file.tmp-" + "0" * 16]
    for name in others:
        left_by(Path(folder.uri), name, 2 * DAY)
    assert folder.delete_temporaries() == 0
    assert sorted(path.name for path in Path(folder.uri).iterdir()) == sorted(others)


def test_folders_behind_links_are_not_searched(folder, tmp_path):
    elsewhere = left_by(tmp_path / "elsewhere", ".tmp-" + "0" * 16, 2 * DAY)
    Path(folder.uri).mkdir()
    (Path(folder.uri) / "link").symlink_to(elsewhere.parent)
    (Path(folder.uri) / "circle").symlink_to(folder.uri)
    (Path(folder.uri) / "itself").symlink_to("itself")
    assert folder.delete_temporaries() == 0
    assert elsewhere.exists()


def test_a_folder_that_is_not_there_holds_none(folder):
    assert folder.temporaries() == []
    assert folder.delete_temporaries() == 0


def test_temporary_files_are_not_listed(folder):
    folder.write("file", b"x")
    left_by(Path(folder.uri), temporary_name())
    assert folder.names() == ["file"]
    assert [file.path for file in folder.files()] == ["file"]


def test_a_bucket_holds_none_and_is_not_searched(monkeypatch):
    """What is put there appears whole; to list it may take a minute."""
    Folder("memory://folder").write("file", b"x")
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", None)
    assert Folder("memory://folder").delete_temporaries() == 0
    fsspec.filesystem("memory").store.clear()


def test_what_a_killed_process_spooled_for_a_bucket_is_deleted_by_the_next(spool):
    with writing("memory://bucket", TMPDIR=str(spool)) as killed:
        (left,) = temporaries(spool)
        with writing("memory://bucket", TMPDIR=str(spool)) as living:
            (written,) = set(temporaries(spool)) - {left}
            killed.kill()
            killed.wait()
            inner = left_by(spool / "folder of another program", left.name)
            Folder("memory://bucket").write_stream("file", [b"x"])
            assert temporaries(spool) == sorted([written, inner])
            living.kill()
    fsspec.filesystem("memory").store.clear()
