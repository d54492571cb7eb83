"""Real servers: SSH, and S3 that checks every signature, behind a proxy that breaks what it is told to break.

The clients talk to the proxy (`Proxy`), which hands everything on to moto's server, a process of its own. `Faults` says
what it breaks: one request after the other (`plan`), or a share of all requests by a seed (`mix`).
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from getpass import getuser
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from shutil import which
from threading import Lock, Thread
from typing import Any
from uuid import uuid4

import pytest

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}  # RFC 9110, 7.6.1


@dataclass(frozen=True)
class Answer:
    """The request is answered with this status and S3 error code, and never reaches the server."""

    status: int
    code: str


@dataclass(frozen=True)
class CutUpload:
    """The connection is reset when half of the request's body has come; the server sees nothing of it."""


@dataclass(frozen=True)
class CutDownload:
    """The connection ends behind half of the answer's body."""


@dataclass(frozen=True)
class CutAnswer:
    """The server does what was asked, and the connection is reset before the client hears of it."""


@dataclass(frozen=True)
class Slow:
    """The answer's body comes in ten pieces, over this many seconds in all."""

    seconds: float


Fault = Answer | CutUpload | CutDownload | CutAnswer | Slow
FAULTS: Mapping[str, Fault] = {
    "internal error": Answer(500, "InternalError"),
    "bad gateway": Answer(502, "BadGateway"),
    "slow down": Answer(503, "SlowDown"),
    "too many requests": Answer(429, "TooManyRequests"),
    "upload cut": CutUpload(),
    "download cut": CutDownload(),
    "answer cut": CutAnswer(),
    "slow": Slow(0.2),
    "access denied": Answer(403, "AccessDenied"),
}
PASSING = tuple(fault for name, fault in FAULTS.items() if name != "access denied")


@dataclass
class Faults:
    """What the proxy breaks; the requests so far, as `METHOD /path`, and those that were struck with their faults."""

    asked: list[str] = field(default_factory=list)
    struck: list[tuple[str, Fault]] = field(default_factory=list)
    _planned: list[tuple[Fault, str]] = field(default_factory=list)
    _random: Random = field(default_factory=Random)
    _share: float = 0.0
    _lock: Any = field(default_factory=Lock)

    def plan(self, fault: str, times: int = 1, at: str = "") -> None:
        """Strike the next `times` requests in whose `METHOD /path` the pattern `at` is found with one of FAULTS."""
        with self._lock:
            self._planned += [(FAULTS[fault], at)] * times

    def mix(self, seed: int, share: float) -> None:
        """From now on, strike this share of all requests with the faults that pass, drawn from this seed."""
        with self._lock:
            self._random, self._share = Random(seed), share  # noqa: S311 - to be drawn again, not to be kept secret

    def clear(self) -> None:
        """Break nothing from now on, and forget what was broken."""
        with self._lock:
            self.asked, self.struck, self._planned, self._share = [], [], [], 0.0

    def draw(self, request: str) -> Fault | None:
        """What this request, `METHOD /path`, is struck with."""
        with self._lock:
            fault = self._next(request)
            self.asked.append(request)
            if fault is not None:
                self.struck.append((request, fault))
            return fault

    def _next(self, request: str) -> Fault | None:
        for number, (fault, at) in enumerate(self._planned):
            if re.search(at, request):
                del self._planned[number]
                return fault
        return self._random.choice(PASSING) if self._random.random() < self._share else None


