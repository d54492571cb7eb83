"""Draw scenes, train the bundled tiny Mask Auto-Labeler on their boxes alone, and export it.

    python infra/training/train_mal_scenes.py --out tasks/models/bundled/mal_scenes

Started again with the same --work folder it goes on from its last checkpoint.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from flows.cli import run  # noqa: E402
from tasks.domain.scenes import SHAPES, Scene, draw_scene  # noqa: E402
from tasks.formats.scene_truth import dump_scene_truth  # noqa: E402

SPEC = Path(__file__).with_name("mal_scenes.yaml")
# Seeds below 10 000 belong to the demo and to tests; training sees neither them nor the validation's.
TRAINING_SEED, VALIDATION_SEED = 2_000_000, 500_000
VALIDATION_SCENES = 100
SIZES = ((160, 160), (192, 160), (160, 192))  # width x height in pixels, in turns, as in the demo


def main() -> int:
    """Draw what is not drawn yet, train, and export; the exit status of the training."""
    options = _options()
    train, validation = options.work / "train", options.work / "validation"
    _draw(train, range(TRAINING_SEED, TRAINING_SEED + options.scenes), masks=False)
    _draw(validation, range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_SCENES), masks=True)
    status = run(["train-mal", "-e", str(SPEC), *_places(options.work, train, validation), *options.overrides])
    if status == 0:
        _export(options.work / "run" / "mal", options.out)
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported network")
    parser.add_argument("--work", type=Path, default=Path("training-mal"), help="folder for scenes and checkpoints")
    parser.add_argument("--scenes", type=int, default=2500, help="how many are drawn to train on")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"changes to {SPEC.name}")
    return parser.parse_args()


def _places(work: Path, train: Path, validation: Path) -> list[str]:
    return [
        f"results_dir={work / 'run'}",
        f"dataset.train_ann_path={train / 'annotations.json'}",
        f"dataset.train_img_dir={train / 'images'}",
        f"dataset.val_ann_path={validation / 'annotations.json'}",
        f"dataset.val_img_dir={validation / 'images'}",
    ]


def _draw(folder: Path, seeds: Sequence[int], *, masks: bool) -> None:
    """Draw a scene for every seed into `folder`/images; the file with the boxes comes last and says it is done."""
    annotations = folder / "annotations.json"
    if annotations.exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        drawn = zip(seeds, pool.map(_scene, seeds, chunksize=50), strict=True)
        scenes = [(f"scene_{seed}.png", scene) for seed, scene in drawn]
    for name, scene in scenes:
        buffer = io.BytesIO()
        Image.fromarray(scene.pixels).save(buffer, format="PNG")
        (folder / "images" / name).write_bytes(buffer.getvalue())
    truth = json.loads(dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))
    annotations.write_text(json.dumps(truth if masks else _boxes_only(truth)), encoding="utf-8")


def _scene(seed: int) -> Scene:
    width, height = SIZES[seed % len(SIZES)]
    return draw_scene(seed, width=width, height=height)


def _boxes_only(truth: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
    """The truth without masks, and with the areas of the boxes: what a person who drew boxes would have."""
    annotations = [
        {key: row[key] for key in ("id", "image_id", "category_id", "bbox", "iscrowd")} for row in truth["annotations"]
    ]
    return truth | {"annotations": annotations}


def _export(trained: Path, out: Path) -> None:
    """The trained student and teacher in half precision."""
    import torch

    from tasks.models.mal.checkpoints import load_network, save_checkpoint

    crop_size = json.loads((trained / "config.json").read_text(encoding="utf-8"))["crop_size"]
    networks = {name: load_network(trained, name) for name in ("student", "teacher")}
    save_checkpoint(out, networks, crop_size, dtype=torch.float16)


if __name__ == "__main__":
    sys.exit(main())
