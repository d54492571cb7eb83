"""The demo's scenes: what is drawn, and what the demo never deletes."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from flows.cli import run
from flows.demo import CLASS_TRUTH, FILES, IMAGES, PROMPTS, demo_spec, write_scenes
from tasks.domain.errors import SpecError
from tasks.image_files import ImageSource
from tasks.storage.folder import Folder


@pytest.fixture(params=["path", "memory URL"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    yield Folder({"path": str(tmp_path / "proj"), "memory URL": f"memory://{uuid4()}/proj"}[request.param])
    fsspec.filesystem("memory").store.clear()


def refused(results: Folder) -> str:
    with pytest.raises(SpecError, match="set another results_dir") as caught:
        write_scenes(results, 1, seed=0)
    return str(caught.value)


def test_the_scenes_of_an_earlier_demo_are_replaced(results: Folder) -> None:
    write_scenes(results, 3, seed=0)
    before = results.read(CLASS_TRUTH)
    write_scenes(results, 2, seed=2)
    assert results.names(IMAGES) == ["scene_00002.png", "scene_00003.png"]
    assert results.read(CLASS_TRUTH) != before


def test_a_folder_scenes_that_no_demo_made_is_refused_and_left_as_it_is(results: Folder) -> None:
    results.write(f"{IMAGES}/mine.png", b"mine")
    assert "lacks scenes/ground_truth.json" in refused(results)
    assert (results.names("scenes"), results.names(IMAGES)) == (["images"], ["mine.png"])


@pytest.mark.parametrize("mine", ["scenes/notes.txt", "scenes/more/1.png", f"{IMAGES}/mine.png"])
def test_a_file_beside_those_of_an_earlier_demo_is_refused_and_nothing_is_deleted(results: Folder, mine: str) -> None:
    write_scenes(results, 2, seed=0)
    results.write(mine, b"mine")
    assert f"holds {'/'.join(mine.split('/')[: 2 + mine.startswith(IMAGES)])}, which no demo" in refused(results)
    assert results.names(IMAGES)[-2:] == ["scene_00000.png", "scene_00001.png"]
    assert results.read(mine) == b"mine"


@pytest.mark.parametrize("prompts", [b"", b"{", b'{"file_name": "mine.png", "caption": "", "noun_chunks": []}\n'])
def test_files_of_the_same_names_that_no_demo_wrote_are_refused(results: Folder, prompts: bytes) -> None:
    for path, data in ((CLASS_TRUTH, b"{}"), (PROMPTS, prompts)):
        results.write(path, data)
    assert "holds scenes/ground_truth.json, which no demo" in refused(results)
    assert results.read(PROMPTS) == prompts


def test_a_demo_that_was_interrupted_while_it_wrote_pictures_is_drawn_anew(results: Folder) -> None:
    write_scenes(results, 3, seed=0)
    results.delete_tree(f"{IMAGES}/scene_00002.png")
    write_scenes(results, 3, seed=0)
    assert len(results.names(IMAGES)) == 3
    assert all(results.exists(path) for path in FILES)


def test_the_command_ends_with_the_status_of_what_users_can_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "proj" / "scenes" / "mine.blend"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert run(["demo", "--scenes", "1", f"results_dir={tmp_path / 'proj'}"]) == 2
    assert "move scenes away" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"


def test_the_images_of_the_demo_are_found_although_they_lie_in_its_results(tmp_path: Path) -> None:
    spec = demo_spec([f"results_dir={tmp_path}"], grounding=False)
    write_scenes(Folder(spec.results_dir), 2, seed=0)
    source = ImageSource(spec.image_roots, excluded=(spec.results_dir, f"{spec.results_dir}/cache"))
    assert [file.key for file in source.list_images()] == ["scene_00000.png", "scene_00001.png"]
