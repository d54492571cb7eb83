"""How good masks from boxes are on real images: the box itself, its ellipse, the MAL that ships, and one trained there.

    python benchmarks/masks.py --data DATA --minutes 5

DATA holds folders with `annotations.json` (COCO with masks) and `images/`. Masks are made from the boxes of the ground
truth, and compared with its masks. The trained networks are tiny, start from the one that ships or from random weights,
and see the boxes of that folder alone; what they reach on these very boxes is what a user's own set would get. Writes a
Markdown table and a JSON file beside this script.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
SPEC = HERE.parent / "infra" / "training" / "mal_scenes.yaml"
SHIPPED = HERE.parent / "tasks" / "models" / "bundled" / "mal_scenes"
SETS = ("nuts", "nuclei", "coco_mini")
COLUMNS = ("data", "objects", "masks", "mIoU", "small", "medium", "large", "boxes/s", "training")
STEPS_A_MINUTE = 250  # of 16 boxes, measured on one thread of a shared core (2026-11-22); sets the number of epochs


def main() -> None:
    """Measure every set, each way, through the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(SETS)}")
    parser.add_argument("--minutes", type=float, default=5, help="of every training, roughly (default: 5)")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            for row in measure(options.data / name, Path(folder) / name, options.minutes):
                rows.append(row)
                print(row, flush=True)
                (HERE / "masks.json").write_text(json.dumps(rows, indent=1) + "\n")
                (HERE / "masks.md").write_text(f"# Masks from ground-truth boxes\n\n{as_markdown(rows)}\n")


def measure(data: Path, work: Path, minutes: float) -> Iterator[dict[str, object]]:
    """A row per way to get a mask."""
    report, speed = label(data, work / "shipped", "bundled:mal_scenes")
    for baseline in ("box", "ellipse"):
        yield row(data, baseline, {size: scores[f"miou_of_{baseline}"] for size, scores in report.items()}, report)
    yield row(data, "shipped MAL", {size: scores["miou"] for size, scores in report.items()}, report, speed)
    for how, start in (("fine-tuned", str(SHIPPED)), ("from random weights", None)):
        seconds = train(data, work / how, start, minutes)
        trained, speed = label(data, work / how / "labels", str(work / how / "mal"))
        mious = {size: scores["miou"] for size, scores in trained.items()}
        yield row(data, f"tiny MAL, {how}", mious, trained, speed, f"{seconds / 60:.1f} min")


def row(
    data: Path,
    masks: str,
    mious: Mapping[str, object],
    report: Mapping[str, Mapping[str, object]],
    speed: float | None = None,
    training: str = "-",
) -> dict[str, object]:
    """A row of the table."""
    values = (mious["overall"], mious["small"], mious["medium"], mious["large"], speed, training)
    return dict(zip(COLUMNS, (data.name, report["overall"]["truths"], masks, *values), strict=True))


def label(data: Path, results: Path, checkpoint: str) -> tuple[dict[str, dict[str, object]], float]:
    """The scores of masks of the ground truth's boxes, overall and by size, and the boxes a second."""
    keys = {
        "results_dir": results,
        "mal.segmenter": "mal",
        "mal.checkpoint": checkpoint,
        "mal.visualize": False,
        "mal.inference.ann_path": data / "annotations.json",
        "mal.inference.img_dir": data / "images",
        "mal.train.mask_thres": [0.5],
    }
    autolabel("generate", "-e", "box2seg", *overrides(keys))
    labels, truth = results / "masks.json", data / "annotations.json"
    report = json.loads(autolabel("evaluate", str(labels), "--ground-truth", str(truth), "--masks", "--json"))
    run = json.loads((results / "run.json").read_text())["masks"]
    return {"overall": report["overall"], **report["sizes"]}, run["boxes"] / run["seconds"]


def train(data: Path, results: Path, start: str | None, minutes: float) -> float:
    """Train on the boxes of the set; the seconds that it took."""
    boxes = len(json.loads((data / "annotations.json").read_text())["annotations"])
    steps = max(1, boxes // 16)
    keys = {
        "results_dir": results,
        "dataset.train_ann_path": data / "annotations.json",
        "dataset.train_img_dir": data / "images",
        "dataset.val_ann_path": "",
        "dataset.val_img_dir": "",
        "train.num_epochs": max(2, round(minutes * STEPS_A_MINUTE / steps)),
        "train.pretrained_model_path": start or "",
    }
    started = time.monotonic()
    autolabel("train-mal", "-e", str(SPEC), *overrides(keys))
    return time.monotonic() - started


def overrides(keys: Mapping[str, object]) -> list[str]:
    """The keys as the command line takes them."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in keys.items()}
    return [f"{key}={text}" for key, text in texts.items()]


def autolabel(*arguments: str) -> str:
    """What the command prints; it has to succeed."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)).stdout


def as_markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a Markdown table, rates with three decimals."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(as_cell, row.values()))} |" for row in rows]
    return "\n".join(lines)


def as_cell(value: object) -> str:
    """A rate with three decimals, a dash for what there is none of."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
