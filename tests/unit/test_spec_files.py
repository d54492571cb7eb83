"""Spec files by path and by name, and the specs that ship."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from flows.spec_files import read_spec, shipped_specs
from tasks.domain.errors import SpecError
from tasks.domain.scenes import SHAPES

MINE = """
autolabel_type: grounding_dino
results_dir: mine
grounding_dino:
  checkpoint: fake
  dataset: {image_dir: images, class_names: [car]}
"""
FILLED_IN = {
    "box2seg": ["results_dir=r", "mal.inference.ann_path=a", "mal.inference.img_dir=i"],
    "demo": [],
    "text2box": ["results_dir=r", "grounding_dino.dataset.image_dir=i"],
    "text2box_grounding": [
        "results_dir=r",
        "grounding_dino.dataset.image_dir=i",
        "grounding_dino.dataset.noun_chunk_path=n",
    ],
    "text2seg": ["results_dir=r", "grounding_dino.dataset.image_dir=i"],
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_path_is_relative_to_where_the_command_runs() -> None:
    Path("specs").mkdir()
    Path("specs/mine.yaml").write_text(MINE)
    assert read_spec("specs/mine.yaml").results_dir == "mine"


def test_d24_a_file_without_a_folder_part_is_the_users_own_and_not_one_that_ships() -> None:
    Path("text2box.yaml").write_text(MINE)
    assert read_spec("text2box.yaml").results_dir == "mine"


def test_d24_a_file_that_is_missing_is_not_replaced_by_one_that_ships() -> None:
    with pytest.raises(SpecError, match=r"text2box\.yaml does not exist .*Did you mean `-e text2box`, which ships\?"):
        read_spec("text2box.yaml")


def test_a_bare_name_never_shadows_a_file() -> None:
    Path("demo").write_text(MINE)
    assert read_spec("demo").results_dir == "mine"


def test_a_bare_name_that_is_no_file_is_a_spec_that_ships() -> None:
    Path("demo").mkdir()
    assert read_spec("demo").results_dir == "autolabel-demo"


def test_overrides_apply_to_a_spec_that_ships() -> None:
    assert read_spec("demo", ["results_dir=elsewhere"]).results_dir == "elsewhere"


@pytest.mark.parametrize("name", ["nothing", "demo.yml", "./demo", "specs/demo", "", "."])
def test_a_spec_that_is_not_there_is_an_error_that_lists_those_that_ship(name: str) -> None:
    with pytest.raises(SpecError, match=r"Specs that ship: box2seg, demo, text2box, text2box_grounding, text2seg\."):
        read_spec(name)


def test_a_file_that_is_not_text_is_an_error_that_says_so() -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"mine\.yaml cannot be read: it is not UTF-8 text"):
        read_spec("mine.yaml")


def test_a_byte_order_mark_is_no_part_of_a_spec() -> None:
    Path("mine.yaml").write_text(MINE, encoding="utf-8-sig")
    assert read_spec("mine.yaml").results_dir == "mine"


def test_every_spec_that_ships_is_known_to_these_tests() -> None:
    assert list(shipped_specs()) == list(FILLED_IN)


@pytest.mark.parametrize("name", FILLED_IN)
def test_a_spec_that_ships_is_complete_once_it_is_filled_in(name: str) -> None:
    assert read_spec(name, FILLED_IN[name]).unused_keys() == []


@pytest.mark.parametrize("name", FILLED_IN)
def test_a_spec_that_ships_says_what_is_to_be_filled_in(name: str) -> None:
    asked = re.findall(r"^ *([a-z_]+): \?\?\?", shipped_specs()[name].read_text(encoding="utf-8"), re.MULTILINE)
    assert asked == [override.partition("=")[0].rpartition(".")[2] for override in FILLED_IN[name]]


@pytest.mark.parametrize("name", FILLED_IN)
def test_a_spec_that_ships_follows_the_schema_that_editors_check_it_with(name: str) -> None:
    path = shipped_specs()[name]
    schema = json.loads((path.parent / "schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


def test_the_demo_asks_for_the_shapes_that_are_drawn() -> None:
    assert read_spec("demo").grounding_dino.dataset.class_names == SHAPES