class Proxy(BaseHTTPRequestHandler):
    """Hands a request on to the server of the class, unless a fault strikes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds every answer back for 40 ms
    faults: Faults
    upstream: tuple[str, int]

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        fault = self.faults.draw(f"{self.command} {self.path}")
        if isinstance(fault, CutUpload):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._reset()
            return
        body = self._body()
        if isinstance(fault, Answer):
            document = f"<Error><Code>{fault.code}</Code><Message>as the test wants it</Message></Error>".encode()
            self._answer(fault.status, {"Content-Type": "application/xml", "Content-Length": len(document)}, document)
            return
        status, headers, payload = self._hand_on(body)
        if isinstance(fault, CutAnswer):
            self._reset()
        else:
            self._answer(status, headers, payload, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the names that http.server calls

    def _hand_on(self, body: bytes) -> tuple[int, dict[str, Any], bytes]:
        """The server's status, headers and body."""
        connection = HTTPConnection(*self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        payload = response.read()
        connection.close()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
        # That of a HEAD is the length of the body it does not have.
        headers["Content-Length"] = response.headers.get("Content-Length", len(payload))
        return response.status, headers, payload

    def _answer(self, status: int, headers: Mapping[str, Any], payload: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, CutDownload):
            payload = payload[: len(payload) // 2]
            self.close_connection = True
        pieces = 10 if isinstance(fault, Slow) else 1
        for piece in range(pieces):
            time.sleep(fault.seconds / pieces if isinstance(fault, Slow) else 0)
            self.wfile.write(payload[piece * len(payload) // pieces : (piece + 1) * len(payload) // pieces])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class QuietServer(ThreadingHTTPServer):
    """A server that does not mind clients who hang up."""

    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Say nothing: the connections are cut on purpose."""


@dataclass(frozen=True)
class S3:
    """A new bucket of the S3 server: how it is reached, and what breaks on the way."""

    bucket: str
    endpoint_url: str
    key: str
    secret: str
    faults: Faults

    @property
    def uri(self) -> str:
        """The address of the bucket."""
        return f"s3://{self.bucket}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What fsspec needs to reach it; what is tried again is tried by us, not by botocore before."""
        account = {"key": self.key, "secret": self.secret}
        return {**account, "endpoint_url": self.endpoint_url, "config_kwargs": {"retries": {"max_attempts": 0}}}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The server and the proxy before it, with an account whose signatures it checks."""
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    host, port = address = _free_address()
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)], stdout=file, stderr=file
        )
    proxy = QuietServer(("127.0.0.1", 0), type("ProxyOfServer", (Proxy,), {"upstream": address, "faults": Faults()}))
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        _wait_for(f"http://{host}:{port}", process, log)
        key, secret = _open_account(f"http://{host}:{port}")
        yield S3("", f"http://127.0.0.1:{proxy.server_port}", key, secret, proxy.RequestHandlerClass.faults)
    finally:
        proxy.shutdown()
        proxy.server_close()
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    """A new bucket, and no faults."""
    import s3fs

    s3 = replace(s3_server, bucket=f"bucket-{uuid4()}")
    s3.faults.clear()
    s3fs.S3FileSystem(**s3.storage_options).mkdir(s3.bucket)
    s3.faults.clear()
    yield s3
    s3.faults.clear()


@dataclass(frozen=True)
class Sftp:
    """A new folder behind a real SSH server: how it is reached, and where it lies on this machine."""

    process: "subprocess.Popen[bytes]"
    port: int
    key_file: Path
    path: Path

    @property
    def uri(self) -> str:
        """The address of the folder."""
        return f"sftp://127.0.0.1{self.path}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What fsspec needs to reach it."""
        login = {"username": getuser(), "key_filename": str(self.key_file)}
        return {**login, "port": self.port, "allow_agent": False, "look_for_keys": False}

    def hang_up(self) -> None:
        """Cut all connections."""
        for session in _descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)


def _descendants(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [each for child in map(int, found.stdout.split()) for each in (child, *_descendants(child))]


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    """OpenSSH's server, for the user who runs the tests."""
    pytest.importorskip("paramiko", reason="paramiko is not installed")
    program = which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or which("ssh-keygen") is None:
        pytest.skip("OpenSSH's server is not installed")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "key"):
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make_key, check=True, stdin=subprocess.DEVNULL)
    port = _free_address()[1]
    settings = f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host_key
        AuthorizedKeysFile {folder}/key.pub
        PidFile none
        StrictModes no
        UsePAM no
        Subsystem sftp internal-sftp
    """
    (folder / "settings").write_text(settings)
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None  # where the server locks itself in
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "settings")], stderr=log)
    try:
        _wait_for_port(port, process, folder / "log")
        yield Sftp(process, port, folder / "key", folder)
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def sftp(sftp_server: Sftp, tmp_path: Path) -> Sftp:
    """A new folder that is not there yet."""
    return replace(sftp_server, path=tmp_path / "behind ssh")


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=5).close()
        time.sleep(0.05)
    pytest.fail(f"the SSH server did not start: {log.read_text()}")


@pytest.fixture
def free_port() -> int:
    """A port that no one listens at."""
    return _free_address()[1]


def _free_address() -> tuple[str, int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
        return host, port


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            return urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()  # noqa: S310 - our own
        time.sleep(0.05)
    pytest.fail(f"moto's server did not start: {log.read_text()}")


def _open_account(url: str) -> tuple[str, str]:
    """Key and secret of a new account; from then on the server refuses whoever has none."""
    import boto3

    everything = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
    iam = boto3.client(
        "iam",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",  # noqa: S106
    )
    iam.create_user(UserName="tests")
    iam.put_user_policy(UserName="tests", PolicyName="all", PolicyDocument=json.dumps(everything))
    account = iam.create_access_key(UserName="tests")["AccessKey"]
    iam.close()
    check = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"content-type": "text/plain"})  # noqa: S310
    urllib.request.urlopen(check, timeout=5).close()  # noqa: S310 - our own
    return account["AccessKeyId"], account["SecretAccessKey"]
