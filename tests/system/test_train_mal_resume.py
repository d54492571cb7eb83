"""A training that is killed, as a user has it: the same command again gives the same weights to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from tasks.domain.scenes import SHAPES, draw_scene
from tasks.formats.scene_truth import dump_scene_truth

SPEC = """
results_dir: ???
dataset: {train_ann_path: boxes.json, train_img_dir: images, crop_size: 64, min_obj_size: 0}
model: {dim: 16, depth: 2, heads: 2, mask_head_hidden_channel: 16, mask_head_out_channel: 16}
train: {num_epochs: 3, batch_size: 2, lr: 1e-3, checkpoint_interval: 2, checkpoint_interval_unit: step}
"""
Autolabel = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four drawn scenes with their boxes, and a spec that trains a tiny network on them."""
    scenes = [(f"{seed}.png", draw_scene(seed, width=96, height=96)) for seed in range(4)]
    (tmp_path / "images").mkdir()
    for name, scene in scenes:
        Image.fromarray(scene.pixels).save(tmp_path / "images" / name)
    (tmp_path / "boxes.json").write_bytes(dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return tmp_path


def kill_within_an_epoch(server: Mapping[str, str], folder: Path, results: str) -> None:
    """Start the training, and kill it once it has written its state more than once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train-mal", "-e", "tiny.yaml", f"results_dir={results}"],
        cwd=folder,
        env={**server, "AUTOLABEL_DEVICE": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = folder / results / "checkpoints" / "last.pt"
    times: set[int] = set()
    deadline = time.monotonic() + 120
    while len(times) < 3 and process.poll() is None and time.monotonic() < deadline:
        if state.exists():
            times.add(state.stat().st_mtime_ns)
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.prefect
@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(
    autolabel: Autolabel, server: Mapping[str, str], folder: Path
) -> None:
    """MAL-11: users who resumed the published training got NaN from the second batch on."""
    straight = autolabel("train-mal", "-e", "tiny.yaml", "results_dir=straight", cwd=folder)
    kill_within_an_epoch(server, folder, "killed")
    again = autolabel("train-mal", "-e", "tiny.yaml", "results_dir=killed", cwd=folder)
    assert (straight.returncode, again.returncode) == (0, 0), straight.stderr + again.stderr
    weights = [(folder / results / "mal" / "model.safetensors").read_bytes() for results in ("straight", "killed")]
    assert weights[0] == weights[1]
    assert len(json.loads((folder / "killed" / "train.json").read_text())["epochs"]) == 3


@pytest.mark.prefect
def test_a_spec_that_is_not_filled_in_is_refused_without_a_traceback(autolabel: Autolabel, folder: Path) -> None:
    refused = autolabel("train-mal", "-e", "tiny.yaml", cwd=folder)
    assert refused.returncode == 2
    assert "results_dir: fill in: found ???" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_help_shows_an_example(folder: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "flows.cli", "train-mal", "--help"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "autolabel train-mal -e specs/train_mal.yaml" in shown.stdout
    assert "exit status: 0 done" in shown.stdout
