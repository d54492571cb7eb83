"""Settings that every test runs under, a real Prefect server started once, and pictures for the fake detector."""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# A deadline measures the machine, not the code.
settings.register_profile("autolabel", deadline=None)
settings.load_profile("autolabel")

Objects = Sequence[tuple[str, float, tuple[int, int, int, int]]]  # phrase, score, box


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment in which a command uses the session's server; this process uses it too."""
    from flows import local_server

    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(home))
        environment = dict(os.environ)
        api = local_server.ensure_server()
        # Imported here: unit tests need no Prefect, and it takes a second.
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: api}):
            yield {**environment, "PREFECT_API_URL": api}
            _send_what_is_queued()
    pid = json.loads((home / "autolabel-server.json").read_text())["pid"]
    (process,) = (process for process in local_server._started if process.pid == pid)
    process.terminate()
    process.wait(timeout=60)


def _send_what_is_queued() -> None:
    """Let Prefect's background threads deliver logs and events; without their server they retry for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def drain() -> None:
        for worker in (APILogWorker.instance().drain(), EventsWorker.drain_all()):
            if inspect.isawaitable(worker):
                await worker

    run_coro_as_sync(drain())


@pytest.fixture(scope="session")
def paint_picture() -> Callable[..., Path]:
    """Paints a grey picture of `size` (width, height) at a path, with a rectangle for every object."""
    import numpy as np
    from PIL import Image

    from tasks.models.fake import paint

    def painted(path: Path, objects: Objects, size: tuple[int, int] = (200, 150)) -> Path:
        pixels = np.full((size[1], size[0], 3), 128, np.uint8)
        for phrase, score, (left, top, right, bottom) in objects:
            pixels[top:bottom, left:right] = paint(phrase, score)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return painted
