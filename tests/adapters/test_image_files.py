"""What is listed, under which key, and what the keys give access to."""

import logging
import os
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from PIL import Image

from tasks.domain.errors import ImageError, SpecError
from tasks.image_files import FetchError, ImageSource, Probe
from tasks.storage.retrying import PAUSES


def encoded(width: int = 8, height: int = 6, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(file, kind)
    return file.getvalue()


def put(root: str, *paths: str, data: bytes | None = None) -> None:
    for path in paths:
        with fsspec.open(f"{root}/{path}", "wb", auto_mkdir=True) as file:
            file.write(encoded() if data is None else data)


def keys_of(*roots: str) -> list[str]:
    return [file.key for file in ImageSource(roots).list_images()]


@pytest.fixture(params=["path", "file URL", "memory URL"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "my [images] %20"
    memory = f"memory://{uuid4()}/my [images] %20"
    yield {"path": str(folder), "file URL": f"file://{folder}", "memory URL": memory}[request.param]
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("paths", [("b.png", "a/z.png", "a.png"), ("a.png", "b.png", "a/z.png")])
def test_the_listing_does_not_depend_on_the_order_in_which_files_came(root: str, paths: tuple[str, ...]) -> None:
    put(root, *paths)
    assert keys_of(root) == ["a.png", "a/z.png", "b.png"]


def test_d32_folders_are_searched_all_the_way_down_whatever_their_names(root: str) -> None:
    put(root, "1.jpg", "a/[b]/2.jpg", "a/[b]/c#/%20/d/e/3.jpg")
    assert keys_of(root) == ["1.jpg", "a/[b]/2.jpg", "a/[b]/c#/%20/d/e/3.jpg"]


def test_d32_every_suffix_of_an_image_is_listed_in_any_case(root: str) -> None:
    names = ["a.jpg", "b.JPEG", "c.Png", "d.bmp", "e.webp", "f.tif", "g.TIFF", "h.gif", "i.JpG"]
    put(root, *names, "notes.txt", "jpg", "k.jpg.json")
    assert keys_of(root) == names


def test_d7_files_of_one_name_in_two_folders_are_two_images(root: str) -> None:
    put(root, "a/1.png", data=encoded(8, 6))
    put(root, "b/1.png", data=encoded(3, 2))
    found = dict(ImageSource((root,)).probe_ahead(["a/1.png", "b/1.png"], workers=2))
    assert [(probe.width, probe.height) for probe in found.values() if isinstance(probe, Probe)] == [(8, 6), (3, 2)]


def test_d8_an_image_in_a_sub_folder_is_read_by_its_key(root: str) -> None:
    put(root, "x.png", data=b"another image of this name")
    put(root, "sub/x.png", data=b"in the sub-folder")
    assert ImageSource((root,)).read("sub/x.png") == b"in the sub-folder"


def test_two_roots_of_one_name_are_told_apart_by_the_folders_above(root: str) -> None:
    put(f"{root}/left/images", "1.png", data=b"left")
    put(f"{root}/right/images", "1.png", data=b"right")
    source = ImageSource((f"{root}/left/images", f"{root}/right/images"))
    assert [file.key for file in source.list_images()] == ["left/images/1.png", "right/images/1.png"]
    assert source.read("right/images/1.png") == b"right"


def test_a_local_root_and_a_bucket_are_read_side_by_side(tmp_path: Path) -> None:
    bucket = f"memory://{uuid4()}/train"
    put(str(tmp_path / "val"), "1.png", data=b"local")
    put(bucket, "1.png", data=b"remote")
    source = ImageSource((str(tmp_path / "val"), bucket))
    assert [(key, data) for key, data in source.read_ahead(["train/1.png", "val/1.png"], workers=2)] == [
        ("train/1.png", b"remote"),
        ("val/1.png", b"local"),
    ]


def test_a_root_inside_another_is_refused(root: str) -> None:
    put(root, "a/1.png")
    with pytest.raises(SpecError, match="labelled twice"):
        keys_of(root, f"{root}/a")


def test_a_root_that_is_not_there_is_an_error_of_the_spec(root: str) -> None:
    with pytest.raises(SpecError, match="check image_dir"):
        keys_of(f"{root}/nowhere")


def test_a_root_that_is_a_file_is_an_error_of_the_spec(root: str) -> None:
    put(root, "1.png")
    with pytest.raises(SpecError, match="image_dir"):
        keys_of(f"{root}/1.png")


def test_a_root_without_images_is_an_error_of_the_spec(root: str) -> None:
    put(root, "notes.txt")
    with pytest.raises(SpecError, match="holds no images"):
        keys_of(root)


def test_a_root_that_no_backend_knows_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError, match=r"nosuch.*storage_options"):
        keys_of("nosuch://bucket/images")


def test_storage_options_are_not_shown() -> None:
    source = ImageSource(("nosuch://bucket",), {"secret": "hunter2"})
    with pytest.raises(SpecError) as caught:
        next(source.list_images())
    assert "hunter2" not in repr(source) + str(caught.value)


def test_the_version_of_a_file_follows_its_content(root: str) -> None:
    put(root, "1.png", "2.png")
    before = {file.key: file.version for file in ImageSource((root,)).list_images()}
    put(root, "1.png", data=encoded(9, 9))
    after = {file.key: file.version for file in ImageSource((root,)).list_images()}
    assert (after["1.png"] != before["1.png"], after["2.png"] == before["2.png"]) == (True, True)


def test_a_file_of_the_same_size_and_time_of_modification_is_another_version(tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    image.write_bytes(b"one")
    os.utime(image, ns=(0, 0))
    [before] = ImageSource((str(tmp_path),)).list_images()
    image.write_bytes(b"two")
    os.utime(image, ns=(0, 0))
    [after] = ImageSource((str(tmp_path),)).list_images()
    assert after.version != before.version


FOREIGN = [
    "../secret.png",
    "a/../../secret.png",
    "/etc/hostname",
    "C:\\x.png",
    "C:/x.png",
    "..\\secret.png",
    "",
    "a//b",
]


@pytest.mark.parametrize("key", FOREIGN)
def test_a_key_never_leaves_the_image_root(root: str, key: str) -> None:
    put(root, "secret.png", "inside/1.png")
    source = ImageSource((f"{root}/inside",))
    with pytest.raises(ImageError, match="names no image under"):
        source.read(key)


def test_a_key_of_another_root_is_refused(root: str) -> None:
    put(root, "a/1.png", "b/1.png", "c/1.png")
    with pytest.raises(ImageError, match="names no image under"):
        ImageSource((f"{root}/a", f"{root}/b")).read("c/1.png")


def test_a_key_does_not_leave_the_root_through_a_link_to_a_folder(tmp_path: Path) -> None:
    put(str(tmp_path), "outside/secret.png", "inside/1.png")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ImageError, match="through a link"):
        ImageSource((str(tmp_path / "inside"),)).read("link/secret.png")


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    put(str(tmp_path), "real/1.png", data=b"content")
    (tmp_path / "link").symlink_to("real")
    source = ImageSource((str(tmp_path / "link"),))
    assert [source.read(file.key) for file in source.list_images()] == [b"content"]


def test_a_link_to_a_file_outside_is_followed(tmp_path: Path) -> None:
    put(str(tmp_path), "store/ab12.png", "data/other.png", data=b"content")
    (tmp_path / "data" / "1.png").symlink_to("../store/ab12.png")
    assert ImageSource((str(tmp_path / "data"),)).read("1.png") == b"content"


def test_a_link_to_a_folder_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(str(tmp_path), "data/1.png", "elsewhere/2.png")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "round").symlink_to(".")
    assert keys_of(str(tmp_path / "data")) == ["1.png"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "not searched: 2, such as 'more'" in caplog.text


def test_a_folder_named_like_an_image_is_reported_and_searched(tmp_path: Path) -> None:
    put(str(tmp_path), "tiles.jpg/1.png")
    listed = ImageSource((str(tmp_path),)).list_images()
    assert [(file.key, file.reason) for file in listed] == [
        ("tiles.jpg", "is a folder, not an image"),
        ("tiles.jpg/1.png", None),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_cannot_be_searched_is_reported(tmp_path: Path) -> None:
    put(str(tmp_path), "1.png", "locked/2.png")
    (tmp_path / "locked").chmod(0)
    listed = {file.key: file.reason for file in ImageSource((str(tmp_path),)).list_images()}
    (tmp_path / "locked").chmod(0o700)
    assert listed == {"1.png": None, "locked/": "is a folder that cannot be searched: Permission denied"}


def test_an_object_whose_name_is_no_path_is_reported(root: str) -> None:
    if not root.startswith("memory"):
        pytest.skip("a file system has no such names")
    put(root, "1.png", "/2.png")
    assert [file.reason is None for file in ImageSource((root,)).list_images()] == [False, True]


def test_a_file_that_went_away_after_the_listing_says_so(root: str) -> None:
    put(root, "1.png", "2.png")
    source = ImageSource((root,))
    keys = [file.key for file in source.list_images()]
    file = fsspec.open(f"{root}/1.png")
    file.fs.rm_file(file.path)
    gone, there = source.read_ahead(keys, workers=1)
    assert isinstance(gone[1], FetchError)
    assert "moved or deleted" in str(gone[1])
    assert there == ("2.png", encoded())


def failing(monkeypatch: pytest.MonkeyPatch, root: str, *errors: Exception) -> list[str]:
    """The backend of `root` raises these errors before it gives a file; returns the list of what it is asked for."""
    filesystem = type(fsspec.open(f"{root}/1.png").fs)
    cat_file, asked = filesystem.cat_file, list[str]()

    def failing_at_first(self: object, path: str, **options: object) -> bytes:
        asked.append(path)
        if len(asked) <= len(errors):
            raise errors[len(asked) - 1]
        data: bytes = cat_file(self, path, **options)
        return data

    monkeypatch.setattr(filesystem, "cat_file", failing_at_first)
    return asked


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes any time."""
    made: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", made.append)
    return made


@pytest.fixture
def bucket() -> Iterator[str]:
    yield f"memory://{uuid4()}"
    fsspec.filesystem("memory").store.clear()


def test_a_remote_file_that_fails_for_a_while_is_asked_for_again_after_pauses(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    put(bucket, "1.png", data=b"content")
    failing(monkeypatch, bucket, TimeoutError("busy"), ConnectionError("reset"))
    assert (ImageSource((bucket,)).read("1.png"), len(pauses)) == (b"content", 2)


def test_a_remote_file_that_fails_at_every_try_cannot_be_read(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    put(bucket, "1.png")
    asked = failing(monkeypatch, bucket, *[TimeoutError("busy")] * 100)
    with pytest.raises(FetchError, match="cannot be read: TimeoutError: busy"):
        ImageSource((bucket,)).read("1.png")
    assert len(asked) == len(PAUSES) + 1


@pytest.mark.parametrize("error", [FileNotFoundError("1.png"), PermissionError("1.png")])
def test_what_no_pause_mends_is_asked_for_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: Exception
) -> None:
    put(bucket, "1.png")
    asked = failing(monkeypatch, bucket, error)
    with pytest.raises(FetchError):
        ImageSource((bucket,)).read("1.png")
    assert (len(asked), pauses) == (1, [])


def test_a_local_file_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    put(str(tmp_path), "1.png")

    def worn_out(self: Path) -> bytes:
        raise ConnectionResetError("worn out")

    monkeypatch.setattr(Path, "read_bytes", worn_out)
    with pytest.raises(FetchError, match="worn out"):
        ImageSource((str(tmp_path),)).read("1.png")
    assert pauses == []


def test_no_message_shows_the_password_of_a_url(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    root = f"memory://me:hunter2@{uuid4()}"
    failing(monkeypatch, root, *[ConnectionError("no answer from ftp://me:hunter2@example.org/1.png")] * 100)
    uses = [
        lambda: next(ImageSource(("nosuch://me:hunter2@example.org",)).list_images()),
        lambda: next(ImageSource((root, root)).list_images()),
        lambda: next(ImageSource((root,)).list_images()),
        lambda: ImageSource((root,)).read("../1.png"),
        lambda: ImageSource((root,)).read("1.png"),
    ]
    told = []
    for use in uses:
        with pytest.raises((SpecError, ImageError)) as caught:
            use()
        told.append(str(caught.value))
    assert [("hunter2" in message, "me:***@" in message) for message in told] == [(False, True)] * len(uses)


def test_no_message_shows_an_option_that_a_backend_tells(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    failing(monkeypatch, bucket, *[ConnectionError("nobody knows hunter2hunter2")] * 100)
    with pytest.raises(FetchError, match=r"nobody knows \*\*\*"):
        ImageSource((bucket,), {"token": "hunter2hunter2"}).read("1.png")


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_read_ahead_keeps_the_order_of_the_keys(root: str, workers: int) -> None:
    keys = [f"{number}.png" for number in (3, 1, 2, 0, 9, 4, 8, 7, 5, 6)]
    for key in keys:
        put(root, key, data=key.encode())
    found = list(ImageSource((root,)).read_ahead([*keys, *keys], workers))
    assert found == [(key, key.encode()) for key in [*keys, *keys]]


def test_read_ahead_reads_no_more_than_two_files_a_worker_ahead(root: str) -> None:
    put(root, "1.png")
    asked = []

    def keys() -> Iterator[str]:
        for number in range(100):
            asked.append(number)
            yield "1.png"

    reading = ImageSource((root,)).read_ahead(keys(), workers=3)
    next(reading)
    assert len(asked) == 6
    reading.close()


def test_a_source_works_after_a_trip_to_another_process(root: str) -> None:
    put(root, "1.png", data=b"content")
    source = ImageSource((root,))
    assert len(list(source.list_images())) == 1
    assert pickle.loads(pickle.dumps(source)).read("1.png") == b"content"  # noqa: S301


def test_in_a_long_outage_images_are_given_up_without_being_asked_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    put(bucket, "1.png")
    asked = failing(monkeypatch, bucket, *[ConnectionError("away")] * 100)
    monkeypatch.setattr("tasks.image_sources.outage.OUTAGE_SECONDS", 0.0)
    found = list(ImageSource((bucket,)).read_ahead(["1.png"] * 20, workers=1))
    assert {type(data) for _, data in found} == {FetchError}
    assert "has not answered for minutes" in str(found[-1][1])
    assert len(asked) == len(PAUSES) + 1


def test_a_server_that_refuses_images_is_not_away(
    bucket: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    put(bucket, "1.png", data=b"content")
    failing(monkeypatch, bucket, *[ConnectionError("away")] * (len(PAUSES) + 1), PermissionError("1.png"))
    source = ImageSource((bucket,))
    found = [data for _, data in source.read_ahead(["1.png"] * 2, workers=1)]
    monkeypatch.setattr("tasks.image_sources.outage.OUTAGE_SECONDS", 0.0)
    assert ([str(data) for data in found if "away" in str(data)], source.read("1.png")) == ([str(found[0])], b"content")


def test_images_in_a_cache_of_a_bucket_are_listed_and_read(bucket: str) -> None:
    put(bucket, "a/1.png", data=b"content")
    source = ImageSource((f"simplecache::{bucket}",))
    assert [(file.key, source.read(file.key)) for file in source.list_images()] == [("a/1.png", b"content")]
