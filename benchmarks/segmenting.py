"""Boxes a second and peak memory of making masks: batched as a run does it, against one box at a time.

    python benchmarks/segmenting.py

Draws 50 pictures with 10 boxes each, and makes their masks with the network that ships:

* one box at a time: for every box the picture is read and decoded, the network sees one crop, and its probabilities are
  pasted into a plane of the whole picture (how the published code does it);
* a run: the steps of `autolabel generate`, each picture decoded once, boxes of several pictures together, masks stored;
* a run over ten times the pictures, for its memory.

Each way has a process of its own, several times in turns; the table tells the medians. Writes it beside this script.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.domain.scenes import draw_scene

HERE = Path(__file__).parent
PICTURES, BOXES = 50, 10
WIDTH, HEIGHT = 640, 480  # pixels
WAYS = {"one box at a time": PICTURES, "a run": PICTURES, "a run, 10x the pictures": 10 * PICTURES}
COLUMNS = ("how", "pictures", "boxes", "seconds", "boxes/s", "ratio", "peak MiB")


def main() -> None:
    """Draw, measure every way in turns, and write the table; or, in a process of its own, measure one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="bundled:mal_scenes", help="of the segmenter (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of every way (default: 3)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options.checkpoint)))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        one_round = partial(in_own_process, folder=folder, checkpoint=options.checkpoint)
        rounds = [{way: one_round(way) for way in WAYS} for _ in range(options.repeats)]
    table = as_markdown(rounds)
    print(table)
    (HERE / "segmenting.md").write_text(f"# Making masks ({options.checkpoint}, CPU)\n\n{table}\n")


