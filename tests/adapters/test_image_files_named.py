"""Images that a file names: only those are looked at, and none of them outside the root."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from tasks.domain.errors import SpecError
from tasks.image_files import ImageSource
from tasks.storage.folder import Folder


@pytest.fixture(params=["path", "memory URL"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield {"path": str(tmp_path / "images"), "memory URL": f"memory://{uuid4()}/images"}[request.param]
    fsspec.filesystem("memory").store.clear()


def reasons(source: ImageSource, *keys: str) -> dict[str, str | None]:
    return {file.key: file.reason for file in source.list_named(keys)}


def test_named_images_are_listed_once_sorted_and_no_others(root):
    for name in ("b.png", "sub/a.jpg", "other.png", "no-suffix"):
        Folder(root).write(name, b"x")
    listed = ImageSource((root,)).list_named(["no-suffix", "sub/a.jpg", "b.png", "b.png"])
    assert [(file.key, file.reason) for file in listed] == [("b.png", None), ("no-suffix", None), ("sub/a.jpg", None)]


def test_the_version_of_a_named_image_is_that_of_a_listed_one(root):
    Folder(root).write("sub/a.png", b"x")
    source = ImageSource((root,))
    assert source.list_named(["sub/a.png"]) == list(source.list_images())


def test_what_is_not_there_is_listed_with_the_reason(root):
    Folder(root).write("a.png", b"x")
    assert reasons(ImageSource((root,)), "b.png", "no/b.png", "a.png/b.png")["b.png"] == "is not there"
    assert None not in reasons(ImageSource((root,)), "b.png", "no/b.png", "a.png/b.png").values()


def test_a_remote_root_that_is_not_there_is_one_without_images():
    assert reasons(ImageSource((f"memory://{uuid4()}/images",)), "a.png") == {"a.png": "is not there"}


@pytest.mark.parametrize("key", ["./a.png", "sub/../a.png"])
def test_a_name_with_dots_to_resolve_is_told_to_lose_them(root, key):
    Folder(root).write("a.png", b"x")
    (reason,) = reasons(ImageSource((root,)), key).values()
    assert str(reason).endswith("expected one relative to it, without '.' or '..'")


def test_a_root_that_no_backend_opens_is_called_the_image_folder():
    with pytest.raises(SpecError, match="check the image folder and storage_options"):
        ImageSource(("nosuch://images",)).list_named(["a.png"])


@pytest.mark.parametrize(
    "key", ["../a.png", "/etc/passwd", "sub/../../a.png", "C:\\a.png", "", "a//b.png", "nul\0.png"]
)
def test_a_name_that_leaves_the_root_is_refused_with_the_reason(root, key):
    Folder(root).write("a.png", b"x")
    (reason,) = reasons(ImageSource((root,)), key).values()
    assert "leaves the image folder" in str(reason)


def test_with_several_roots_the_names_begin_with_the_folder(tmp_path):
    for name in ("one/a.png", "two/a.png"):
        Folder(str(tmp_path)).write(name, b"x")
    source = ImageSource((str(tmp_path / "one"), str(tmp_path / "two")))
    found = reasons(source, "one/a.png", "two/a.png", "three/a.png")
    assert [reason is None for reason in found.values()] == [True, False, True]


def test_a_folder_is_no_image_and_a_pipe_is_not_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    found = reasons(ImageSource((str(tmp_path),)), "folder.png", "pipe.png")
    assert found["folder.png"] == "is a folder, not an image"
    assert "was not opened" in str(found["pipe.png"])


def test_a_link_to_a_folder_does_not_lead_out_of_the_root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "images" / "out").symlink_to(tmp_path)
    (reason,) = reasons(ImageSource((str(tmp_path / "images"),)), "out/secret.png").values()
    assert "leaves" in str(reason)
    assert "name the folder that the link leads to" in str(reason)
    assert "image_dir" not in str(reason)


def test_a_name_that_this_file_system_cannot_have_is_told(tmp_path):
    (reason,) = reasons(ImageSource((str(tmp_path),)), "n" * 300).values()
    assert "cannot be looked at" in str(reason)


def test_a_root_that_is_not_there_is_a_mistake_in_the_spec(tmp_path):
    with pytest.raises(SpecError, match=r"no-folder is not a folder; check img_dir"):
        ImageSource((str(tmp_path / "no-folder"),)).list_named(["a.png"])
