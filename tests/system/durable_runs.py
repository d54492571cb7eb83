"""What the tests of interrupted runs share: a small data set, the driver of kill_points.py, and what is compared."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.domain.images import into_shards

Files = dict[str, bytes]  # by path relative to a folder

SHARD_SIZE = 4  # four shards, of five, two, four and one image
SPEC = f"""
autolabel_type: grounding_dino+mal
results_dir: results
shard_size: {SHARD_SIZE}
gpu_ids: [0]
grounding_dino:
  checkpoint: fake
  visualize: true
  dataset: {{image_dir: ../images, class_names: [cat, dog, cow]}}
  iteration_scheduler: [{{conf_threshold: 0.7}}, {{conf_threshold: 0.5}}, {{conf_threshold: 0.3}}]
mal: {{checkpoint: fake, visualize: true}}
"""
MASKS_SPEC = f"""
autolabel_type: mal
results_dir: results
shard_size: {SHARD_SIZE}
gpu_ids: [0]
mal:
  checkpoint: fake
  visualize: true
  inference: {{ann_path: ../boxes.json, img_dir: ../images, label_dump_path: masks.json}}
"""
SOME_FAILED = 3  # the exit status of every whole run here: one image is broken

# What a resumed run may tell otherwise than an undisturbed one: how long it took, and what it had not to ask again.
COSTS = {"seconds", "forwards", "reused", "reused_shards", "boxes_forwarded"}


def paint_dataset(folder: Path, paint_picture: Callable[..., Path]) -> None:
    """Twelve pictures with none to three objects, a broken one, and a COCO file with boxes for them."""
    objects = [("cat", 0.95, (5, 5, 25, 20)), ("dog", 0.65, (30, 5, 50, 20)), ("cow", 0.45, (10, 25, 40, 40))]
    keys = [f"{'ab'[i % 2]}/{i} 標.png" for i in range(12)]
    for i, key in enumerate(keys):
        fainter = [(name, score - 0.013 * i, box) for name, score, box in objects[: i % 4]]
        paint_picture(folder / "images" / key, fainter, (60 + i, 45))
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    images = [{"id": i, "file_name": key} for i, key in enumerate([*keys, "broken.jpg"])]
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": 1, "bbox": [5 + k, 5, 20, 15 + k]}
        for i in range(len(images))
        for k in range(i % 3)
    ]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "boxes.json").write_text(json.dumps(document))


# --- runs


@dataclass(frozen=True)
class Attempt:
    """A process that has ended: its exit status, negative for a signal, and what it printed."""

    status: int
    output: str


@dataclass
class Driver:
    """The process of kill_points.py, and the log that its attempts write."""

    process: subprocess.Popen[str]
    log: Path
    _read: int = 0

    def attempt(self, folder: Path, **how: Any) -> Attempt:
        """Run `autolabel generate -e spec.yaml` in `folder`; `how` it is disturbed is said in kill_points.py."""
        output = self.log.with_name("output.txt")
        arguments = ["generate", "-e", "spec.yaml"]
        asked = {"arguments": arguments, "folder": str(folder), "output": str(output), **how}
        assert self.process.stdin
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return Attempt(self.answer()["status"], output.read_text(encoding="utf-8"))

    def answer(self) -> dict[str, Any]:
        """The next line that the driver prints."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the driver has ended"
        answered: dict[str, Any] = json.loads(line)
        return answered

    def told(self) -> "Told":
        """What the log has got since it was last asked."""
        with self.log.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
        return Told.of(lines)


@dataclass(frozen=True)
class Told:
    """What a log says of one attempt or several.

    `events` are in their order, `disturbed` those of them that were, and `forwards` how much each model was asked.
    `asked_again` are the questions that a model was asked though the answer was published.
    """

    events: tuple[str, ...]
    disturbed: tuple[str, ...]
    forwards: Counter[str]
    asked_again: tuple[str, ...]

    @classmethod
    def of(cls, lines: list[str]) -> "Told":
        parts = [line.split(" ", 1) for line in lines]
        forwards: Counter[str] = Counter()
        for model, number in (rest.split(" ") for kind, rest in parts if kind == "forward"):
            forwards[model] += int(number)
        events, disturbed = (tuple(rest for kind, rest in parts if kind == wanted) for wanted in ("event", "disturbed"))
        return cls(events, disturbed, forwards, tuple(asked_again(lines)))


