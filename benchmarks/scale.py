"""Memory, seconds, files and database rows of runs over 1 000, 10 000 and 100 000 images: what grows, and how.

    python benchmarks/scale.py --folder SCRATCH

Paints small pictures, all different, for the fake detector, and labels them with `autolabel generate` in a process of
its own, in three iterations: first with an empty cache, then again with nothing new, then with 1 % new images somewhere
between the others; and has `autolabel plan` foresee the last two. The model's own seconds are measured and told apart.
Runs that make masks, too, are measured over fewer images, and one with larger shards over the most.

What is measured already lies in SCRATCH and is not measured again, so that a benchmark that was stopped goes on; delete
the folder when the tables are done. Writes them beside this script, as Markdown and as JSON.
"""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial, wraps
from importlib import import_module
from itertools import starmap
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeAlias

import numpy as np
from PIL import Image

from flows.local_server import ensure_server
from tasks.models.fake import paint

HERE = Path(__file__).parent
WIDTH, HEIGHT = 48, 32  # pixels
CLASSES = ("person", "car", "bus", "dog", "cat", "chair", "bench", "bicycle")
FALLING = (0.6, 0.4, 0.25)  # confidence thresholds of the iterations
FOLDERS = 300  # that the pictures lie in
TURNS: Mapping[str, tuple[str, int]] = {  # the command, and the percentage of pictures that came since the first turn
    "first": ("generate", 0),
    "again": ("generate", 0),
    "plan": ("plan", 0),
    "plan, 1 % new": ("plan", 1),
    "1 % new": ("generate", 1),
}
Row: TypeAlias = Mapping[str, Any]

SMALL, LARGE = 64, 512  # images in a shard on average; the first is the default of specs
SAMPLED_EVERY = 0.5  # seconds
SETTLES_IN = 6  # seconds: the server writes events and task runs down in batches, every second or every five


def main() -> None:
    """Measure every turn that is not measured yet, and write the tables; or, in a process of its own, one command."""
    if sys.argv[1:2] == ["--within"]:
        sys.exit(within(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder: 2 GB for 100 000 images")
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="of the runs for boxes")
    parser.add_argument("--masks", type=int, nargs="*", default=[1_000, 10_000], help="of the runs for masks, too")
    parser.add_argument("--large", type=int, nargs="*", default=[100_000], help=f"of those with shards of {LARGE}")
    options = parser.parse_args()
    data_sets = [DataSet("boxes", count, SMALL) for count in options.images]
    data_sets += [DataSet("boxes, masks", count, SMALL) for count in options.masks]
    data_sets += [DataSet("boxes", count, LARGE) for count in options.large]
    rows = []
    with Server(options.folder.resolve() / "prefect") as server:
        for data_set in data_sets:
            rows += measure(options.folder.resolve() / data_set.name, data_set, server)
            (HERE / "scale.json").write_text("[" + ",\n".join(map(json.dumps, rows)) + "]\n")
            (HERE / "scale.md").write_text(as_markdown(rows))


@dataclass(frozen=True)
class DataSet:
    """What is made of how many pictures, and how many of them are in a shard on average."""

    labels: str
    images: int
    shard_size: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.labels.replace(', ', ' and ')} {self.images} {self.shard_size}"


