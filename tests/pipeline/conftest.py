"""A real Prefect server for the tests of this folder, started once, and data sets painted for the fake detector."""

import inspect
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.asyncutils import run_coro_as_sync

from flows.local_server import ensure_server
from tasks.domain.spec import ExperimentSpec, validate_spec
from tasks.models.fake import paint

Objects = Sequence[tuple[str, float, tuple[int, int, int, int]]]  # phrase, score, box


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment in which a command uses the session's server; this process uses it too."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(home))
        api = ensure_server()
        with temporary_settings({PREFECT_API_URL: api}):
            yield {**os.environ, "PREFECT_API_URL": api}
            _send_what_is_queued()
    os.kill(json.loads((home / "autolabel-server.json").read_text())["pid"], signal.SIGTERM)


def _send_what_is_queued() -> None:
    """Let Prefect's background threads deliver logs and events; without their server they retry for a minute."""

    async def drain() -> None:
        for worker in (APILogWorker.instance().drain(), EventsWorker.drain_all()):
            if inspect.isawaitable(worker):
                await worker

    run_coro_as_sync(drain())


@pytest.fixture
def paint_image(tmp_path: Path) -> Callable[..., Path]:
    """Paints a grey PNG of `size` (width, height) under images/, with a rectangle for every object."""

    def painted(key: str, objects: Objects, size: tuple[int, int] = (200, 150)) -> Path:
        pixels = np.full((size[1], size[0], 3), 128, np.uint8)
        for phrase, score, (left, top, right, bottom) in objects:
            pixels[top:bottom, left:right] = paint(phrase, score)
        path = tmp_path / "images" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

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
