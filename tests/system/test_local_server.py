"""The shared Prefect server: found, started once however many ask for it, and told about where it cannot start."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from flows import local_server
from flows.local_server import CLIENT_ENVIRONMENT, ensure_server
from tasks.domain.errors import ServerError

DISCOVERY, LOG = "autolabel-server.json", "autolabel-server.log"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A fresh PREFECT_HOME and no server configured; the environment that a test leaves behind is undone."""
    for name in ("PREFECT_API_URL", *CLIENT_ENVIRONMENT):
        monkeypatch.setenv(name, "")  # only so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Prefect(BaseHTTPRequestHandler):
    """What answers like a server: 200 to a health check at /api, 401 at /closed, and 404 to all else."""

    def do_GET(self) -> None:
        self.send_response({"/api/health": 200, "/closed/health": 401}.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not to the console."""


@pytest.fixture(scope="module")
def stand_in() -> Iterator[str]:
    """The address of something that answers like a Prefect server."""
    with HTTPServer(("127.0.0.1", 0), Prefect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def instead_of_python(tmp_path, monkeypatch):
    """Puts a shell script in the place of the interpreter that would run the server."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


# --- a server of the user's


@pytest.mark.parametrize("path", ["api", "closed"])
def test_a_configured_server_is_used_whatever_it_answers(path, home, stand_in, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"{stand_in}/{path}")
    assert ensure_server() == f"{stand_in}/{path}"
    assert not home.exists()


def test_a_configured_server_that_does_not_answer_is_named(home, monkeypatch):
    api = f"http://127.0.0.1:{unused_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", api)
    with pytest.raises(ServerError, match=f"PREFECT_API_URL={api}: .*refused; start it, or unset PREFECT_API_URL"):
        ensure_server()


def test_the_server_of_the_active_profile_is_used(home, stand_in, monkeypatch):
    home.mkdir()
    profile = f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{stand_in}/api"\n[profiles.other]\n'
    (home / "profiles.toml").write_text(profile)
    assert ensure_server() == f"{stand_in}/api"
    assert not (home / DISCOVERY).exists()


def test_the_console_is_ours_unless_the_user_says_otherwise(home, stand_in, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"{stand_in}/api")
    monkeypatch.setenv("PREFECT_LOGGING_ROOT_LEVEL", "DEBUG")
    ensure_server()
    found = {name: os.environ.get(name) for name in CLIENT_ENVIRONMENT}
    assert found == {**CLIENT_ENVIRONMENT, "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG"}


# --- a server found


def test_a_server_that_an_earlier_run_left_is_used(home, stand_in, instead_of_python):
    instead_of_python("exit 9")  # none is started
    home.mkdir()
    (home / DISCOVERY).write_text(json.dumps({"api": f"{stand_in}/api", "pid": 1}))
    assert ensure_server() == os.environ["PREFECT_API_URL"] == f"{stand_in}/api"


STALE = [
    "",
    "[]",
    "{}",
    '{"api": null}',
    '{"api": "nonsense"}',
    '{"api": "STAND_IN/other"}',
    '{"api": "http://UNUSED"}',
]


@pytest.mark.parametrize("stale", STALE)
def test_what_does_not_lead_to_a_server_counts_as_none(stale, home, stand_in, instead_of_python):
    instead_of_python("exit 9")
    home.mkdir()
    unused = f"127.0.0.1:{unused_port()}/api"
    (home / DISCOVERY).write_text(stale.replace("STAND_IN", stand_in).replace("UNUSED", unused))
    with pytest.raises(ServerError, match="ended with status 9 at its start"):
        ensure_server()


def test_a_port_that_something_else_took_leads_to_no_server(home, instead_of_python):
    instead_of_python("exit 9")
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=greet, daemon=True).start()
        (home / DISCOVERY).write_text(json.dumps({"api": f"http://127.0.0.1:{other.getsockname()[1]}/api"}))
        with pytest.raises(ServerError, match="ended with status 9 at its start"):
            ensure_server()


# --- a server that cannot start


def test_a_server_that_ends_at_its_start_is_told_with_its_log(home, instead_of_python):
    instead_of_python('echo "no such table: flow" >&2; exit 3')
    with pytest.raises(ServerError, match=f"ended with status 3 at its start; see {home / LOG}"):
        ensure_server()
    assert (home / LOG).read_text() == "no such table: flow\n"
    assert not (home / DISCOVERY).exists()


def test_a_server_that_never_answers_is_stopped_and_told_with_its_log(home, instead_of_python, monkeypatch):
    monkeypatch.setattr(local_server, "START_TIMEOUT_SECONDS", 0.3)
    instead_of_python("exec sleep 60")
    with pytest.raises(
        ServerError, match=rf"(?s)no Prefect server answered .*see {home / LOG}, or set PREFECT_API_URL"
    ):
        ensure_server()
    assert local_server._started[-1].wait(timeout=10) == -signal.SIGTERM


def test_a_home_that_cannot_be_written_is_named(home, monkeypatch):
    home.write_text("a file where the folder should be")
    with pytest.raises(ServerError, match=rf"{home}.*set PREFECT_HOME"):
        ensure_server()


# --- two at once

ASK = "import os, flows.local_server as local; print(local.ensure_server(), len(local._started))"


@dataclass(frozen=True)
class Race:
    """What two processes got that asked at once in a home with a stale discovery file: (address, servers started)."""

    answers: list[tuple[str, int]]
    discovery: dict[str, object]
    stale: str


@pytest.fixture(scope="module")
def race(tmp_path_factory) -> Iterator[Race]:
    home = tmp_path_factory.mktemp("race")
    stale = f"http://127.0.0.1:{unused_port()}/api"
    (home / DISCOVERY).write_text(json.dumps({"api": stale, "pid": 0}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment |= {"PREFECT_HOME": str(home)}
    asking = [
        subprocess.Popen([sys.executable, "-c", ASK], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300)[0].split() for process in asking]
    discovery = json.loads((home / DISCOVERY).read_text())
    yield Race([(api, int(started)) for api, started in told], discovery, stale)
    os.kill(discovery["pid"], signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.prefect
def test_two_that_ask_at_once_get_one_server(race):
    assert {api for api, _ in race.answers} == {race.discovery["api"]}
    assert sorted(started for _, started in race.answers) == [0, 1]


@pytest.mark.slow
@pytest.mark.prefect
def test_a_stale_discovery_file_is_replaced_by_one_that_leads_to_a_server(race):
    assert race.discovery["api"] != race.stale
    with urlopen(f"{race.discovery['api']}/health", timeout=30) as answer:  # noqa: S310
        assert answer.status == 200


@pytest.mark.slow
@pytest.mark.prefect
def test_the_server_outlives_who_started_it(race):
    os.kill(int(str(race.discovery["pid"])), 0)
