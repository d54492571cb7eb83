"""A run whose images, results and cache lie in a bucket leaves the same bytes as one on local folders."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.label_dataset import label_dataset
from tasks.domain.spec import validate_spec
from tasks.storage.folder import Folder

IMAGES = {
    "a/1.png": [("cat", 0.9, (4, 4, 40, 40))],
    "a/2.png": [("dog", 0.9, (8, 8, 60, 50)), ("cat", 0.4, (70, 10, 110, 60))],
    "b/photo 3%.png": [("dog", 0.35, (20, 20, 80, 80))],
    "b/4.png": [],
    "5.png": [("cat", 0.6, (0, 0, 100, 90)), ("dog", 0.7, (30, 30, 90, 90))],
}
# They tell of the run: when it was, how long it took, and where.
ABOUT_THE_RUN = ("run.json", "status.json")


@pytest.fixture
def generate(server: Mapping[str, str], tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `autolabel generate` on a spec, in a process of its own."""

    def run(spec: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "generate", "-e", "spec.yaml"],
            cwd=tmp_path,
            env={**server, "AUTOLABEL_DEVICE": "cpu", "COLUMNS": "400", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def spec_at(place: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "autolabel_type": "grounding_dino+mal",
        "shard_size": 2,
        "results_dir": f"{place}/results",
        "cache_dir": f"{place}/cache",
        "storage_options": dict(storage_options),
        "grounding_dino": {
            "checkpoint": "fake",
            "iteration_scheduler": [{"conf_threshold": threshold} for threshold in (0.5, 0.3)],
            "dataset": {"image_dir": f"{place}/images", "class_names": ["cat", "dog"]},
        },
        "mal": {"checkpoint": "fake"},
    }


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, paint_picture: Callable[..., Path], server: Mapping[str, str]
) -> Folder:
    """A run on local folders."""
    folder = tmp_path_factory.mktemp("local")
    for key, objects in IMAGES.items():
        paint_picture(folder / "images" / key, objects)
    label_dataset(validate_spec(spec_at(str(folder), {})))
    return Folder(str(folder))


@pytest.fixture
def bucket(s3, local: Folder) -> Folder:
    """A bucket with the same images."""
    folder = Folder(s3.uri, s3.storage_options)
    for key in IMAGES:
        folder.write(f"images/{key}", local.read(f"images/{key}"))
    s3.faults.clear()
    return folder


def delivered(folder: Folder) -> dict[str, bytes]:
    paths = [file.path for file in folder.files("results") if not file.path.endswith(ABOUT_THE_RUN)]
    return dict(folder.read_all(paths))


def forwards(folder: Folder) -> list[int]:
    record = json.loads(folder.read("results/run.json"))
    return [*(iteration["forwards"] for iteration in record["iterations"]), record["masks"]["boxes_forwarded"]]


@pytest.mark.slow
def test_a_run_in_a_bucket_leaves_the_bytes_of_one_on_folders_and_a_second_forwards_nothing(local, bucket):
    spec = validate_spec(spec_at(bucket.uri, {"s3": bucket.storage_options, "sftp": {"password": "of another"}}))
    label_dataset(spec)
    first = delivered(bucket)
    assert first == delivered(local)
    assert "annotations.json" in {path.rpartition("/")[2] for path in first}
    assert forwards(bucket) == forwards(local)
    assert sum(forwards(bucket)) > 0
    label_dataset(spec)
    assert delivered(bucket) == first
    assert sum(forwards(bucket)) == 0


@pytest.mark.slow
def test_a_run_over_a_bad_network_leaves_the_same_bytes_and_no_secret_anywhere(local, bucket, s3, generate, server):
    spec = spec_at(bucket.uri, {"s3": bucket.storage_options})
    s3.faults.mix(seed=1, share=0.1)
    told = generate(spec)
    assert told.returncode == 0, told.stderr
    assert len(s3.faults.struck) > 10
    s3.faults.clear()
    assert delivered(bucket) == delivered(local)
    assert forwards(bucket) == forwards(local)
    where = (bucket, Path(server["PREFECT_HOME"]), told.stdout + told.stderr)
    assert {place.partition(" ")[0] for place in holders_of(s3.bucket, *where)} == {"stored", "kept", "printed"}
    assert holders_of(s3.secret, *where) == []
    assert holders_of(s3.key, *where) == []
    s3.faults.mix(seed=2, share=0.1)
    label_dataset(validate_spec(spec))
    s3.faults.clear()
    assert delivered(bucket) == delivered(local)
    assert sum(forwards(bucket)) == 0


def holders_of(text: str, bucket: Folder, prefect: Path, shown: str) -> list[str]:
    """Where a text is found: in the files of a bucket, those of Prefect's server, or what was printed."""
    stored = ((f"stored {path}", found) for path, found in bucket.read_all([file.path for file in bucket.files()]))
    kept = ((f"kept {path}", path.read_bytes()) for path in sorted(prefect.rglob("*")) if path.is_file())
    return [place for place, found in chain(stored, kept, [("printed", shown.encode())]) if text.encode() in found]


@pytest.mark.slow
def test_a_bucket_that_refuses_us_is_told_in_one_line(bucket, s3, generate):
    told = generate(spec_at(bucket.uri, {**bucket.storage_options, "secret": "not that of the account"}))
    assert told.returncode == 2, told.stderr
    line = told.stderr.splitlines()[-1]
    assert line.startswith("autolabel: ")
    assert bucket.uri in line
    assert "check the address, the permissions and storage_options" in line
    assert "Traceback" not in told.stdout + told.stderr
    assert "not that of the account" not in told.stdout + told.stderr
