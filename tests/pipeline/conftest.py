"""Data sets painted for the fake detector, and specs over them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.domain.spec import ExperimentSpec, validate_spec


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
        top = {key: keys.pop(key) for key in ("batch_size", "shard_size", "results_dir", "gpu_ids") if key in keys}
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
def results(tmp_path: Path) -> Path:
    """The results_dir of `make_spec`."""
    return tmp_path / "results"
