"""Images from OpenSSH's server, over a line that can be cut: what is listed, and that eight readers all get theirs."""

import getpass
import json
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest

from flows.auto_label import auto_label
from tasks.domain.errors import SpecError
from tasks.domain.spec import validate_spec
from tasks.image_files import FetchError, ImageSource
from tasks.storage.retrying import PAUSES

paramiko = pytest.importorskip("paramiko", reason="paramiko is not installed")

CAT = (10, 10, 60, 50)


@dataclass
class Line:
    """What lies between the clients and the server: it counts connections, and cuts or holds what the server sends.

    `cuts` and `holds` are numbers of bytes, taken from the left, one for each connection: after so many bytes from the
    server the connection is cut, or nothing comes any more. None lets it be.
    """

    server: int
    listener: socket.socket = field(default_factory=socket.socket)
    connections: int = 0
    cuts: list[int | None] = field(default_factory=list)
    holds: list[int | None] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)
    over: Event = field(default_factory=Event)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def cut_all(self) -> None:
        for end in self.ends:
            _hang_up(end)

    def close(self) -> None:
        self.over.set()
        _hang_up(self.listener)

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
            except OSError:
                return
            with self.lock:
                self.connections += 1
                self.ends += [client, server]
                cut = self.cuts.pop(0) if self.cuts else None
                hold = self.holds.pop(0) if self.holds else None
            Thread(target=self._carry, args=(client, server, None, None), daemon=True).start()
            Thread(target=self._carry, args=(server, client, cut, hold), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, cut: int | None, hold: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(4096):
                carried += len(data)
                if hold is not None and carried > hold:
                    self.over.wait(timeout=30)
                if cut is not None and carried > cut:
                    break
                target.sendall(data)
        _hang_up(source)
        _hang_up(target)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes who waits at it; to close it does not
    end.close()


@dataclass(frozen=True)
class Server:
    """A server that shows the whole disk to who has the key, behind a line."""

    line: Line
    key: Path

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "port": self.line.port,
            "username": getpass.getuser(),
            "key_filename": str(self.key),
            "allow_agent": False,
            "look_for_keys": False,
        }

    def source(self, folder: Path, **options: object) -> ImageSource:
        return ImageSource((f"sftp://127.0.0.1{folder}",), {**self.storage_options, **options})


