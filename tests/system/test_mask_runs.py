"""Masks from the command line: real processes, exit statuses, equal bytes, and memory that stays level."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO

pytestmark = pytest.mark.prefect

SPEC = """
autolabel_type: mal
gpu_ids: [0]
results_dir: results
mal:
  checkpoint: fake
  evaluate: {use_flip_test: true}
  inference: {ann_path: boxes.json, img_dir: images, label_dump_path: masks.json, gpu_ids: [3]}
"""
CHAIN = """
autolabel_type: grounding_dino+mal
results_dir: results
grounding_dino:
  checkpoint: fake
  visualize: false
  dataset: {image_dir: images, class_names: [cat]}
  iteration_scheduler: [{conf_threshold: 0.5}, {conf_threshold: 0.3}]
mal: {checkpoint: fake}
"""
CAT = (20, 10, 80, 50)


@pytest.fixture
def folder(tmp_path: Path, paint_picture: Callable[..., Path]) -> Path:
    """Twelve painted pictures, a COCO file with their boxes, and specs for masks alone and after boxes."""
    images, rows = [], []
    for i in range(12):
        key = f"{'ab'[i % 2]}/{i} 標.png"
        paint_picture(tmp_path / "images" / key, [("cat", 0.9 - i / 30, CAT)], (200 - i, 150 + i))
        images.append({"id": f"image {i}", "file_name": key})
        rows += [{"id": 10 * i + k, "image_id": f"image {i}", "category_id": 1, "bbox": [k, k, 30, 20]} for k in (0, 1)]
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    (tmp_path / "masks.yaml").write_text(SPEC)
    (tmp_path / "both.yaml").write_text(CHAIN)
    return tmp_path


def test_masks_are_made_told_and_planned(folder, autolabel):
    plan, first, second = (
        autolabel(command, "-e", "masks.yaml", cwd=folder) for command in ("plan", *["generate"] * 2)
    )
    assert [run.returncode for run in (plan, first, second)] == [0, 0, 0], first.stderr
    assert "masks: 24 boxes in 12 images" in plan.stdout
    assert "a run forwards 24 boxes now\n" in plan.stdout
    assert "masks: 24 of 24 boxes\nboxes forwarded: 24 in " in first.stdout
    assert "boxes forwarded: 0 in " in second.stdout
    assert "not used here: mal.evaluate, mal.inference.gpu_ids\n" in first.stderr
    assert len(COCO(folder / "results" / "masks.json").anns) == 24


def test_images_that_failed_are_exit_status_3_and_told(folder, autolabel):
    (folder / "images" / "a" / "0 標.png").write_bytes(b"broken")
    done = autolabel("generate", "-e", "masks.yaml", cwd=folder)
    assert done.returncode == 3
    assert "masks: 22 of 24 boxes; without a mask: 2 image_failed\n" in done.stdout
    assert "images: 11 labelled, 0 empty, 1 failed\n" in done.stdout


def test_boxes_and_masks_are_one_command(folder, autolabel):
    done = autolabel("generate", "-e", "both.yaml", "gpu_ids=[1]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "masks: 12 of 12 boxes\n" in done.stdout
    coco = COCO(folder / "results" / "annotations.json")
    assert all(row["segmentation"] for row in coco.anns.values())
    planned = autolabel("plan", "-e", "both.yaml", cwd=folder)
    assert "masks: 12 boxes in 12 images" in planned.stdout
    assert "a run forwards 0 boxes now\n" in planned.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "name"), [("masks.yaml", "masks.json"), ("both.yaml", "annotations.json")])
def test_hash_seed_batches_shards_and_threads_change_no_byte(spec, name, folder, autolabel):
    written = []
    for seed, batch_size, shard_size, workers in (("0", 1, 64, 1), ("1", 4, 1, 0), ("4711", 5, 3, 8)):
        shutil.rmtree(folder / "results", ignore_errors=True)
        where = [f"batch_size={batch_size}", f"shard_size={shard_size}", f"num_workers={workers}"]
        done = autolabel("generate", "-e", spec, *where, cwd=folder, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        written.append((folder / "results" / name).read_bytes())
    assert written[1:] == written[:-1]


# Runs the command line with a segmenter that takes its time, so that a kill finds it at work.
SLOW = """
import sys, time
from tasks.models import fake
segment = fake.FakeSegmenter.segment
def slowly(*given, **options):
    time.sleep(0.2)
    return segment(*given, **options)
fake.FakeSegmenter.segment = slowly
from flows.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_stopped(folder, autolabel, server):
    arguments = ["generate", "-e", "masks.yaml", "shard_size=1"]
    command = [sys.executable, "-c", SLOW, *arguments]
    killed = subprocess.Popen(
        command, cwd=folder, env=dict(server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(manifests(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = len(manifests(folder))
    done = autolabel(*arguments, cwd=folder)
    assert 3 <= made < 12
    assert f"boxes forwarded: {24 - 2 * made} in " in done.stdout
    assert done.returncode == 0, done.stderr


def manifests(folder: Path) -> list[Path]:
    return list((folder / "results" / "cache" / "masks").glob("*/*.manifest.json"))


# What the process itself needed at most, in MiB.
MEASURED = """
import resource, sys
from flows.cli import run
status = run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(status)
"""


@pytest.mark.slow
def test_ten_times_the_images_take_the_same_memory(tmp_path, server, paint_picture):
    """MAL-22: TAO holds every record in memory, twice, until the end."""
    image = paint_picture(tmp_path / "image.png", [], (1200, 900))  # 3 MiB of pixels
    peaks = {}
    for count in (60, 600):
        folder = tmp_path / str(count)
        (folder / "images").mkdir(parents=True)
        (folder / "masks.yaml").write_text(SPEC)
        names = [f"{i:04}.png" for i in range(count)]
        for name in names:
            (folder / "images" / name).hardlink_to(image)
        boxes = [[4 * k, 3 * k, 300, 200] for k in range(20)]
        rows = [
            {"id": 20 * i + k, "image_id": i, "category_id": 1, "bbox": bbox}
            for i in range(count)
            for k, bbox in enumerate(boxes)
        ]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
        (folder / "boxes.json").write_text(json.dumps(document))
        command = [sys.executable, "-c", MEASURED, "generate", "-e", "masks.yaml", "shard_size=10"]
        done = subprocess.run(command, cwd=folder, env=dict(server), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.rpartition("peak ")[2])
    # 540 images more have 1 670 MiB of pixels, and their rows take a few.
    assert peaks[600] - peaks[60] < 60
