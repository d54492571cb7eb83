"""What a run that makes boxes works with, and which inputs are refused because the run would delete them."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.run_inputs import inputs_of
from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec, validate_spec
from tasks.storage.folder import Folder


def spec(results: Path | str, **dataset: Any) -> ExperimentSpec:
    block = {"checkpoint": "fake", "dataset": {"image_dir": "images", **dataset}}
    return validate_spec({"autolabel_type": "grounding_dino", "results_dir": str(results), "grounding_dino": block})


@pytest.mark.parametrize("inside", ["images_annotated", "images_annotated/a", "auto_label0/images_annotated"])
@pytest.mark.parametrize("address", ["{}/results/{}", "file://{}/results/{}", "{}/x/../results//{}", "{}/linked/{}"])
def test_images_in_a_folder_that_the_run_deletes_are_refused(tmp_path: Path, inside: str, address: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "results")
    images = address.format(tmp_path, inside)
    name = inside.partition("/")[0]
    with pytest.raises(SpecError, match=rf"image_dir: found .*lies in {name} of results_dir, which the run deletes"):
        inputs_of(spec(tmp_path / "results", image_dir=["elsewhere", images], class_names=["cat"]))


def test_phrases_in_a_folder_that_the_run_deletes_are_refused() -> None:
    with pytest.raises(SpecError, match=r"noun_chunk_path: found .*lies in images_annotated of results_dir"):
        inputs_of(spec("memory://out/", noun_chunk_path="memory:///out/images_annotated/prompts.jsonl"))


@pytest.mark.parametrize("beside", [".", "images_annotated_by_hand", "../images_annotated", "mine/images_annotated"])
def test_images_beside_what_the_run_deletes_are_labelled(tmp_path: Path, beside: str) -> None:
    images = f"{tmp_path}/results/{beside}"
    assert inputs_of(spec(tmp_path / "results", image_dir=images, class_names=["cat"])).place.source.roots == (images,)


def test_phrases_directly_below_a_protocol_are_read() -> None:
    line = {"file_name": "a.png", "caption": "a cat", "noun_chunks": ["a cat"]}
    Folder("memory://").write("prompts-of-run-inputs.jsonl", json.dumps(line).encode())
    run = inputs_of(spec("results", noun_chunk_path="memory://prompts-of-run-inputs.jsonl"))
    assert list(run.records) == ["a.png"]
