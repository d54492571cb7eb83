"""Which folders below an image root are not searched: hidden ones, and those of earlier runs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from tasks.domain.errors import SpecError
from tasks.image_files import ImageSource


@pytest.fixture(params=["path", "file URL", "memory URL"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    memory = f"memory://{uuid4()}/images"
    yield {"path": f"{tmp_path}/images", "file URL": f"file://{tmp_path}/images", "memory URL": memory}[request.param]
    fsspec.filesystem("memory").store.clear()


def put(root: str, *paths: str) -> None:
    for path in paths:
        with fsspec.open(f"{root}/{path}", "wb", auto_mkdir=True) as file:
            file.write(path.encode())


def keys_of(*roots: str, excluded: tuple[str, ...] = ()) -> list[str]:
    return [file.key for file in ImageSource(roots, excluded=excluded).list_images()]


def test_results_below_an_image_root_are_not_searched(root: str) -> None:
    put(root, "1.png", "out/images_annotated/1.png", "out/more/2.png", "a/out/3.png", "outer/4.png")
    assert keys_of(root, excluded=(f"{root}/out",)) == ["1.png", "a/out/3.png", "outer/4.png"]


def test_results_deep_below_an_image_root_and_a_cache_beside_them_are_not_searched(root: str) -> None:
    put(root, "1.png", "a/b/out/1.png", "a/b/2.png", "kept/3.png")
    assert keys_of(root, excluded=(f"{root}/a/b/out/", f"{root}/kept")) == ["1.png", "a/b/2.png"]


def test_of_results_in_the_image_root_itself_what_runs_make_is_not_searched(root: str) -> None:
    ours = ["images_annotated/1.png", "auto_label0/images_annotated/1.png", "auto_label12/1.png", "cache/1.png"]
    theirs = ["1.png", "a/cache/1.png", "auto_label/1.png", "auto_labels1/1.png", "scenes/1.png"]
    put(root, *ours, *theirs)
    assert keys_of(root, excluded=(root, f"{root}/cache")) == theirs


def test_without_results_there_folders_of_these_names_are_searched(root: str) -> None:
    put(root, "cache/1.png", "images_annotated/1.png")
    assert keys_of(root, excluded=(f"{root}/../elsewhere",)) == ["cache/1.png", "images_annotated/1.png"]


def test_an_image_root_below_the_results_is_searched(root: str) -> None:
    put(root, "scenes/images/1.png", "scenes/images/cache/2.png")
    found = keys_of(f"{root}/scenes/images", excluded=(root, f"{root}/cache"))
    assert found == ["1.png", "cache/2.png"]


def test_results_in_one_of_several_roots_are_not_searched_there(root: str) -> None:
    put(root, "a/1.png", "a/out/1.png", "b/out/1.png")
    assert keys_of(f"{root}/a", f"{root}/b", excluded=(f"{root}/a/out",)) == ["a/1.png", "b/out/1.png"]


def test_results_are_known_through_links(tmp_path: Path) -> None:
    put(str(tmp_path), "images/1.png", "images/out/1.png")
    (tmp_path / "link").symlink_to("images")
    (tmp_path / "results").symlink_to("images/out")
    assert keys_of(str(tmp_path / "link"), excluded=(str(tmp_path / "results"),)) == ["1.png"]


def test_an_empty_address_excludes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(str(tmp_path), "images/1.png")
    monkeypatch.chdir(tmp_path / "images")
    assert keys_of(str(tmp_path), excluded=("",)) == ["images/1.png"]


@pytest.mark.parametrize("elsewhere", ["memory://elsewhere", "nosuch://bucket/out"])
def test_results_on_another_backend_exclude_nothing(tmp_path: Path, elsewhere: str) -> None:
    put(str(tmp_path), "1.png")
    assert keys_of(str(tmp_path), excluded=(elsewhere,)) == ["1.png"]


def test_hidden_folders_are_not_searched_and_hidden_files_are_files(root: str) -> None:
    put(root, ".hidden.png", "._1.png", "1.png", ".git/2.png", "a/.cache/b/3.png", ".jpg/4.png", "a/5.png")
    assert keys_of(root) == ["._1.png", ".hidden.png", "1.png", "a/5.png"]


def test_a_root_may_itself_be_hidden(root: str) -> None:
    put(f"{root}/.data", "1.png")
    assert keys_of(f"{root}/.data") == ["1.png"]


def test_how_many_folders_were_not_searched_is_said_in_one_line(root: str, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "1.png", "out/1.png", "out/a/2.png", ".git/3.png")
    with caplog.at_level(logging.INFO, "tasks.image_sources.image_roots"):
        keys_of(root, excluded=(f"{root}/out",))
    (record,) = caplog.records
    assert record.getMessage().endswith("hidden folders and results of earlier runs: 2, such as '.git'")


def test_a_root_with_nothing_but_results_says_so(root: str) -> None:
    put(root, "out/1.png")
    with pytest.raises(SpecError, match=r"holds no images .* outside hidden folders and the results of earlier runs"):
        keys_of(root, excluded=(f"{root}/out",))


@pytest.mark.parametrize("second", ["link", "link/inner"])
def test_a_folder_that_is_given_twice_through_a_link_is_refused(tmp_path: Path, second: str) -> None:
    put(str(tmp_path), "images/inner/1.png")
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(SpecError, match=f"{second} .*images: its images would be labelled twice"):
        keys_of(str(tmp_path / "images"), str(tmp_path / second))


def test_a_link_out_of_a_root_may_be_a_root_of_its_own(tmp_path: Path) -> None:
    put(str(tmp_path), "images/1.png", "elsewhere/2.png")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    assert keys_of(str(tmp_path / "images"), str(tmp_path / "images" / "more")) == ["images/1.png", "more/2.png"]
