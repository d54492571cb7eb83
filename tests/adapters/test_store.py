"""The store holds artifacts whole or not at all, and folders keep what is written inside them."""

import json
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.domain.artifacts import Answers, ArtifactRef, digest_of
from tasks.domain.errors import ArtifactError
from tasks.domain.images import is_inner_path
from tasks.storage.folder import Folder, MissingFileError, folder_and_name
from tasks.store import ArtifactStore, DamagedArtifactError

KEY = "ab" * 32
ODD_NAMES = ["with space", "per%20cent#", "ünïcödé 照片", "-dash", "back\\slash", "a::b", "[1]*?", "n" * 255]


@pytest.fixture(params=["path", "file URL", "memory URL"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "a place %20 for ü"
    memory = f"memory://{uuid4()}/a place %20 for ü"
    yield {"path": str(folder), "file URL": f"file://{folder}", "memory URL": memory}[request.param]
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def store(uri: str) -> ArtifactStore:
    return ArtifactStore(uri)


def files_of(uri: str) -> dict[str, str]:
    """The kinds of the files of the only artifact ("manifest", "data") and their paths in the store."""
    folder = Folder(uri)
    names = folder.names(f"index/{KEY[:2]}")
    return {"manifest" if "manifest" in name else "data": f"index/{KEY[:2]}/{name}" for name in names}


@pytest.mark.parametrize("payload", [b"", b"{}", bytes(range(256)) * 1000])
def test_what_is_published_is_found_and_read_back(store: ArtifactStore, payload: bytes) -> None:
    ref = store.publish("index", KEY, payload)
    assert store.lookup("index", KEY) == ref
    assert store.read(ref) == payload


def test_the_counts_come_back(store: ArtifactStore) -> None:
    ref = store.publish("index", KEY, b"{}", {"images": 3, "by class": {"cat": 2}})
    assert store.counts(ref) == {"images": 3, "by class": {"cat": 2}}


def test_what_was_never_published_is_not_found(store: ArtifactStore, caplog: pytest.LogCaptureFixture) -> None:
    store.publish("index", KEY, b"{}")
    assert store.lookup("annotations", KEY) is None
    assert store.lookup("index", "cd" * 32) is None
    assert caplog.records == []


def test_the_manifest_says_format_digest_size_and_counts(store: ArtifactStore, uri: str) -> None:
    ref = store.publish("index", KEY, b"12345", {"images": 1})
    manifest = json.loads(Folder(uri).read(f"index/ab/{KEY}.manifest.json"))
    told = {"format": 1, "sha256": ref.sha256, "bytes": 5, "counts": {"images": 1}}
    assert manifest == {**told, "checksum": digest_of(told)}


DAMAGE = {
    "data is cut short": ("data", b'{"imag'),
    "data is of the same size": ("data", b"tampered with"),
    "data is gone": ("data", None),
    "manifest is cut short": ("manifest", b'{"bytes":'),
    "manifest is empty": ("manifest", b""),
    "manifest is not UTF-8": ("manifest", b"\xff"),
    "manifest is no object": ("manifest", b"[1]"),
    "manifest lacks a digest": ("manifest", b'{"format": 1, "counts": {}}'),
    "manifest lacks a format": ("manifest", b'{"counts": {}}'),
    "manifest is nested without end": ("manifest", b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_not_found_and_one_line_says_so(
    store: ArtifactStore, uri: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish("index", KEY, b"as published!")
    do_damage(uri, damage)
    assert store.lookup("index", KEY) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "made again" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_mended_by_making_it_again(store: ArtifactStore, uri: str, damage: str) -> None:
    ref = store.publish("index", KEY, b"as published!")
    do_damage(uri, damage)
    assert store.publish("index", KEY, b"as published!") == ref
    assert store.read(ref) == b"as published!"
    assert store.lookup("index", KEY) == ref


def do_damage(uri: str, damage: str) -> None:
    file, content = DAMAGE[damage]
    if content is None:
        Folder(uri).delete_tree(files_of(uri)[file])
    else:
        Folder(uri).write(files_of(uri)[file], content)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name.startswith("data")])
def test_reading_a_damaged_artifact_tells_the_way_out(store: ArtifactStore, uri: str, damage: str) -> None:
    ref = store.publish("index", KEY, b"as published!")
    do_damage(uri, damage)
    with pytest.raises(ArtifactError, match="run the same command again"):
        store.read(ref)


def test_data_without_a_manifest_is_no_artifact(store: ArtifactStore, uri: str) -> None:
    store.publish("index", KEY, b"the process ended before the manifest")
    Folder(uri).delete_tree(files_of(uri)["manifest"])
    assert store.lookup("index", KEY) is None


def test_a_manifest_of_a_newer_format_is_refused(store: ArtifactStore, uri: str) -> None:
    ref = store.publish("index", KEY, b"{}")
    newer = b'{"format": 2, "objects": ["something new"]}'
    Folder(uri).write(files_of(uri)["manifest"], newer)
    for use in (store.lookup, lambda kind, key: store.publish(kind, key, b"{}"), lambda *_: store.counts(ref)):
        with pytest.raises(ArtifactError, match=r"format 2.*upgrade"):
            use("index", KEY)
    assert Folder(uri).read(files_of(uri)["manifest"]) == newer


def test_the_artifact_of_the_faster_run_stands(store: ArtifactStore) -> None:
    faster = store.publish("index", KEY, b"faster", {"images": 1})
    assert store.publish("index", KEY, b"slower", {"images": 2}) == faster
    assert store.read(faster) == b"faster"


def test_two_runs_that_publish_at_once_both_keep_what_they_refer_to(store: ArtifactStore) -> None:
    payloads = [f"rounded in another way {number}".encode() for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda payload: store.publish("index", KEY, payload), payloads))
    assert {store.read(ref) for ref in refs} <= set(payloads)
    assert store.lookup("index", KEY) in refs


def test_the_counts_of_another_run_are_not_taken_for_ours(store: ArtifactStore) -> None:
    ref = store.publish("index", KEY, b"{}", {"images": 1})
    with pytest.raises(DamagedArtifactError):
        store.counts(ArtifactRef("index", KEY, "0" * 64))
    assert store.counts(ref) == {"images": 1}


def test_a_store_works_after_a_trip_to_another_process(store: ArtifactStore) -> None:
    ref = store.publish("index", KEY, b"{}")
    assert pickle.loads(pickle.dumps(store)).read(ref) == b"{}"  # noqa: S301


def test_the_error_of_a_damaged_artifact_survives_a_trip_to_another_process() -> None:
    error = DamagedArtifactError("index/ab is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_storage_options_are_not_shown() -> None:
    options = {"secret": "hunter2"}
    assert "hunter2" not in repr(ArtifactStore("memory://x", options)) + repr(Folder("memory://x", options))
    with pytest.raises(ArtifactError) as caught:
        ArtifactStore("nosuch://x", options).lookup("index", KEY)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ["nosuch://bucket/x", "file in the way"])
def test_a_store_that_cannot_be_used_says_what_to_check(place: str, tmp_path: Path) -> None:
    (tmp_path / "file in the way").write_bytes(b"")
    uri = place if "://" in place else str(tmp_path / place)
    with pytest.raises(ArtifactError, match="check"):
        ArtifactStore(uri).publish("index", KEY, b"{}")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_keeps_its_odd_name(uri: str, name: str) -> None:
    folder = Folder(uri)
    folder.write(f"deep/er/{name}", b"content")
    assert folder.names("deep/er") == [name]
    assert folder.read(f"deep/er/{name}") == b"content"
    assert folder.exists(f"deep/er/{name}")


outside = st.text(st.sampled_from("ab./\\: ~#%\0é"), max_size=10)


@given(outside, st.booleans())
@settings(max_examples=200)
def test_whatever_the_path_a_file_lands_inside_or_is_refused(path: str, append: bool) -> None:
    with TemporaryDirectory() as top:
        folder = Folder(f"{top}/inside")
        write = folder.append if append else folder.write
        if is_inner_path(path):
            write(path, b"content")
            assert (Path(top) / "inside" / path).read_bytes() == b"content"
        else:
            with pytest.raises(ArtifactError, match="does not name a file inside"):
                write(path, b"content")
            assert list(Path(top).iterdir()) == []


@pytest.mark.parametrize("path", ["", "../x", "/etc/x", "a/../../x"])
def test_no_method_leaves_the_folder(uri: str, path: str) -> None:
    folder = Folder(uri)
    uses = (folder.read, folder.exists, folder.names, folder.delete_tree, lambda p: folder.write(p, b""))
    for use in uses:
        with pytest.raises(ArtifactError, match="does not name a file inside"):
            use(path)


def test_a_write_replaces_what_was_there(uri: str) -> None:
    folder = Folder(uri)
    folder.write("report.html", b"long, long ago")
    folder.write("report.html", b"now")
    assert folder.read("report.html") == b"now"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArtifactError):
        Folder(str(tmp_path)).write("taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_still_being_written_has_no_name_yet(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123").write_bytes(b"half a f")
    assert Folder(str(tmp_path)).names() == []


def test_appended_lines_follow_each_other(uri: str) -> None:
    folder = Folder(uri)
    for line in (b"1\n", b"2\n", b"3\n"):
        folder.append("logs/status.json", line)
    assert folder.read("logs/status.json") == b"1\n2\n3\n"


def test_names_are_those_of_files_and_folders_sorted(uri: str) -> None:
    folder = Folder(uri)
    for path in ("b.json", "auto_label1/x", "a.json", "auto_label0/y/z"):
        folder.write(path, b"")
    assert folder.names() == ["a.json", "auto_label0", "auto_label1", "b.json"]
    assert folder.names("auto_label0") == ["y"]
    assert folder.names("auto_label2") == []


def test_a_tree_is_deleted_with_all_that_is_in_it_and_nothing_else(uri: str) -> None:
    folder = Folder(uri)
    for path in ("auto_label1/a/b", "auto_label1/c", "auto_label10/d"):
        folder.write(path, b"")
    folder.delete_tree("auto_label1")
    folder.delete_tree("never there")
    assert folder.names() == ["auto_label10"]


@pytest.mark.parametrize("name", ["a[12]", "a*", "a?", "**"])
def test_letters_that_look_like_a_pattern_delete_nothing_else(uri: str, name: str) -> None:
    folder = Folder(uri)
    for path in ("a1/x", "a2/x", f"{name}/x"):
        folder.write(path, b"")
    folder.delete_tree(name)
    assert folder.names() == ["a1", "a2"]


def test_an_empty_folder_is_deleted(uri: str) -> None:
    filesystem, root = fsspec.url_to_fs(uri)
    filesystem.makedirs(f"{root}/a/b")
    Folder(uri).delete_tree("a")
    assert Folder(uri).names() == []


def test_a_file_that_is_not_there_is_missed(uri: str) -> None:
    assert not Folder(uri).exists("nothing")
    with pytest.raises(MissingFileError, match="'nothing' was not found"):
        Folder(uri).read("nothing")


def test_a_relative_folder_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Folder("results").write("a", b"content")
    assert (tmp_path / "results" / "a").read_bytes() == b"content"


def test_no_message_shows_the_password_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    uri = f"memory://me:hunter2@{uuid4()}"
    store = ArtifactStore(uri)
    ref = store.publish("index", KEY, b"{}")
    Folder(uri).write(files_of(uri)["data"], b"tampered with")
    assert store.lookup("index", KEY) is None
    told = [caplog.text]
    Folder(uri).write(files_of(uri)["manifest"], b'{"format": 99}')
    uses = [
        lambda: store.read(ref),
        lambda: store.lookup("index", KEY),
        lambda: Folder(uri).read("missing"),
        lambda: Folder(uri).read("../outside"),
        lambda: Folder("nosuch://me:hunter2@example.org").read("a"),
    ]
    for use in uses:
        with pytest.raises(ArtifactError) as caught:
            use()
        told.append(str(caught.value))
    assert [("hunter2" in message, "me:***@" in message) for message in told] == [(False, True)] * len(told)


def test_a_password_in_the_error_of_a_backend_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no answer from ftp://me:hunter2@example.org/a")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", fail)
    monkeypatch.setattr("tasks.storage.retrying.sleep", lambda _: None)
    with pytest.raises(ArtifactError, match=r"ConnectionError: no answer from ftp://me:\*\*\*@example\.org/a"):
        Folder("memory://").read("a")


@pytest.mark.parametrize(
    "others",
    [
        [
            "ROOT/a",
            "ROOT/a/",
            "ROOT/./b/../a",
            "file://ROOT/a",
            "local://ROOT/a",
            "ROOT/link",
            "simplecache::file://ROOT/a",
        ],
        ["memory://h/a", "memory:///h/a", "memory://h//b/../a/", "simplecache::memory://h/a"],
    ],
)
def test_a_folder_has_one_place_however_it_is_spelled(tmp_path: Path, others: list[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len({Folder(other.replace("ROOT", str(tmp_path))).place for other in others}) == 1


@pytest.mark.parametrize("root", ["/", "file:///", "memory://", "memory://a"])
def test_places_below_a_folder_begin_with_its_own(root: str) -> None:
    outer = Folder(root).place
    inner = Folder(f"{root.rstrip('/')}/a/b" if root.endswith("a") else f"{root}a/b").place
    assert inner[: len(outer)] == outer != inner


def test_the_same_path_on_two_backends_is_two_places(tmp_path: Path) -> None:
    assert Folder(str(tmp_path)).place != Folder(f"memory://{tmp_path}").place


@pytest.mark.parametrize("address", ["a\0b", "file:///a\0b"])
def test_a_folder_that_no_system_can_have_is_an_error_that_names_it(address: str) -> None:
    with pytest.raises(ArtifactError, match=r"^(file:///)?a.b cannot be used: ValueError: embedded null"):
        _ = Folder(address).place


@pytest.mark.parametrize(
    ("address", "folder", "name"),
    [
        ("a.json", ".", "a.json"),
        ("/a.json", "/", "a.json"),
        ("b/a.json", "b", "a.json"),
        ("memory://a.json", "memory://", "a.json"),
        ("memory:///a.json", "memory:///", "a.json"),
        ("file:///a.json", "file:///", "a.json"),
        ("s3://bucket/a.json", "s3://bucket", "a.json"),
        ("simplecache::memory://a.json", "simplecache::memory://", "a.json"),
        ("b/", "b", ""),
    ],
)
def test_an_address_of_a_file_is_its_folder_and_its_name(address: str, folder: str, name: str) -> None:
    assert folder_and_name(address, {}) == (Folder(folder), name)


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Folder("~nobodyx").write("a", b"content")
    assert (tmp_path / "~nobodyx" / "a").read_bytes() == b"content"


def test_a_manifest_of_which_any_byte_was_changed_is_damaged(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.publish("index", KEY, b"12345", {"new_labels": 1, "failures": 0}, answers=Answers("a" * 64, ("b" * 24,)))
    path = tmp_path / "index" / KEY[:2] / f"{KEY}.manifest.json"
    whole = path.read_bytes()
    found = []
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            found.append(ArtifactStore(str(tmp_path)).lookup("index", KEY))
        except ArtifactError:  # of a newer format, if it were so
            found.append(None)
    assert set(found) == {None}
