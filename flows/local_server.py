"""One Prefect server per home: found running, or started once and shared by every run and worker that follows.

Prefect's own per-run server fails when two runs start at once, is orphaned by a kill, and is started again by every
worker process; and a cold one takes half a minute. `ensure_server` must run before `prefect` is imported, which reads
its settings from the environment at import.
"""

import fcntl
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from tasks.domain.addresses import without_password
from tasks.domain.errors import ServerError

START_TIMEOUT_SECONDS = 180.0  # a first start migrates the database: 19-46 s on two loaded cores
POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0  # for a health check; a loaded server answers in well under one

# The recorder's batches make 600 task runs cost the server 7 s of CPU in place of 28 s (Prefect 3.8.8, SQLite).
SERVER_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "DO_NOT_TRACK": "1",
}
# The console belongs to the progress bars, and to our own words for an error; the UI has all the logs.
CLIENT_ENVIRONMENT = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks",
    "PREFECT_LOGGING_ROOT_LEVEL": "INFO",
    "DO_NOT_TRACK": "1",
}


# Python warns of a process that is forgotten while it runs; ours is meant to outlive us.
_started: list[subprocess.Popen[bytes]] = []


def ensure_server() -> str:
    """The API address of the server that this process shall use: the configured one, a running one, or a new one.

    Raises:
        ServerError: the configured server cannot be reached, or a new one did not come up; the message names its log.
    """
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if configured := os.environ.get("PREFECT_API_URL") or _profiled(home):
        _refuse_unreachable(configured)
        os.environ.update({**CLIENT_ENVIRONMENT, **os.environ})
        return configured
    with _lock(home / "autolabel-server.lock"):
        api = _running(home) or _start(home)
    os.environ.update({**CLIENT_ENVIRONMENT, **os.environ}, PREFECT_HOME=str(home), PREFECT_API_URL=api)
    return api


def _profiled(home: Path) -> str | None:
    """The PREFECT_API_URL of the active profile, as `prefect config set` writes it."""
    try:
        content = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or content["active"]
        return str(content["profiles"][active]["PREFECT_API_URL"])
    except (OSError, ValueError, KeyError, TypeError):  # no profiles, or none that says so
        return None


def _refuse_unreachable(api: str) -> None:
    """Raise ServerError where nobody answers; whatever the answer is, Prefect's client can make more of it."""
    try:
        urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # Prefect has certificates of its own
            raise ServerError(
                f"no Prefect server answers at PREFECT_API_URL={without_password(api)}: {reason}; start it, or unset "
                "PREFECT_API_URL to use a local one"
            ) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the file's lock; the kernel lets go of it when the process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ServerError(
            f"{path} cannot be written: {error.strerror}; set PREFECT_HOME to a folder of yours"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _running(home: Path) -> str | None:
    """The API address that an earlier start left behind, if a server answers there."""
    try:
        api = str(json.loads((home / "autolabel-server.json").read_text())["api"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return api if _healthy(api) else None


def _healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - the address is our own http one
            return bool(answer.status == 200)
    except urllib.error.HTTPError as answer:
        answer.close()
        return False
    except (OSError, ValueError, HTTPException):  # what took the port of a server that is gone may speak anything
        return False


def _start(home: Path) -> str:
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    log = home / "autolabel-server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"],
            env=os.environ | SERVER_ENVIRONMENT | _address(home, port, api),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C of the run must not end the server that other runs share
        )
    _started.append(process)
    _wait_until_healthy(process, api, log)
    written = home / "autolabel-server.json.new"
    written.write_text(json.dumps({"api": api, "pid": process.pid}))
    written.replace(home / "autolabel-server.json")
    return api


def _address(home: Path, port: int, api: str) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": api,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], api: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not _healthy(api):
        if process.poll() is not None:
            raise ServerError(f"the Prefect server ended with status {process.returncode} at its start; see {log}")
        if time.monotonic() > deadline:
            process.terminate()
            raise ServerError(
                f"no Prefect server answered at {api} within {START_TIMEOUT_SECONDS:.0f} s; see {log}, "
                "or set PREFECT_API_URL to a server of yours"
            )
        time.sleep(POLL_SECONDS)
