"""Two runs at once, as a user has them: real processes that are started together, killed, suspended and woken."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

# The command line, with a detector that tells when it is first asked and does not answer before it may.
HELD_UP = """
import sys, time
from pathlib import Path
from tasks.models.fake import FakeDetector

reached, may_go_on = map(Path, sys.argv[1:3])
detect = FakeDetector.detect

def wait_and_detect(*args, **keys):
    reached.touch()
    deadline = time.monotonic() + 120
    while not may_go_on.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return detect(*args, **keys)

FakeDetector.detect = wait_and_detect
from flows.cli import run
sys.exit(run(sys.argv[3:]))
"""
SPEC = """
autolabel_type: grounding_dino+mal
results_dir: results
shard_size: 2
gpu_ids: [0]
grounding_dino:
  checkpoint: fake
  visualize: false
  dataset: {image_dir: images, class_names: [cat, dog]}
  iteration_scheduler: [{conf_threshold: 0.5}, {conf_threshold: 0.3}]
mal: {checkpoint: fake}
"""
IMAGES = 12
TELLS_OF_THE_RUN = {"run.json", "status.json"}  # and so of times, of what was reused, and of where it ran
CAT, DOG = (10, 10, 60, 50), (80, 10, 140, 50)
SECONDS = 150


class Process:
    """A command line in a process of its own, that goes on at the detector when it is told to."""

    def __init__(self, folder: Path, environment: Mapping[str, str], name: str, arguments: tuple[str, ...]) -> None:
        self.reached, self.may_go_on = folder / f"{name} reached", folder / f"{name} may go on"
        self.output = folder / f"{name} output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HELD_UP, str(self.reached), str(self.may_go_on), *arguments],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def wait_until_it_detects(self) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.reached.exists():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Let it go on: its exit status, and what it printed."""
        self.may_go_on.touch()
        return self.process.wait(SECONDS), self.output.read_text()


