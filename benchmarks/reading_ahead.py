"""How long a detector waits for images that are far away, and what reading ahead makes of it.

    python benchmarks/reading_ahead.py

The detector is a fake that takes its time; the images lie behind a file system that answers every read after `latency`
seconds, as an object store does. All ways are measured in turn, three times, in one process; the median counts.
Writes a table beside this script.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from tasks import infer
from tasks.forwarding import Place
from tasks.image_files import ImageSource
from tasks.index_images import Indexer, build_index
from tasks.infer import Question, infer_shards
from tasks.models import DetectorConfig, load_prompter
from tasks.models.fake import FakeDetector
from tasks.recall import Recall
from tasks.shard_images import build_dataset
from tasks.store import ArtifactStore

HERE = Path(__file__).parent
SHARD_SIZE = 16  # many beginnings of shards, where a reader that starts anew would make the detector wait
REPEATS = 3


class FarAway(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The local disk behind `far://`, which answers every read after `latency` seconds."""

    protocol = "far"
    latency = 0.05
    cachable = False

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """What is in a folder of the local disk."""
        return LocalFileSystem().ls(path, detail=detail, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """The bytes of a local file, late."""
        time.sleep(self.latency)
        return bytes(LocalFileSystem().cat_file(path, start, end, **options))


class Busy(FakeDetector):
    """A detector that sees nothing, and takes its time for it."""

    seconds = 0.02

    def detect(self, images: Any, prompts: Any, *, keep_floor: float, batch_size: int = 1) -> Any:
        """The answers of the fake detector, after `seconds` an image."""
        time.sleep(self.seconds * len(images))
        return super().detect(images, prompts, keep_floor=keep_floor, batch_size=batch_size)


def measured(address: str, read_ahead: int, together: bool) -> float:
    """Seconds that the images of an address take from the first to the last answer, in an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        store = ArtifactStore(cache)
        source, recall = ImageSource((address,)), Recall(store)
        index = [ref for ref, _ in build_index(Indexer(source, store, recall))]
        shards = build_dataset(store, index, {}, ("cat",), SHARD_SIZE).shards
        detector = DetectorConfig("fake")
        question = Question(detector, load_prompter(detector).digest, 0.05, "undetected")
        asked = [(shard.annotations, None) for shard in shards]
        place = Place(source, "cpu", 1, read_ahead)
        started = time.perf_counter()
        for batch in [asked] if together else [[shard] for shard in asked]:
            infer_shards(store, batch, question, place, recall)
        return time.perf_counter() - started


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320, help="how many (default: 320)")
    parser.add_argument("--detector", type=float, default=0.02, metavar="SECONDS", help="for an image (default: 0.02)")
    parser.add_argument("--latency", type=float, default=0.05, metavar="SECONDS", help="of a read (default: 0.05)")
    options = parser.parse_args()
    FarAway.latency, Busy.seconds = options.latency, options.detector
    fsspec.register_implementation("far", FarAway)
    infer.load_detector = lambda *_, **__: Busy()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as images:
        draw(Path(images), options.images)
        ways = {
            "far away, one file at a time": (f"far://{images}", 1, True),
            "far away, 8 ahead within a shard": (f"far://{images}", 8, False),
            "far away, 8 ahead across shards (a run)": (f"far://{images}", 8, True),
            "local disk": (images, 8, True),
        }
        rounds = [{way: measured(*how) for way, how in ways.items()} for _ in range(REPEATS)]
    table = as_markdown(rounds, options.images * options.detector)
    print(table)
    what = f"{options.images} images, {options.detector} s each in the detector, {options.latency} s for a remote read"
    (HERE / "reading_ahead.md").write_text(f"# Waiting for images\n\n{what}, shards of {SHARD_SIZE}.\n\n{table}\n")


def draw(folder: Path, images: int) -> None:
    """Write so many small pictures."""
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")


def as_markdown(rounds: Sequence[Mapping[str, float]], busy: float) -> str:
    """A row for each way: seconds, and which share of them the detector was busy."""
    lines = ["| images | seconds | detector busy |", "|---|---|---|"]
    for way in rounds[0]:
        seconds = statistics.median(one[way] for one in rounds)
        lines.append(f"| {way} | {seconds:.2f} | {busy / seconds:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