def asked_again(lines: Sequence[str]) -> Iterator[str]:
    """The questions that are in a log (see `KillPoints`) after the artifact that answers them has been published.

    An artifact answers what was asked since the one before it: a shard is published before the next one is looked at.
    """
    waiting: list[str] = []
    answered: set[str] = set()
    for kind, *parts in (line.split(" ", 3) for line in lines):
        if kind == "attempt":
            waiting = []
        elif kind == "event" and parts[1] == "before-forward":
            waiting.append(parts[2])
            if parts[2] in answered:
                yield parts[2]
        elif kind == "event" and parts[1] == "after-replace" and parts[2].endswith(".manifest.json"):
            answered.update(waiting)
            waiting = []


@contextmanager
def driver(folder: Path, server: Mapping[str, str], *wrapper: str) -> Iterator[Driver]:
    """The driver with its log in `folder`, while the context is open; `wrapper` is a command that runs it."""
    log = folder / "log.txt"
    log.touch()
    command = [*wrapper, sys.executable, str(Path(__file__).with_name("kill_points.py")), str(log)]
    environment = {**server, "AUTOLABEL_DEVICE": "cpu", "COLUMNS": "400"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    ) as process:
        started = Driver(process, log)
        assert started.answer() == {"ready": True}
        yield started
        assert process.stdin
        process.stdin.close()


# --- events


Moment = tuple[str, int]  # the name of an event, and which one of that name


def one_of_each_step(events: Sequence[str], seed: int) -> list[Moment]:
    """An event of every step, in the order in which they happen; in a step, all kinds of events are equally likely.

    Folders are left out: one that is made stays made, so that the event does not come again in the next attempt.
    """
    draw = np.random.default_rng(seed)
    numbered: defaultdict[str, defaultdict[str, list[tuple[int, Moment]]]] = defaultdict(lambda: defaultdict(list))
    seen: Counter[str] = Counter()
    for at, event in enumerate(events):
        seen[event] += 1
        step, kind, _ = event.split(" ", 2)
        if not kind.endswith("mkdir"):
            numbered[step][kind].append((at, (event, seen[event])))
    chosen = []
    for _, kinds in sorted(numbered.items()):
        of_kind = kinds[str(draw.choice(sorted(kinds)))]
        chosen.append(of_kind[draw.integers(len(of_kind))])
    return [moment for _, moment in sorted(chosen)]


def step_of(event: str) -> str:
    """The step in which an event happened."""
    return event.split(" ", 1)[0]


# --- an undisturbed run, and what others are held to


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing disturbs, what it does on the way, and what a second run over its results does."""

    results: Path
    delivered: Files
    cache: Files
    record: Any
    first: Told
    second: Told


def run_undisturbed(driver: Driver, folder: Path) -> Undisturbed:
    """Run the spec in `folder` twice."""
    told = []
    for _ in range(2):
        done = driver.attempt(folder)
        assert done.status == SOME_FAILED, done.output
        told.append(driver.told())
    results = folder / "results"
    cache = artifacts(results)
    return Undisturbed(results, delivered(results), cache, run_record(results), *told)


def write_spec(folder: Path, spec: str) -> Path:
    """A new folder in which a spec can be run."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(spec)
    return folder


def deviations(results: Path, whole: Undisturbed) -> dict[str, object]:
    """In what results are not as those of an undisturbed run: nothing where they are.

    The same bytes for the user, the same artifacts, the same account but for its costs, one course, nothing left over.
    """
    record = run_record(results)
    found: dict[str, object] = {
        "delivered": differing(delivered(results), whole.delivered),
        "artifacts": differing(artifacts(results), whole.cache),
        "unverified": unverified(artifacts(results)),
        "run.json": {} if record == whole.record else record,
        "status.json": [status for status in statuses(results) if status not in ("STARTED", "SUCCESS")],
        "hidden": hidden(results),
    }
    return {what: wrong for what, wrong in found.items() if wrong}


