"""Files behind SSH are written whole or not at all, and a lost connection is made again."""

import time
from pathlib import Path
from threading import Thread

import pytest

from tasks.domain.errors import ArtifactError
from tasks.storage.folder import Folder
from tasks.storage.temporaries import temporary_name

MANY = bytes(range(256)) * 2**16  # 16 MiB: they take long enough to be interrupted


@pytest.fixture
def folder(sftp) -> Folder:
    return Folder(sftp.uri, sftp.storage_options)


def test_a_lost_connection_is_made_again(folder, sftp):
    folder.write("file", b"1")
    sftp.hang_up()
    assert folder.read("file") == b"1"
    sftp.hang_up()
    folder.write("file", b"2")
    sftp.hang_up()
    assert folder.exists("file")
    sftp.hang_up()
    assert [file.path for file in folder.files()] == ["file"]
    sftp.hang_up()
    assert list(folder.read_all(["file"])) == [("file", b"2")]


def test_readers_find_the_old_file_or_the_new_one_while_connections_are_cut(folder, sftp, monkeypatch):
    sleep = time.sleep
    monkeypatch.setattr("tasks.storage.retrying.sleep", lambda _: sleep(0.1))
    folder.write("file", b"old")
    seen: set[int] = set()
    writer = Thread(target=folder.write, args=("file", MANY))
    writer.start()
    for number in range(4):
        time.sleep(0.05 * number)
        sftp.hang_up()
        seen.add(len((sftp.path / "file").read_bytes()))
    writer.join()
    assert seen <= {3, len(MANY)}
    assert folder.read("file") == MANY


def test_a_file_is_renamed_over_the_old_one(folder, sftp, monkeypatch):
    """At no moment there is none."""
    folder.write("file", b"old")
    deleted: list[str] = []
    monkeypatch.setattr("paramiko.SFTPClient.remove", lambda client, path: deleted.append(path))
    folder.write_stream("file", [b"new"])
    assert folder.read("file") == b"new"
    assert deleted == []


def test_what_a_killed_writer_left_is_deleted_and_not_what_a_living_one_writes(folder, sftp):
    folder.write("deep/file", b"1")
    writer, _, counter = temporary_name().removeprefix(".tmp-").rpartition("-")
    host, _, started = writer.split("-")
    dead, living = f".tmp-{host}-{2**22 + 1}-{started}-{counter}", f".tmp-{writer}-{counter}"
    for name in (dead, living, ".tmp-notes"):
        (sftp.path / "deep" / name).write_bytes(b"half a f")
    assert folder.names("deep") == ["file"]
    assert folder.delete_temporaries() == 1
    assert {path.name for path in (sftp.path / "deep").iterdir()} == {"file", living, ".tmp-notes"}


@pytest.mark.parametrize("wrong", [{"username": "no-such-user"}, {"key_filename": None}], ids=["user", "no key"])
def test_a_wrong_login_is_told_at_once(sftp, wrong, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", waited.append)
    options = {name: value for name, value in {**sftp.storage_options, **wrong}.items() if value is not None}
    with pytest.raises(ArtifactError, match="check the address, the permissions and storage_options"):
        Folder(sftp.uri, options).read("file")
    assert waited == []


def test_a_folder_that_may_not_be_written_is_told(sftp, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="there is no such bucket or folder"):
        Folder(f"sftp://127.0.0.1{tmp_path}/file", sftp.storage_options).write("a/b", b"x")