def draw(folder: Path) -> None:
    """Pictures as JPEG, and a COCO file with random boxes for each number of pictures."""
    rng = np.random.default_rng(0)
    for number in range(max(WAYS.values())):
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(number, width=WIDTH, height=HEIGHT).pixels).save(buffer, "JPEG", quality=90)
        (folder / f"{number:04d}.jpg").write_bytes(buffer.getvalue())
    for count in set(WAYS.values()):
        images = [{"id": n, "file_name": f"{n:04d}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(count)]
        boxes = [random_box(rng) for _ in range(count * BOXES)]
        rows = [{"id": n, "image_id": n // BOXES, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "object"}]}
        (folder / f"{count}.json").write_text(json.dumps(document))


def random_box(rng: np.random.Generator) -> list[int]:
    """A box [x, y, width, height] of 24 to 160 pixels a side, inside the picture."""
    width, height = (int(side) for side in rng.integers(24, 161, size=2))
    return [int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height)), width, height]


def in_own_process(way: str, folder: str, checkpoint: str) -> dict[str, float]:
    """What `measure` tells, and how much memory its process had at most."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--checkpoint", checkpoint]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return measured


def measure(way: str, folder: Path, checkpoint: str) -> dict[str, float]:
    """Seconds without loading the network, and the peak of the process in MiB."""
    from tasks.models import SegmenterConfig, load_segmenter

    config = SegmenterConfig("mal", checkpoint, thresholds=(0.5, 0.5, 0.5))
    load_segmenter(config, device="cpu")  # both ways start with everything imported
    started = time.perf_counter()
    if way == "one box at a time":
        one_at_a_time(folder, WAYS[way], checkpoint)
    else:
        as_a_run(folder, WAYS[way], config)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def one_at_a_time(folder: Path, count: int, checkpoint: str) -> None:
    """The plain way: for each box decode, crop, forward, paste into a plane of the whole picture, encode."""
    import torch
    from pycocotools import mask as coco_mask
    from torch.nn import functional

    from tasks.image_files import decode
    from tasks.models.mal import load_network
    from tasks.models.mal.crops import crop_box, crop_image, expand, normalise

    bundled = HERE.parent / "tasks" / "models" / "bundled" / checkpoint.removeprefix("bundled:")
    network, side = load_network(bundled if bundled.is_dir() else checkpoint), crop_size(bundled)
    masks = []
    for row in json.loads((folder / f"{count}.json").read_text())["annotations"]:
        x, y, width, height = row["bbox"]
        box = (float(x), float(y), float(x + width), float(y + height))
        pixels = decode((folder / f"{row['image_id']:04d}.jpg").read_bytes())
        window = expand(box, (0.3,) * 4)
        with torch.inference_mode():
            logits = network(normalise([crop_image(pixels, window, side)]), torch.tensor([box]))
            scaled = functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False).sigmoid()
            inside = torch.tensor(crop_box(box, window, *pixels.shape[:2], side, wrap=False))
            found = functional.interpolate(scaled * inside, (window.height, window.width), mode="bilinear")[0, 0]
        rows = slice(max(0, window.top), min(HEIGHT, window.bottom))
        columns = slice(max(0, window.left), min(WIDTH, window.right))
        plane = np.zeros((HEIGHT, WIDTH), dtype=np.float64)
        plane[rows, columns] = found[
            rows.start - window.top : rows.stop - window.top, columns.start - window.left : columns.stop - window.left
        ]
        masks.append(coco_mask.encode(np.asfortranarray(plane > 0.5, dtype=np.uint8)))


def crop_size(checkpoint: Path) -> int:
    """The side of the crop that a network was trained with; 512 for the published ones."""
    settings = checkpoint / "config.json"
    return int(json.loads(settings.read_text())["crop_size"]) if settings.exists() else 512


def as_a_run(folder: Path, count: int, config: object) -> None:
    """The steps of a mask run one after the other, from the COCO file to the COCO file, without a server."""
    from tasks.boxed_shards import BoxedShard
    from tasks.export_masks import MaskedShard, MaskExport, write_masks
    from tasks.formats.coco_boxes import load_head
    from tasks.forwarding import Place
    from tasks.image_files import ImageSource
    from tasks.index_images import Indexer, build_named_indexes
    from tasks.models import segmenter_digest
    from tasks.recall import Recall
    from tasks.segment import MaskQuestion, segment_shards
    from tasks.shard_boxes import CocoFile, build_boxes
    from tasks.storage.folder import Folder
    from tasks.store import ArtifactStore

    with tempfile.TemporaryDirectory() as results:
        store, source = ArtifactStore(f"{results}/cache"), ImageSource((str(folder),))
        dataset = build_boxes(store, CocoFile(str(folder / f"{count}.json")), shard_size=64)
        recall = Recall(store)
        indexes = build_named_indexes(Indexer(source, store, recall), dataset.shards)
        shards = [BoxedShard(rows, index) for rows, (index, _) in zip(dataset.shards, indexes, strict=True)]
        question, place = MaskQuestion(config, segmenter_digest(config)), Place(source, "cpu", 4, 2)
        made = segment_shards(store, shards, question, place, recall)
        masked = [MaskedShard(shard, one.masks) for shard, one in zip(shards, made, strict=True)]
        target = Folder(results)
        export = MaskExport(store, target, target, "masks.json", source, False, False, False)  # noqa: FBT003
        write_masks(export, load_head(store.read(dataset.head)), masked)


def as_markdown(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """A row per way; the ratio is of the boxes a second to those of the first way, in the same round."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for way, pictures in WAYS.items():
        seconds = statistics.median(measured[way]["seconds"] for measured in rounds)
        peak = statistics.median(measured[way]["peak"] for measured in rounds)
        share = pictures / PICTURES
        ratio = statistics.median(
            share * measured["one box at a time"]["seconds"] / measured[way]["seconds"] for measured in rounds
        )
        speed = pictures * BOXES / seconds
        cells = (way, pictures, pictures * BOXES, f"{seconds:.1f}", f"{speed:.0f}", f"{ratio:.2f}", f"{peak:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
