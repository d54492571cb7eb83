"""The command line in processes of its own, and what the session's Prefect server knows about its runs."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def autolabel(server: Mapping[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `autolabel` with the arguments in the folder `cwd`, on the CPU, with a console too wide to break a line."""

    def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=cwd,
            env={**server, "AUTOLABEL_DEVICE": "cpu", "COLUMNS": "400", **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def ask_server(server: Mapping[str, str]) -> Callable[..., list[dict[str, Any]]]:
    """Asks a route of Prefect's API, such as `flow_runs/filter`, with the keywords as the body."""

    def ask(route: str, **body: Any) -> list[dict[str, Any]]:
        request = urllib.request.Request(  # noqa: S310  the address is our own http one
            f"{server['PREFECT_API_URL']}/{route}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            rows: list[dict[str, Any]] = json.load(answer)
            return rows

    return ask