def measure(folder: Path, data_set: DataSet, server: "Server") -> Iterator[dict[str, Any]]:
    """A row for every turn; a turn that was cut begins its data set anew."""
    if any(folder.glob("*.begun")):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(json.dumps(spec(folder, data_set)))
    for number, (turn, (command, new)) in enumerate(TURNS.items()):
        told, begun = folder / f"{number}.json", folder / f"{number}.begun"
        if not told.exists():
            paint_pictures(folder / "images", data_set.images * (100 + new) // 100)
            begun.touch()
            row = {**asdict(data_set), "turn": turn, **run(folder, command, server)}
            told.write_text(json.dumps(row))
            begun.unlink()
        yield json.loads(told.read_text())


def spec(folder: Path, data_set: DataSet) -> dict[str, Any]:
    """The spec of all turns."""
    return {
        "autolabel_type": "grounding_dino" if data_set.labels == "boxes" else "grounding_dino+mal",
        "shard_size": data_set.shard_size,
        "results_dir": str(folder / "results"),
        "gpu_ids": [0],
        "grounding_dino": {
            "checkpoint": "fake",
            "visualize": False,
            "dataset": {"image_dir": str(folder / "images"), "class_names": list(CLASSES)},
            "iteration_scheduler": [{"conf_threshold": threshold} for threshold in FALLING],
        },
        "mal": {"checkpoint": "fake", "visualize": False},
    }


def paint_pictures(folder: Path, count: int) -> None:
    """Have the pictures with the numbers from 0 to `count`; those that are there stay."""
    painted = folder.with_name("painted.txt")  # how many are whole; a stopped benchmark may have left others cut
    done = int(painted.read_text()) if painted.exists() else 0
    for number in range(FOLDERS):
        (folder / f"{number:03d}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(paint_picture, folder), range(done, count), chunksize=500):
            pass
    painted.write_text(str(count))


def paint_picture(folder: Path, number: int) -> None:
    """One to four objects of different classes, and the picture's number in the pixels of the first row."""
    rng = np.random.default_rng(number)
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for phrase in rng.choice(CLASSES, size=rng.integers(1, 5), replace=False):
        width, height = rng.integers(5, 20, size=2)
        left, top = rng.integers(0, WIDTH - width), rng.integers(1, HEIGHT - height)
        pixels[top : top + height, left : left + width] = paint(str(phrase), float(rng.uniform(0.2, 0.95)))
    pixels[0, :32] = 255 * (number >> np.arange(32) & 1)[:, None]
    # Multiplicative hashing gives every number another name, and puts pictures that come later between the others.
    name = f"{number * 2_654_435_761 % 2**32:08x}.png"
    Image.fromarray(pixels).save(folder / f"{number % FOLDERS:03d}" / name)


# --- one command


def run(folder: Path, command: str, server: "Server") -> dict[str, Any]:
    """What a command costs: its process, the server, and what is in results_dir afterwards."""
    report = folder / "within.json"
    before, started = server.told(), time.monotonic()
    arguments = ["--within", str(report), command, "-e", str(folder / "spec.yaml")]
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"autolabel {command} ended with status {process.returncode}")
    seconds = time.monotonic() - started
    after = server.told()
    return {
        "wall_seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        **json.loads(report.read_text()),
        "server": {name: round(after[name] - before.get(name, 0), 2) for name in after},
        "files": files_in(folder / "results"),
    }


def files_in(results: Path) -> dict[str, dict[str, int]]:
    """By kind, how many files there are, their bytes, and the bytes that they take on the disk."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for path in results.rglob("*"):
        if path.is_file():
            status = path.stat()
            kinds[kind_of(path.relative_to(results))].update(
                files=1, bytes=status.st_size, on_disk=512 * status.st_blocks
            )
    return {kind: dict(kinds[kind]) for kind in sorted(kinds)}


def kind_of(path: Path) -> str:
    """Artifacts and their manifests by kind, other files by name."""
    if path.parts[0] != "cache":
        return str(path)
    return f"cache: {path.parts[1]}" + (", manifests" if path.name.endswith(".manifest.json") else "")


class Server:
    """A local Prefect server of the benchmark's own: its CPU seconds, and the rows and bytes of its database."""

    TABLES = ("flow_run", "task_run", "task_run_state", "events", "log")

    def __init__(self, home: Path) -> None:
        self._home = home

    def __enter__(self) -> Self:
        os.environ.pop("PREFECT_API_URL", None)
        os.environ["PREFECT_HOME"] = str(self._home)
        ensure_server()
        self._pid = json.loads((self._home / "autolabel-server.json").read_text())["pid"]
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def told(self) -> dict[str, float]:
        """What it has taken so far, when it has written down what it was told."""
        counts = [{}, self._rows()]
        while counts[-1] != counts[-2]:
            time.sleep(SETTLES_IN)
            counts.append(self._rows())
        return counts[-1] | {"cpu_seconds": self._cpu_seconds()}

    def _rows(self) -> dict[str, float]:
        with sqlite3.connect(f"file:{self._home / 'prefect.db'}?mode=ro", uri=True) as database:
            asked = {table: f"select count(*) from {table}" for table in self.TABLES}  # noqa: S608
            asked["database_bytes"] = "select page_count * page_size from pragma_page_count, pragma_page_size"
            return {name: database.execute(question).fetchone()[0] for name, question in asked.items()}

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # of itself and of its children


# --- inside the command's own process


def within(report: Path, arguments: Sequence[str]) -> int:
    """Run a command line here, and write down the seconds of every step and of the model, and the most memory."""
    ensure_server()  # before Prefect is imported: it reads its settings then
    from prefect import Task

    from flows.cli import run as autolabel
    from tasks.models.fake import FakeDetector, FakeSegmenter

    meter = Meter()
    Thread(target=meter.sample_pss, daemon=True).start()
    FakeDetector.detect = meter.model(FakeDetector.detect)  # type: ignore[method-assign]
    FakeSegmenter.segment = meter.model(FakeSegmenter.segment)  # type: ignore[method-assign]
    import_module("flows.label_dataset")  # and all steps with it
    modules = [module for name, module in sys.modules.items() if name.startswith("tasks.")]
    for step in [value for module in modules for value in vars(module).values() if isinstance(value, Task)]:
        step.fn = meter.step(step.name, step.fn)
    status = autolabel(arguments)
    report.write_text(json.dumps(meter.to_json()))
    return status


class Meter:
    """Keeps account of what steps and the model take in this process."""

    def __init__(self) -> None:
        self._model_seconds = 0.0
        self._calls = 0
        self._peak_pss = 0.0
        self._steps: dict[str, list[tuple[float, ...]]] = defaultdict(list)

    def model(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its CPU seconds counted."""

        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._model_seconds += time.thread_time() - started
                self._calls += 1

        return counted

    def step(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work of a task; steps run one at a time, so that what the process takes meanwhile is theirs."""

        @wraps(work)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before = (time.monotonic(), time.process_time(), self._model_seconds)
            try:
                return work(*args, **kwargs)
            finally:
                after = (time.monotonic(), time.process_time(), self._model_seconds)
                taken = (end - start for start, end in zip(before, after, strict=True))
                self._steps[name].append((*taken, memory("VmRSS")))

        return counted

    def sample_pss(self) -> None:
        """Look again and again at what of its memory the process does not share with others, until it ends."""
        while True:
            self._peak_pss = max(self._peak_pss, memory("Pss", "smaps_rollup"))
            time.sleep(SAMPLED_EVERY)

    def to_json(self) -> dict[str, Any]:
        """Everything that was counted, in seconds and MiB."""
        steps = {}
        for name, runs in self._steps.items():
            wall, cpu, model, _ = map(sum, zip(*runs, strict=True))
            steps[name] = {
                "task_runs": len(runs),
                "wall_seconds": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
                "model_seconds": round(model, 2),
                "rss_mib_first_and_last": [round(runs[at][-1], 1) for at in (0, -1)],
            }
        return {
            "model_seconds": round(self._model_seconds, 2),
            "model_calls": self._calls,
            "peak_rss_mib": round(memory("VmHWM"), 1),
            "peak_pss_mib": round(self._peak_pss, 1),
            "steps": steps,
        }


def memory(name: str, file: str = "status") -> float:
    """A line of what the kernel tells of this process, in MiB."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


# --- tables

WHAT = ("labels", "shards of", "turn", "images")
COSTS = ("peak RSS", "peak PSS", "wall s", "CPU s", "model s", "more ms/image")
FILES = ("file", "files", "MB", "bytes/image", "MB on disk")


def as_markdown(rows: Sequence[Row]) -> str:
    """All tables, each with a heading."""
    runs = [row for row in rows if row["steps"]]
    firsts = {_what(row)[:3]: row for row in runs if row["turn"] == "first"}.values()  # of a kind over the most images
    named = dict.fromkeys(step for row in runs for step in row["steps"])
    steps = [step for step in named if any(_step(row, step) > "0.01" for row in runs)]
    parts = {
        "Memory and seconds": (COSTS, [(*_what(row), *_costs(row, rows)) for row in rows]),
        "CPU milliseconds an image in the larger steps, without the model": (
            steps,
            [(*_what(row), *(_step(row, step) for step in steps)) for row in runs],
        ),
        "What the Prefect server keeps of a run": (
            ("MB", "server's CPU s", *Server.TABLES),
            [(*_what(row), *_kept(row["server"])) for row in runs],
        ),
        "Files after the first run": (FILES, [(*_what(row), *file) for row in firsts for file in _files(row)]),
    }
    return "\n\n".join(["# What runs take, by the number of their images", *starmap(_table, parts.items())]) + "\n"


def _table(heading: str, content: tuple[Sequence[str], Sequence[Sequence[object]]]) -> str:
    columns, lines = (*WHAT, *content[0]), content[1]
    cells = [columns, ["---"] * len(columns), *lines]
    return f"## {heading}\n\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def _what(row: Row) -> tuple[object, ...]:
    return row["labels"], row["shard_size"], row["turn"], row["images"]


def _costs(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """The last is what an image more costs outside the model, against the next smaller run of the kind."""
    yield from (f"{row[name]:.0f} MiB" for name in ("peak_rss_mib", "peak_pss_mib"))
    yield from (f"{row[name]:.1f}" for name in ("wall_seconds", "cpu_seconds", "model_seconds"))
    smaller = [other for other in rows if _what(other)[:3] == _what(row)[:3] and other["images"] < row["images"]]
    if smaller:
        seconds, before = (it["cpu_seconds"] - it["model_seconds"] for it in (row, smaller[-1]))
        yield f"{1000 * (seconds - before) / (row['images'] - smaller[-1]['images']):.2f}"
    else:
        yield "-"


def _step(row: Row, step: str) -> str:
    if (found := row["steps"].get(step)) is None:
        return "-"
    return f"{1000 * (found['cpu_seconds'] - found['model_seconds']) / row['images']:.2f}"


def _files(row: Row) -> Iterator[tuple[object, ...]]:
    for kind, told in row["files"].items():
        sizes = (f"{told['bytes'] / 1e6:.2f}", f"{told['bytes'] / row['images']:.0f}", f"{told['on_disk'] / 1e6:.2f}")
        yield kind, told["files"], *sizes


def _kept(told: Mapping[str, float]) -> tuple[object, ...]:
    rows = (round(told[table]) for table in Server.TABLES)
    return f"{told['database_bytes'] / 1e6:.1f}", f"{told['cpu_seconds']:.1f}", *rows


if __name__ == "__main__":
    main()