@pytest.fixture
def folder(tmp_path: Path, paint_picture: Callable[..., Path]) -> Path:
    """A spec and twelve pictures."""
    for i in range(IMAGES):
        paint_picture(tmp_path / "images" / f"{i}.png", [("cat", 0.9 - i / 50, CAT), ("dog", 0.45, DOG)])
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture
def start(folder: Path, server: Mapping[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts `autolabel generate` with these overrides."""
    started: list[Process] = []
    environment = {**server, "AUTOLABEL_DEVICE": "cpu", "COLUMNS": "400"}

    def start(*overrides: str) -> Process:
        arguments = ("generate", "-e", "spec.yaml", *overrides)
        started.append(Process(folder, environment, f"process {len(started)}", arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def undisturbed(folder: Path, autolabel: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, bytes]:
    """What a run delivers that nothing disturbs."""
    done = autolabel("generate", "-e", "spec.yaml", "results_dir=undisturbed", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = delivered(folder / "undisturbed")
    assert {"annotations.json", "auto_label0/annotations.json", "failures.jsonl"} <= found.keys()
    return found


def contents(results: Path) -> dict[str, bytes]:
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in results.rglob("*") if path.is_file()}


def outside_the_cache(results: Path) -> dict[str, bytes]:
    return {path: data for path, data in contents(results).items() if not path.startswith("cache/")}


def delivered(results: Path) -> dict[str, bytes]:
    """All files but the cache and those that tell of the run itself."""
    return {path: data for path, data in outside_the_cache(results).items() if path not in TELLS_OF_THE_RUN}


def forwards(results: Path) -> int:
    return sum(iteration["forwards"] for iteration in json.loads((results / "run.json").read_bytes())["iterations"])


def course(results: Path) -> list[str]:
    return [json.loads(line)["status"] for line in (results / "status.json").read_text().splitlines()]


def test_of_two_runs_started_together_one_is_refused_with_the_name_of_the_other(folder, start, undisturbed):
    both = [start(), start()]
    deadline = time.monotonic() + SECONDS
    while all(one.process.poll() is None for one in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    (refused,) = (one for one in both if one.process.poll() is not None)
    (winner,) = (one for one in both if one is not refused)
    status, printed = refused.end()
    owner = rf"autolabel run '[a-z-]+' on .+, process {winner.process.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    wanted = rf"autolabel: results_dir: {re.escape(str(folder))}/results is in use by {owner}; wait for that to end, "
    assert (status, "Traceback" in printed) == (2, False), printed
    assert re.search(wanted, printed), printed
    winner.wait_until_it_detects()
    assert winner.end()[0] == 0
    assert course(folder / "results") == ["STARTED", "SUCCESS"]
    assert delivered(folder / "results") == undisturbed


def test_two_runs_over_one_cold_cache_each_deliver_what_they_would_alone(folder, start, autolabel, undisturbed):
    both = [start(f"results_dir={name}", "cache_dir=shared") for name in ("one", "two")]
    for one in both:
        one.wait_until_it_detects()
    for one in both:
        one.may_go_on.touch()
    assert [one.end()[0] for one in both] == [0, 0], [one.end()[1] for one in both]
    alone = forwards(folder / "undisturbed")
    assert [delivered(folder / name) == undisturbed for name in ("one", "two")] == [True, True]
    assert alone <= forwards(folder / "one") + forwards(folder / "two") <= 2 * alone
    store = ArtifactStore(str(folder / "shared"))
    kinds = [path.name for path in (folder / "shared").iterdir()]
    read = [store.read(manifest.ref) for kind in kinds for manifest in store.manifests(kind)]
    assert len(read) > IMAGES
    third = autolabel("generate", "-e", "spec.yaml", "results_dir=three", "cache_dir=shared", cwd=folder)
    assert (third.returncode, third.stderr) == (0, "")
    assert (forwards(folder / "three"), delivered(folder / "three") == undisturbed) == (0, True)


def test_a_run_that_is_killed_blocks_nobody(folder, start, autolabel, undisturbed):
    killed = start()
    killed.wait_until_it_detects()
    killed.process.send_signal(signal.SIGKILL)
    done = autolabel("generate", "-e", "spec.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert delivered(folder / "results") == undisturbed


def test_a_run_on_a_remote_folder_that_is_suspended_and_taken_over_writes_nothing_when_it_wakes(
    folder, start, autolabel, undisturbed
):
    where = ("results_dir=dir://results", f"storage_options={{path: {json.dumps(str(folder))}, target_protocol: file}}")
    suspended = start(*where)
    suspended.wait_until_it_detects()
    suspended.process.send_signal(signal.SIGSTOP)
    done = autolabel("generate", "-e", "spec.yaml", *where, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"dir://results: autolabel run '.*' on .* left its claim and does not answer; taken over after 25 s",
        done.stderr,
    )
    before = outside_the_cache(folder / "results")
    suspended.process.send_signal(signal.SIGCONT)
    status, printed = suspended.end()
    assert (status, "Traceback" in printed) == (2, False), printed
    assert re.search(
        r"autolabel: dir://results was taken over from autolabel run '.*' on .*; run the same command", printed
    )
    assert outside_the_cache(folder / "results") == before
    assert delivered(folder / "results") == undisturbed


@pytest.mark.parametrize("command", ["generate", "train-mal", "demo"])
def test_every_command_that_writes_results_is_refused_where_another_process_works(command, folder, autolabel):
    spec = {"generate": ["-e", "spec.yaml"], "train-mal": ["-e", "train.yaml"], "demo": []}[command]
    (folder / "train.yaml").write_text("dataset: {train_ann_path: boxes.json, train_img_dir: images}\n")
    with claim(Folder(str(folder / "results")), exclusive=True, owner="somebody"):
        before = contents(folder)
        done = autolabel(command, *spec, "results_dir=results", cwd=folder)
        assert contents(folder) == before
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"autolabel: results_dir: {folder}/results is in use by somebody; wait for that to end" in done.stderr


def test_a_run_that_is_interrupted_leaves_no_claim(folder, start):
    interrupted = start()
    interrupted.wait_until_it_detects()
    interrupted.process.send_signal(signal.SIGINT)
    status, printed = interrupted.end()
    assert (status, "interrupted; the same command goes on where it stopped" in printed) == (130, True), printed
    assert [*(folder / "results").rglob(".autolabel*")] == []
    assert course(folder / "results") == ["STARTED", "FAILURE"]
