"""A run that fills the disk says so and ends; when there is room again, the same command goes on to the same bytes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


def _load(name: str) -> ModuleType:
    """A module beside this one: tests are no package."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


runs = _load("durable_runs")

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

SIZE = 16 * 2**20  # bytes of the small disk: a whole run takes some 2 MiB of it
PAGE = 4096  # bytes; a file takes whole pages
MENDABLE = 2
STEPS = {
    "append",  # status.json
    "index_images",
    "shard_images",
    "infer",
    "aggregate",
    "export_iteration",
    "export_labels",
    "write",  # run.json
    "shard_labels",
    "segment",
    "export_masks",
}

# A file system of its own for one process and its children; it goes when they do.
PRIVATE_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-c")
MOUNTED = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'


@pytest.fixture(scope="module")
def driver(tmp_path_factory, server) -> Iterator[Any]:
    """Starts attempts that see a small disk at disk/."""
    folder = tmp_path_factory.mktemp("disk full")
    disk = folder / "disk"
    disk.mkdir()
    if shutil.which(PRIVATE_DISK[0]) is None:
        pytest.skip("there is no unshare here: a file system of its own is a matter of Linux")
    tried = subprocess.run([*PRIVATE_DISK, MOUNTED, disk, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {tried.stderr.strip()}")
    with runs.driver(folder, server, *PRIVATE_DISK, MOUNTED, str(disk)) as started:
        yield started


@pytest.fixture(scope="module")
def disk(driver, paint_picture) -> Path:
    """The small disk as this process sees it, with the images on it."""
    seen = Path(f"/proc/{driver.process.pid}/root") / str(driver.log.parent / "disk").lstrip("/")
    runs.paint_dataset(seen, paint_picture)
    return seen


@pytest.fixture(scope="module")
def whole(driver, disk) -> Any:
    """An undisturbed run for boxes and masks."""
    return runs.run_undisturbed(driver, runs.write_spec(disk / "whole", runs.SPEC))


def fill(disk: Path, free: int) -> None:
    """Leave `free` pages of 4 KiB on the disk."""
    room = os.statvfs(disk).f_bfree
    with (disk / "filler").open("wb") as file:
        for _ in range(room - free):
            file.write(bytes(PAGE))


def assert_told(stopped: Any) -> None:
    """The status of what the user can mend, the reason in words, and nothing that only we could read."""
    assert (stopped.status, "No space left on device" in stopped.output) == (MENDABLE, True), stopped.output
    assert "Traceback" not in stopped.output


def first_writes(events: Sequence[str]) -> dict[str, str]:
    """The first write of every step."""
    writes = [event for event in events if " before-write " in event]
    return {runs.step_of(event): event for event in reversed(writes)}


def test_a_run_that_finds_the_disk_full_in_any_step_says_so_and_goes_on_when_there_is_room(driver, disk, whole):
    place = runs.write_spec(disk / "every step", runs.SPEC)
    moments = first_writes(whole.first.events)
    assert STEPS - moments.keys() == set()
    for event in sorted(moments.values(), key=whole.first.events.index):
        assert_told(driver.attempt(place, at={"event": event, "count": 1, "fill": str(disk / "filler")}))
        assert runs.half_written(place / "results", whole) == []
        (disk / "filler").unlink()
    assert driver.attempt(place).status == runs.SOME_FAILED
    assert runs.deviations(place / "results", whole) == {}
    assert driver.told().asked_again == ()


def test_a_disk_that_grows_a_little_at_a_time_is_enough_in_the_end(driver, disk, whole):
    place = runs.write_spec(disk / "every size", runs.SPEC)
    sizes = np.random.default_rng(5)
    done, refused = runs.Attempt(MENDABLE, "No space left on device"), -1
    while done.status != runs.SOME_FAILED:
        assert_told(done)
        refused += 1
        fill(disk, free=int(sizes.integers(90)))
        done = driver.attempt(place)
        (disk / "filler").unlink()
        assert runs.half_written(place / "results", whole) == []
    assert runs.deviations(place / "results", whole) == {}
    assert driver.told().asked_again == ()
    assert refused >= 4


def test_a_disk_that_has_no_room_for_a_picture_ends_the_run_and_not_the_picture_alone(driver, disk, whole):
    place = runs.write_spec(disk / "pictures", runs.SPEC)
    event = next(e for e in whole.first.events if " before-write results/auto_label0/images_annotated/" in e)
    stopped = driver.attempt(place, at={"event": event, "count": 1, "fill": str(disk / "filler")})
    (disk / "filler").unlink()
    assert_told(stopped)
    assert "'auto_label0/images_annotated/" in stopped.output
