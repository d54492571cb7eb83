"""Data sets painted for the fake detector, and specs over them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.spec import ExperimentSpec, validate_spec

TOP_KEYS = ("autolabel_type", "batch_size", "shard_size", "results_dir", "gpu_ids", "mal")


@pytest.fixture
def paint_image(tmp_path: Path, paint_picture: Callable[..., Path]) -> Callable[..., Path]:
    """Paints a picture under images/ by its key; the rest is as for `paint_picture`."""

    def painted(key: str, *objects_and_size: Any) -> Path:
        return paint_picture(tmp_path / "images" / key, *objects_and_size)

    return painted


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., ExperimentSpec]:
    """Makes a spec of the fake detector over images/; keys of `grounding_dino` and `dataset` as given."""

    def made(dataset: Mapping[str, Any], thresholds: Sequence[float] = (0.5, 0.3), **keys: Any) -> ExperimentSpec:
        top = {key: keys.pop(key) for key in TOP_KEYS if key in keys}
        return validate_spec(
            {
                "autolabel_type": "grounding_dino",
                "results_dir": str(tmp_path / "results"),
                **top,
                "grounding_dino": {
                    "checkpoint": "fake",
                    "visualize": False,
                    "iteration_scheduler": [{"conf_threshold": threshold} for threshold in thresholds],
                    "dataset": {"image_dir": str(tmp_path / "images"), **dataset},
                    **keys,
                },
            }
        )

    return made


@pytest.fixture
def write_boxes(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes boxes.json, a COCO file with the boxes of each image by its key: what it holds."""

    def written(boxes: Mapping[str, Sequence[Sequence[float]]], **parts: Any) -> dict[str, Any]:
        keyed = [(key, bbox) for key, of_image in boxes.items() for bbox in of_image]
        ids = {key: number for number, key in enumerate(boxes, start=1)}
        document = {
            "images": [{"id": number, "file_name": key} for key, number in ids.items()],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [
                {"id": 100 + i, "image_id": ids[key], "category_id": 7, "bbox": list(bbox)}
                for i, (key, bbox) in enumerate(keyed)
            ],
            **parts,
        }
        (tmp_path / "boxes.json").write_text(json.dumps(document))
        return document

    return written


@pytest.fixture
def make_mask_spec(tmp_path: Path) -> Callable[..., ExperimentSpec]:
    """Makes a spec of the fake segmenter over boxes.json and images/; keys of `inference` and at the top as given."""

    def made(inference: Mapping[str, Any] | None = None, **top: Any) -> ExperimentSpec:
        where = {"ann_path": str(tmp_path / "boxes.json"), "img_dir": str(tmp_path / "images")}
        mal = {"checkpoint": "fake", **top.pop("mal", {})}
        where |= {"label_dump_path": "masks.json", **(inference or {})}
        return validate_spec({"results_dir": str(tmp_path / "results"), **top, "mal": {**mal, "inference": where}})

    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results_dir of `make_spec`."""
    return tmp_path / "results"
