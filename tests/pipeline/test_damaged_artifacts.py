"""What is deleted, cut or changed in the cache is noticed, told in a line, and made anew: the results stay the same."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.auto_label import auto_label
from flows.label_dataset import label_dataset
from flows.plan import plan_run
from flows.segment_masks import segment_masks
from tasks.domain.errors import ArtifactError
from tasks.domain.spec import ExperimentSpec, validate_spec
from tasks.store import MANIFEST, MANIFEST_FORMAT

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server"), pytest.mark.slow]

# The artifacts of boxes, those that masks of these add, and those of masks for the boxes of a COCO file.
KINDS = {
    "boxes": ("index", "annotations", "candidates", "labels"),
    "boxes and masks": ("boxes", "masks"),
    "masks": ("index", "boxes"),
}
FLOWS = {"boxes": auto_label, "boxes and masks": label_dataset, "masks": segment_masks}
CASES = [(flow, kind) for flow, kinds in KINDS.items() for kind in kinds]
OBJECTS = [("cat", 0.9, (10, 10, 40, 30)), ("dog", 0.6, (50, 10, 90, 30)), ("cow", 0.4, (10, 40, 60, 70))]
IMAGES = 7
BOTH = {"autolabel_type": "grounding_dino+mal", "mal": {"checkpoint": "fake"}}


# --- a finished run


@dataclass(frozen=True)
class Finished:
    """A run that is done: what it was over, and what it left."""

    folder: Path
    keys: dict[str, Any]
    flow: Callable[[ExperimentSpec], Any]

    def spec(self, results: Path) -> ExperimentSpec:
        return validate_spec({**self.keys, "results_dir": str(results)})

    def copy(self, into: Path) -> Path:
        """The results, for a test to damage."""
        return Path(shutil.copytree(self.folder / "results", into / "results"))


@pytest.fixture(scope="module", autouse=True)
def no_heartbeats(server) -> Iterator[None]:
    """A flow waits up to a second for the thread of its heartbeats to end."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory, paint_picture) -> Path:
    """Seven pictures in two folders, with one to three objects that are found by different thresholds."""
    folder: Path = tmp_path_factory.mktemp("damaged")
    for i in range(IMAGES):
        fainter = [(name, score - 0.015 * i, box) for name, score, box in OBJECTS[: 1 + i % 3]]
        paint_picture(folder / "images" / f"{'ab'[i % 2]}/{i}.png", fainter, (100, 80))
    return folder / "images"


@pytest.fixture(scope="module")
def finished(images, no_heartbeats) -> dict[str, Finished]:
    """One run of each flow, over several shards."""
    boxes = _keys_of_pictures(images)
    keys = {"boxes": boxes, "boxes and masks": {**boxes, **BOTH}, "masks": _keys_of_boxes(images)}
    made = {}
    for name, flow in FLOWS.items():
        run = Finished(images.parent / name, keys[name], flow)
        run.flow(run.spec(run.folder / "results"))
        made[name] = run
    return made


def _keys_of_pictures(images: Path) -> dict[str, Any]:
    detection = {
        "checkpoint": "fake",
        "visualize": False,
        "iteration_scheduler": [{"conf_threshold": threshold} for threshold in (0.7, 0.3)],
        "dataset": {"image_dir": str(images), "class_names": ["cat", "dog", "cow"]},
    }
    return {"autolabel_type": "grounding_dino", "shard_size": 4, "grounding_dino": detection}


def _keys_of_boxes(images: Path) -> dict[str, Any]:
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    document = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 10]} for i in range(len(names))],
    }
    path = images.parent / "boxes.json"
    path.write_text(json.dumps(document))
    where = {"ann_path": str(path), "img_dir": str(images), "label_dump_path": "masks.json"}
    return {"autolabel_type": "mal", "shard_size": 4, "mal": {"checkpoint": "fake", "inference": where}}


# --- damage


def manifests(results: Path, kind: str) -> list[Path]:
    """The manifests of all artifacts of a kind."""
    found = sorted((results / "cache" / kind).glob(f"*/*{MANIFEST}"))
    assert found
    return found


def data_of(manifest: Path) -> Path:
    """The file that a manifest tells of."""
    (found,) = manifest.parent.glob(f"{manifest.name.removesuffix(MANIFEST)}.*[0-9a-f].json")
    return found


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[np.random.default_rng(0).integers(len(payload))] ^= 1
    path.write_bytes(payload)


def not_json(path: Path) -> None:
    path.write_bytes(b"\xff\x00 no JSON")


def without_digest(path: Path) -> None:
    path.write_text(json.dumps({"format": MANIFEST_FORMAT, "bytes": 3, "counts": {}}))


DATA = {"deleted": Path.unlink, "truncated": truncated, "flipped": flipped, "emptied": emptied}
MANIFESTS = {"truncated": truncated, "flipped": flipped, "not JSON": not_json, "without a digest": without_digest}
DAMAGE = {
    **{f"data {name}": lambda manifest, harm=harm: harm(data_of(manifest)) for name, harm in DATA.items()},
    **{f"manifest {name}": harm for name, harm in MANIFESTS.items()},
}


