"""Files are listed one after the other in the order of their keys, however they lie in folders and roots."""

import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import SpecError
from tasks.image_files import ImageSource
from tasks.image_sources.image_roots import ListedFile, walk

# Beside letters what is sorted before and behind a slash, and behind all characters of two bytes in UTF-16.
NAMES = st.text("ab !-.0é\uffff\U00010000", min_size=1, max_size=3).filter(lambda name: not name.startswith("."))
PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)


@given(PATHS)
def test_local_files_come_in_the_order_of_their_keys(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        expected = set()
        for path in paths:
            file = Path(root, f"{path}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            expected.add(f"{path}.png")
        assert [file.key for file in ImageSource((root,)).list_images()] == sorted(expected)


@given(PATHS)
def test_objects_come_in_the_order_of_their_keys(paths: list[str]) -> None:
    root = f"memory://{uuid4()}"
    filesystem = fsspec.filesystem("memory")
    for path in paths:
        filesystem.pipe_file(f"{root}/{path}.png", b"")
    listed = [file.key for file in ImageSource((root,)).list_images()]
    filesystem.store.clear()
    assert listed == sorted({f"{path}.png" for path in paths})


@given(PATHS)
def test_a_walk_through_sorted_folders_gives_sorted_keys(paths: list[str]) -> None:
    tree: dict[str, set[str]] = {"": set()}
    for path in paths:
        *folders, name = path.split("/")
        above = ""
        for folder in folders:
            tree[above].add(f"{above}{folder}/")
            above += f"{folder}/"
            tree.setdefault(above, set())
        tree[above].add(f"{above}{name}")

    def scan(folder: str) -> Iterator[ListedFile | str]:
        for entry in sorted(tree[folder]):
            yield entry if entry.endswith("/") else ListedFile(entry, "")

    assert [file.key for file in walk(scan)] == sorted(set(paths))


@given(PATHS, PATHS, st.sampled_from(["a", "a ", "a-b", "b"]))
def test_the_keys_of_several_roots_come_in_one_order(first: list[str], second: list[str], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        roots = {"a0": first, name: second}
        for root, paths in roots.items():
            for path in paths:
                file = Path(folder, root, f"{path}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        source = ImageSource((f"{folder}/{name}", f"{folder}/a0"))
        expected = {f"{root}/{path}.png" for root, paths in roots.items() for path in paths}
        assert [file.key for file in source.list_images()] == sorted(expected)


def test_names_that_are_not_utf8_have_their_place_by_what_is_shown_of_them(tmp_path: Path) -> None:
    root = bytes(tmp_path)
    for name in (b"\xe9.png", b"Z.png", b"a.png", b"\xff/1.png"):
        path = Path((root + b"/" + name).decode("utf-8", "surrogateescape"))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listed = [(file.key, file.reason is None) for file in ImageSource((str(tmp_path),)).list_images()]
    assert listed == [("Z.png", True), ("\\xe9.png", False), ("\\xff/1.png", False), ("a.png", True)]


def test_files_are_listed_as_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    listing = ImageSource((str(tmp_path),)).list_images()
    assert next(listing).key == "a/1.png"
    (tmp_path / "b" / "3.png").touch()
    assert [file.key for file in listing] == ["b/2.png", "b/3.png"]


def test_a_root_without_images_is_told_before_the_first_file_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1.png").touch()
    listing = ImageSource((str(tmp_path / "a"), str(tmp_path / "b"))).list_images()
    with pytest.raises(SpecError, match=r"b holds no images"):
        next(listing)


def test_a_folder_that_vanishes_while_it_is_searched_is_reported_in_its_place(tmp_path: Path) -> None:
    for name in ("a.png", "b/2.png", "b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = ImageSource((str(tmp_path),)).list_images()
    first = next(listing)
    (tmp_path / "b" / "2.png").unlink()
    (tmp_path / "b").rmdir()
    listed = [first, *listing]
    assert [file.key for file in listed] == sorted(file.key for file in listed) == ["a.png", "b.png", "b/", "c.png"]
    assert [file.reason for file in listed if file.key == "b/"] == [
        "is a folder that cannot be searched: No such file or directory"
    ]


def test_a_listing_keeps_no_files(tmp_path: Path) -> None:
    for number in range(4000):
        path = tmp_path / f"{number % 40}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    source = ImageSource((str(tmp_path),))
    assert next(source.list_images()).key == "0/0.png"  # what is made once, is made
    tracemalloc.start()
    assert sum(1 for _ in source.list_images()) == 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * sys.getsizeof("0/0.png")


def addresses(*roots: str, **options: object) -> tuple[str, ...]:
    return ImageSource(roots, options).addresses


def test_an_address_is_where_the_images_really_are(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    assert addresses(str(tmp_path / "link")) == addresses(f"file://{tmp_path}/images/") == (f" file:{tmp_path}/images",)


def test_addresses_tell_what_the_keys_begin_with(tmp_path: Path) -> None:
    roots = (str(tmp_path / "a" / "x"), str(tmp_path / "b" / "x"))
    assert addresses(*roots) == (f"a/x/ file:{roots[0]}", f"b/x/ file:{roots[1]}")


S3 = {"key": "hunter2", "secret": "hunter2"}
SFTP = {"username": "me", "password": "hunter2"}
PLACES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "memory": ("memory://bucket/images", {}),
    "S3": ("s3://bucket/images", S3),
    "S3 elsewhere": ("s3://bucket/images", {**S3, "endpoint_url": "http://minio:9000"}),
    "S3 elsewhere, by the client": ("s3://bucket/images", {**S3, "client_kwargs": {"endpoint_url": "http://b2:1"}}),
    "HTTP": ("http://me:hunter2@host/images", {}),
    "HTTP, another port": ("http://host:8080/images", {}),
    "HTTPS": ("https://host/images", {}),
    "SFTP": ("sftp://host/images", SFTP),
    "SFTP, another port": ("sftp://host:2222/images", SFTP),
    "SFTP, the port as an option": ("sftp://host/images", {**SFTP, "port": 2223}),
    "SFTP, another user": ("sftp://you:hunter2@host/images", {}),
    "an archive": ("zip://images::memory://a.zip", {}),
    "another archive": ("zip://images::memory://b.zip", {}),
}


@pytest.fixture
def _archives() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    for name in ("a.zip", "b.zip"):
        memory.pipe_file(name, b"PK\x05\x06" + bytes(18))
    yield
    memory.store.clear()


@pytest.mark.usefixtures("_archives")
def test_two_places_have_two_addresses_and_none_has_a_secret_in_it() -> None:
    found = {name: addresses(root, **options) for name, (root, options) in PLACES.items()}
    assert len(set(found.values())) == len(PLACES)
    assert "hunter2" not in repr(found)


def test_one_place_has_one_address_however_it_is_written() -> None:
    assert addresses("http://HOST:80/a%20b/") == addresses("http://me:hunter2@host/a b")
    assert addresses("https://host:443/images") == addresses("https://host/images")
    assert addresses("sftp://host:22/images") == addresses("sftp://host/images/")


def test_a_cache_of_images_has_the_address_of_the_images() -> None:
    assert addresses("simplecache::memory://bucket/images") == addresses("memory://bucket/images")


@pytest.mark.parametrize("login", ["me:hunter2@", "hunter2@"])
def test_the_representation_of_a_source_shows_no_secret(login: str) -> None:
    source = ImageSource((f"https://{login}host/images?token=hunter2",), {"password": "hunter2"})
    assert ("***@host/images" in repr(source), "hunter2" in repr(source)) == (True, False)