@pytest.fixture
def sftp(sftp_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))  # no known_hosts
    line = Line(sftp_server.port)
    yield Server(line, sftp_server.key_file)
    line.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes any time."""
    made: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", made.append)
    return made


def put(folder: Path, *paths: str, data: bytes = b"content") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def keys_of(source: ImageSource) -> list[str]:
    return [file.key for file in source.list_images()]


# What is listed


def test_files_of_awkward_names_are_listed_and_read(folder: Path, sftp: Server) -> None:
    names = [
        "a b.png",
        "100%.png",
        "%41.png",
        "what?.png",
        "a#1.png",
        "日本 é.png",
        "f #2?/%20.png",
        "b\\s.png",
        "[x]*.png",
    ]
    for name in names:
        put(folder, name, data=name.encode())
    source = sftp.source(folder)
    assert keys_of(source) == sorted(names)
    assert list(source.read_ahead(names, workers=4)) == [(name, name.encode()) for name in names]


def test_the_listing_is_that_of_the_folder_itself(folder: Path, sftp: Server) -> None:
    put(folder, "a.png", "a/1.png", "a/b/2.JPG", "a-b/3.png", ".cache/4.png", ".5.png", "out/6.png", "tiles.jpg/7.png")
    local = ImageSource((str(folder),), excluded=(f"{folder}/out",))
    remote = ImageSource(sftp.source(folder).roots, sftp.storage_options, (f"sftp://127.0.0.1{folder}/out",))
    assert [(f.key, f.reason) for f in remote.list_images()] == [(f.key, f.reason) for f in local.list_images()]


def test_links_to_files_are_followed_and_links_to_folders_are_counted(
    folder: Path, sftp: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "store/ab12", "elsewhere/2.png")
    (folder / "1.png").symlink_to(tmp_path / "store" / "ab12")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(".")
    (folder / "lost.png").symlink_to("nowhere")
    source = sftp.source(folder)
    with caplog.at_level(logging.WARNING, "tasks.image_sources.image_roots"):
        keys = keys_of(source)
    assert [(key, isinstance(data, bytes)) for key, data in source.read_ahead(keys, 2)] == [
        ("1.png", True),
        ("lost.png", False),
    ]
    assert "not searched: 2, such as 'more'" in caplog.text


def test_the_version_of_a_linked_file_is_that_of_what_the_link_leads_to(
    folder: Path, sftp: Server, tmp_path: Path
) -> None:
    put(tmp_path, "store/1")
    (folder / "1.png").symlink_to(tmp_path / "store" / "1")
    [before] = sftp.source(folder).list_images()
    os.utime(tmp_path / "store" / "1", (0, 0))
    [after] = sftp.source(folder).list_images()
    assert None not in {before.version, after.version}
    assert before.version != after.version


def test_a_named_file_has_the_version_of_a_listed_one(folder: Path, sftp: Server) -> None:
    put(folder, "a/1.png", "2.png")
    (folder / "3.png").symlink_to("2.png")
    source = sftp.source(folder)
    listed = list(source.list_images())
    assert source.list_named([file.key for file in listed]) == listed
    assert [file.reason for file in source.list_named(["a/2.png", "b/1.png"])] == ["is not there"] * 2


def test_a_folder_with_a_name_that_is_not_utf8_is_reported(folder: Path, sftp: Server) -> None:
    put(folder, "1.png", "sub/2.png")
    (folder / "sub" / os.fsdecode(b"\xe9.png")).touch()
    listed = list(sftp.source(folder).list_images())
    assert [file.key for file in listed] == ["1.png", "sub/"]
    assert "UnicodeDecodeError" in str(listed[1].reason)


@pytest.mark.parametrize("root", ["nowhere", "1.png", "empty"])
def test_a_root_that_holds_no_images_is_an_error_of_the_spec(folder: Path, sftp: Server, root: str) -> None:
    put(folder, "1.png", "empty/notes.txt")
    with pytest.raises(SpecError, match="check image_dir"):
        keys_of(sftp.source(folder / root))


def test_who_has_no_key_is_told_at_once(folder: Path, sftp: Server, pauses: list[float]) -> None:
    with pytest.raises(SpecError, match=r"cannot be listed: .*[Aa]uthentication") as caught:
        keys_of(sftp.source(folder, key_filename=None, password="hunter2"))  # noqa: S106 - nobody's
    assert ("hunter2" in str(caught.value), pauses) == (False, [])


def test_a_host_with_another_key_than_the_known_one_is_refused(folder: Path, sftp: Server, tmp_path: Path) -> None:
    other = sftp.key.with_suffix(".pub").read_text()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sftp.line.port} {other}")
    with pytest.raises(SpecError, match="BadHostKeyException"):
        keys_of(sftp.source(folder))


def test_the_address_has_host_and_port(folder: Path, sftp: Server) -> None:
    [address] = sftp.source(folder).addresses
    assert address == f" sftp://127.0.0.1 {sftp.line.port} {getpass.getuser()}{folder}"


# Many readers, and a bad line


def test_eight_readers_get_their_files_over_a_connection_each(folder: Path, sftp: Server) -> None:
    for number in range(100):
        put(folder, f"{number:03}.png", data=os.urandom(100_000))
    source = sftp.source(folder)
    keys = keys_of(source)
    for _ in range(2):
        for key, data in source.read_ahead(keys, workers=8):
            assert data == (folder / key).read_bytes()
    assert sftp.line.connections <= 9


def test_a_large_and_an_empty_file_come_whole(folder: Path, sftp: Server) -> None:
    put(folder, "large.png", data=os.urandom(5_000_000))
    put(folder, "empty.png", data=b"")
    source = sftp.source(folder)
    assert source.read("large.png") == (folder / "large.png").read_bytes()
    assert source.read("empty.png") == b""


def test_a_file_comes_whole_after_the_line_was_cut_in_its_middle(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    put(folder, "1.png", data=os.urandom(500_000))
    sftp.line.cuts = [200_000, 1_000, 300_000]
    assert sftp.source(folder).read("1.png") == (folder / "1.png").read_bytes()
    assert (len(pauses), sftp.line.connections) == (3, 4)


def test_a_server_that_falls_silent_is_asked_again_over_another_connection(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    put(folder, "1.png", data=os.urandom(500_000))
    sftp.line.holds = [200_000]
    assert sftp.source(folder, channel_timeout=1).read("1.png") == (folder / "1.png").read_bytes()
    assert sftp.line.connections == 2


def test_a_file_that_comes_too_slowly_is_given_up_in_the_end(
    folder: Path, sftp: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "1.png")
    monkeypatch.setattr("tasks.image_sources.sftp_files.READ_SECONDS", 0.0)
    with pytest.raises(FetchError, match="TimeoutError: 7 of 7 bytes came in"):
        sftp.source(folder).read("1.png")


def test_a_server_that_takes_no_connection_for_a_while_is_asked_again(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    put(folder, "1.png")
    sftp.line.cuts = [0, 0, 0, 0]
    assert sftp.source(folder).read("1.png") == b"content"
    assert len(pauses) == 4


def test_connections_that_were_cut_while_nothing_was_read_are_not_used_again(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    put(folder, "1.png")
    source = sftp.source(folder)
    assert {data for _, data in source.read_ahead(["1.png"] * 50, workers=4)} == {b"content"}
    sftp.line.cut_all()
    time.sleep(0.5)  # until paramiko has noticed
    assert source.read("1.png") == b"content"
    assert pauses == []


def test_fewer_bytes_than_the_server_has_told_are_no_whole_file(
    folder: Path, sftp: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "1.png", data=bytes(100_000))
    stat = paramiko.SFTPFile.stat

    def too_much(file: Any) -> Any:
        told = stat(file)
        told.st_size += 1
        return told

    monkeypatch.setattr(paramiko.SFTPFile, "stat", too_much)
    with pytest.raises(FetchError, match="100000 of 100001 bytes came"):
        sftp.source(folder).read("1.png")
    assert len(pauses) == len(PAUSES)


def test_a_source_works_after_a_trip_to_another_process(folder: Path, sftp: Server) -> None:
    put(folder, "1.png")
    source = sftp.source(folder)
    assert source.read("1.png") == b"content"
    travelled = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
    assert [travelled.read(file.key) for file in travelled.list_images()] == [b"content"]


def test_a_listing_goes_on_after_the_line_was_cut(folder: Path, sftp: Server, pauses: list[float]) -> None:
    put(folder, *(f"{number:02}/{'long' * 40}{other}.png" for number in range(20) for other in range(20)))
    sftp.line.cuts = [60_000, 60_000]
    assert len(keys_of(sftp.source(folder))) == 400
    assert sftp.line.connections == 3


def test_a_server_that_is_gone_ends_the_listing_with_the_way_out(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    source = sftp.source(folder)
    sftp.line.close()
    with pytest.raises(SpecError, match=r"cannot be listed: .*check image_dir"):
        keys_of(source)


def test_a_file_that_is_gone_is_told_at_once_and_costs_no_connection(
    folder: Path, sftp: Server, pauses: list[float]
) -> None:
    put(folder, "1.png")
    source = sftp.source(folder)
    for _ in range(3):
        with pytest.raises(FetchError, match="is not there"):
            source.read("2.png")
    assert (source.read("1.png"), pauses, sftp.line.connections) == (b"content", [], 1)


# Whole runs


def label(image_dir: str, results: Path, **storage_options: object) -> Any:
    spec = {
        "autolabel_type": "grounding_dino",
        "results_dir": str(results),
        "storage_options": storage_options,
        "grounding_dino": {
            "checkpoint": "fake",
            "visualize": False,
            "iteration_scheduler": [{"conf_threshold": 0.5}, {"conf_threshold": 0.3}],
            "dataset": {"image_dir": image_dir, "class_names": ["cat"]},
        },
    }
    return auto_label(validate_spec(spec)).images


@pytest.fixture
def painted(folder: Path, paint_picture: Callable[..., Path]) -> list[str]:
    names = [*(f"{number:02}.png" for number in range(6)), "sub folder/#1 100%.png"]
    for number, name in enumerate(names):
        paint_picture(folder / name, [("cat", 0.4 + 0.1 * (number % 5), CAT)] if number else [])
    return names


@pytest.mark.prefect
@pytest.mark.usefixtures("server", "painted")
def test_a_run_over_sftp_leaves_the_bytes_of_a_run_over_the_folder(folder: Path, sftp: Server, tmp_path: Path) -> None:
    label(str(folder), tmp_path / "local")
    label(f"sftp://127.0.0.1{folder}", tmp_path / "remote", **sftp.storage_options)
    assert (tmp_path / "remote/annotations.json").read_bytes() == (tmp_path / "local/annotations.json").read_bytes()


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_every_image_ends_in_one_state_and_the_next_run_labels_the_missing(
    folder: Path, sftp: Server, tmp_path: Path, pauses: list[float], painted: list[str]
) -> None:
    label(str(folder), tmp_path / "expected")
    picture = (folder / "03.png").read_bytes()
    (folder / "03.png").unlink()
    (folder / "03.png").symlink_to("03.png")  # a link in a circle, which even root cannot read
    sftp.line.cuts = [None, 9_000, 7_000]
    results = tmp_path / "results"
    first = label(f"sftp://127.0.0.1{folder}", results, **sftp.storage_options)
    [failure] = map(json.loads, (results / "failures.jsonl").read_text().splitlines())
    assert (failure["image"], first.labelled + first.empty) == ("03.png", len(painted) - 1)
    (folder / "03.png").unlink()
    (folder / "03.png").write_bytes(picture)
    again = label(f"sftp://127.0.0.1{folder}", results, **sftp.storage_options)
    assert again.failed == 0
    assert (results / "annotations.json").read_bytes() == (tmp_path / "expected/annotations.json").read_bytes()