def delivered(results: Path) -> dict[str, bytes]:
    """What the user gets, and the artifacts: all but what tells of the run itself."""
    told = ("run.json", "status.json", "cache/runs/")
    paths = {path.relative_to(results).as_posix(): path for path in results.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(told)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def key_in(line: str) -> str:
    """The key of the artifact that a warning tells of."""
    return line.split("/")[2][:64]


def assert_made_anew(run: Finished, results: Path) -> None:
    """The run again gives what it gave at first."""
    run.flow(run.spec(results))
    assert differing(results, run.folder / "results") == []


def differing(results: Path, others: Path) -> list[str]:
    """The paths under which two runs delivered other bytes."""
    now, before = delivered(results), delivered(others)
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))


# --- what is noticed


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("flow", "kind"), CASES)
def test_a_damaged_artifact_is_told_in_one_line_and_made_anew(finished, flow, kind, damage, tmp_path, caplog):
    results = finished[flow].copy(tmp_path)
    damaged = manifests(results, kind)
    for manifest in damaged:
        DAMAGE[damage](manifest)
    assert_made_anew(finished[flow], results)
    told = warnings(caplog)
    assert [line for line in told if "\n" in line or not line.endswith("it is made again")] == []
    assert sorted(map(key_in, told)) == sorted(path.name[:64] for path in damaged)


@pytest.mark.parametrize(("flow", "kind"), CASES)
def test_an_artifact_without_its_manifest_is_none_and_made_anew_without_a_word(finished, flow, kind, tmp_path, caplog):
    results = finished[flow].copy(tmp_path)
    for manifest in manifests(results, kind):
        manifest.unlink()
    assert_made_anew(finished[flow], results)
    assert warnings(caplog) == []


@pytest.mark.parametrize(("flow", "kind"), CASES)
def test_an_artifact_of_a_newer_format_is_refused_and_left_as_it_is(finished, flow, kind, tmp_path):
    results = finished[flow].copy(tmp_path)
    newer = manifests(results, kind)[-1]
    ours = newer.read_bytes()
    newer.write_text(json.dumps({"format": MANIFEST_FORMAT + 1, "sha512": "what a later version may say"}))
    theirs = newer.read_bytes()
    with pytest.raises(ArtifactError, match=r"is of format 2, newer than 1, .*; upgrade autolabel-flow") as refusal:
        finished[flow].flow(finished[flow].spec(results))
    assert newer.name in str(refusal.value)
    assert newer.read_bytes() == theirs
    newer.write_bytes(ours)
    assert_made_anew(finished[flow], results)


# --- together with what else happens


@pytest.mark.parametrize("damage", ["data deleted", "data flipped", "manifest truncated"])
def test_damaged_answers_of_a_data_set_that_has_grown_are_told_once_and_asked_again(
    finished, images, damage, tmp_path, caplog, paint_picture
):
    """The shard of the new image has a key of its own: its other answers are looked for in the damaged artifacts."""
    results = finished["boxes and masks"].copy(tmp_path)
    shutil.copytree(images, tmp_path / "images")
    paint_picture(tmp_path / "images" / "a" / "new.png", OBJECTS, (100, 80))
    damaged = manifests(results, "candidates") + manifests(results, "masks")
    for manifest in damaged:
        DAMAGE[damage](manifest)
    run = Finished(tmp_path, {**_keys_of_pictures(tmp_path / "images"), **BOTH}, label_dataset)
    run.flow(run.spec(results))
    told = warnings(caplog)
    assert sorted(map(key_in, told)) == sorted({key_in(line) for line in told})
    assert {key_in(line) for line in told} <= {path.name[:64] for path in damaged}
    run.flow(run.spec(tmp_path / "fresh"))
    assert [path for path in differing(results, tmp_path / "fresh") if not path.startswith("cache/")] == []


@pytest.mark.parametrize("kind", KINDS["boxes"])
def test_a_plan_over_damaged_artifacts_foresees_the_forwards(finished, kind, tmp_path):
    results = finished["boxes"].copy(tmp_path)
    for manifest in manifests(results, kind)[::2]:
        flipped(data_of(manifest))
    spec = finished["boxes"].spec(results)
    plan = plan_run(spec)
    made = auto_label(spec)
    assert plan.least <= sum(iteration.forwards for iteration in made.iterations) <= plan.most
    assert (plan.least > 0) == (kind == "candidates")


@pytest.mark.parametrize("seed", range(3))
def test_files_that_a_power_cut_left_empty_are_made_anew(finished, seed, tmp_path):
    """What was written last may be there by its name alone after a power cut: artifacts, labels, the account."""
    results = finished["boxes and masks"].copy(tmp_path)
    files = sorted(path for path in results.rglob("*") if path.is_file())
    for at in np.random.default_rng(seed).choice(len(files), len(files) // 2, replace=False):
        emptied(files[at])
    assert_made_anew(finished["boxes and masks"], results)
    assert json.loads((results / "run.json").read_text())["masks"]