def overpaid(told: Told, whole: Undisturbed, met: Mapping[str, int]) -> dict[str, object]:
    """What runs asked too much: nothing where a kill cost the shard that it met at most.

    `met` says how many kills met each model at work.
    """
    extra = {model: told.forwards[model] - whole.first.forwards[model] for model in met}
    largest = largest_shards(whole)
    beyond = {model: n for model, n in extra.items() if not 0 <= n <= met[model] * largest[model]}
    return {**beyond, **({"asked again": told.asked_again} if told.asked_again else {})}


def at_work(disturbed: Sequence[str]) -> dict[str, int]:
    """How many of the disturbances met the detector at work, and how many the segmenter."""
    steps = [step_of(event) for event in disturbed]
    return {"detector": steps.count("infer"), "segmenter": steps.count("segment")}


def largest_shards(whole: Undisturbed) -> dict[str, int]:
    """The forwards of the largest shard: images for the detector, boxes for the segmenter."""
    document = json.loads(whole.delivered.get("annotations.json") or whole.delivered["masks.json"])
    boxes = Counter(row["image_id"] for row in document["annotations"])
    images = [Keyed(row["file_name"], boxes[row["id"]]) for row in document["images"]]
    shards = list(into_shards(images, SHARD_SIZE))
    return {"detector": max(map(len, shards)), "segmenter": max(sum(i.boxes for i in shard) for shard in shards)}


@dataclass(frozen=True)
class Keyed:
    """An image and how many boxes it has."""

    key: str
    boxes: int


def half_written(results: Path, whole: Undisturbed) -> list[str]:
    """What is neither absent nor whole under its own name; status.json alone is written line by line."""
    cache = artifacts(results)
    torn = [path for path, found in cache.items() if found != whole.cache.get(path)] + unverified(cache)
    for path, found in delivered(results).items():
        if path.endswith((".json", ".jsonl")):
            try:
                [json.loads(text) for text in (found.splitlines() if path.endswith("l") else [found])]
            except ValueError:
                torn.append(path)
        elif found != whole.delivered.get(path):
            torn.append(path)
    return torn


# --- files


def files_below(folder: Path) -> Files:
    """All files below a folder by their paths relative to it, but for hidden ones."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def delivered(results: Path) -> Files:
    """What a user gets, but for what tells of the run itself: the labels, failures and pictures."""
    told = ("cache/", "run.json", "status.json")
    return {path: payload for path, payload in files_below(results).items() if not path.startswith(told)}


def run_record(results: Path) -> Any:
    """What `run.json` holds, without what a resumed run tells otherwise."""
    return _without_costs(json.loads((results / "run.json").read_text(encoding="utf-8")))


def _without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_costs(part) for name, part in value.items() if name not in COSTS}
    return [_without_costs(part) for part in value] if isinstance(value, list) else value


def statuses(results: Path) -> list[str]:
    """The course of the last run."""
    return [json.loads(line)["status"] for line in (results / "status.json").read_text().splitlines()]


def hidden(folder: Path) -> list[str]:
    """The hidden files below a folder: the temporary ones of a run, and its claim."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def artifacts(results: Path) -> Files:
    """The artifacts in the cache of a run, without the register of runs, which names the folder of each."""
    return {path: payload for path, payload in files_below(results / "cache").items() if not path.startswith("runs/")}


def unverified(cache: Files) -> list[str]:
    """The manifests among artifacts whose data is not what they say."""
    wrong = []
    for path, payload in cache.items():
        if path.endswith(".manifest.json"):
            manifest = json.loads(payload)
            data = cache.get(f"{path.removesuffix('.manifest.json')}.{manifest['sha256'][:16]}.json", b"")
            if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                wrong.append(path)
    return wrong


def differing(found: Files, expected: Files) -> list[str]:
    """The paths under which the files are not the same."""
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
