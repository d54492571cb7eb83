"""Which errors of a backend are waited for, by the errors of the real libraries, and for how long."""

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Callable
from http.client import IncompleteRead, RemoteDisconnected
from itertools import pairwise
from typing import Any

import pytest

from tasks.storage.retrying import PATIENCE_SECONDS, PAUSES, is_missing, is_out_of_space, is_transient, retrying


def raised(work: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is asked
        work()
    return caught.value


def chained(outer: BaseException, inner: BaseException, *, by_from: bool = True) -> BaseException:
    outer.__cause__, outer.__context__ = (inner, inner) if by_from else (None, inner)
    return outer


def boto(code: str, status: int) -> BaseException:
    exceptions = pytest.importorskip("botocore.exceptions")
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return exceptions.ClientError(response, "PutObject")


def s3fs_told(code: str, status: int) -> BaseException:
    return pytest.importorskip("s3fs.errors").translate_boto_error(boto(code, status))


def asked_with_aiohttp(url: str) -> BaseException:
    aiohttp = pytest.importorskip("aiohttp")

    async def ask() -> None:
        async with aiohttp.ClientSession() as session, session.get(url):
            pass

    return raised(lambda: asyncio.run(ask()))


def asked_with_requests(url: str) -> BaseException:
    requests = pytest.importorskip("requests")
    return raised(lambda: requests.get(url, timeout=5))


def asked_with_boto(url: str) -> BaseException:
    session = pytest.importorskip("botocore.session").Session()
    config = pytest.importorskip("botocore.config").Config(retries={"max_attempts": 0})
    login = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    client = session.create_client("s3", "us-east-1", endpoint_url=url, config=config, **login)
    return raised(client.list_buckets)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


ASKED = {"aiohttp": asked_with_aiohttp, "requests": asked_with_requests, "botocore": asked_with_boto}


@pytest.mark.parametrize("library", ASKED)
def test_a_server_that_is_not_up_may_come_up(library):
    assert is_transient(ASKED[library](f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("library", ASKED)
def test_a_host_that_no_one_knows_stays_unknown(library, monkeypatch):
    def nobody(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert not is_transient(ASKED[library]("http://no-such-host.invalid"))


@pytest.mark.parametrize("library", ASKED)
def test_a_name_server_that_does_not_answer_may_answer_later(library, monkeypatch):
    def busy(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", busy)
    assert is_transient(ASKED[library]("http://a-host.invalid"))


@pytest.mark.parametrize("told", [boto, s3fs_told])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("SlowDown", 503),
        ("InternalError", 500),
        ("InternalError", 200),
        ("503", 503),
        ("ServiceUnavailable", 503),
        ("RequestTimeout", 400),
        ("IncompleteBody", 400),
        ("BadDigest", 400),
        ("ThrottlingException", 400),
        ("TooManyRequests", 429),
        ("BadGateway", 502),
        ("GatewayTimeout", 504),
        ("NoSuchUpload", 404),
    ],
)
def test_what_s3_says_of_itself_passes(told, code, status):
    assert is_transient(told(code, status))


@pytest.mark.parametrize("told", [boto, s3fs_told])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("ExpiredToken", 400),
        ("InvalidBucketName", 400),
        ("NoSuchBucket", 404),
        ("NoSuchKey", 404),
        ("404", 404),
        ("PermanentRedirect", 301),
        ("NotImplemented", 501),
    ],
)
def test_what_s3_says_of_the_request_stays(told, code, status):
    assert not is_transient(told(code, status))


def of_botocore(name: str, **said: object) -> BaseException:
    return getattr(pytest.importorskip("botocore.exceptions"), name)(**said)


def of_aiohttp(name: str, *said: object, **more: object) -> BaseException:
    return getattr(pytest.importorskip("aiohttp"), name)(*said, **more)


def of_requests(name: str, *said: object) -> BaseException:
    return getattr(pytest.importorskip("requests.exceptions"), name)(*said)


def of_paramiko(name: str, *said: object) -> BaseException:
    return getattr(pytest.importorskip("paramiko.ssh_exception"), name)(*said)


def answered_with_aiohttp(status: int) -> BaseException:
    return of_aiohttp("ClientResponseError", None, (), status=status)


def answered_with_requests(status: int) -> BaseException:
    response = pytest.importorskip("requests").Response()
    response.status_code = status
    return raised(response.raise_for_status)


def answered_with_gcsfs(status: int) -> BaseException:
    return pytest.importorskip("gcsfs.retry").HttpError({"code": str(status), "message": "said"})


def answered_with_azure(status: int) -> BaseException:
    error = pytest.importorskip("azure.core.exceptions").HttpResponseError("said")
    error.status_code = status
    return error


ANSWERED = [answered_with_aiohttp, answered_with_requests, answered_with_gcsfs, answered_with_azure]


@pytest.mark.parametrize("answered", ANSWERED)
def test_the_status_of_an_answer_decides(answered):
    assert [status for status in range(400, 600) if is_transient(answered(status))] == (
        [408, 425, 429, 500, 502, 503, 504, 509]
    )


URL = {"endpoint_url": "http://h"}
TRANSIENT: dict[str, Callable[[], BaseException]] = {
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    "broken pipe": lambda: OSError(errno.EPIPE, "broken"),
    "no route": lambda: OSError(errno.EHOSTUNREACH, "no route"),
    "time-out": lambda: TimeoutError("timed out"),
    "fsspec's time-out": lambda: pytest.importorskip("fsspec.exceptions").FSTimeoutError(),
    "hung up": lambda: RemoteDisconnected("hung up"),
    "incomplete": lambda: IncompleteRead(b"half"),
    "cut TLS": lambda: chained(ConnectionError(), ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred")),
    "botocore: connect": lambda: of_botocore("ConnectTimeoutError", **URL),
    "botocore: read": lambda: of_botocore("ReadTimeoutError", **URL),
    "botocore: endpoint": lambda: of_botocore("EndpointConnectionError", **URL),
    "botocore: closed": lambda: of_botocore("ConnectionClosedError", **URL),
    "botocore: streaming": lambda: of_botocore("ResponseStreamingError", error="cut"),
    "botocore: incomplete": lambda: of_botocore("IncompleteReadError", actual_bytes=1, expected_bytes=2),
    "botocore: no XML": lambda: pytest.importorskip("botocore.parsers").ResponseParserError("<"),
    "aiohttp: disconnected": lambda: of_aiohttp("ServerDisconnectedError"),
    "aiohttp: time-out": lambda: of_aiohttp("ServerTimeoutError"),
    "aiohttp: payload": lambda: of_aiohttp("ClientPayloadError", "half"),
    "aiohttp: lost": lambda: of_aiohttp("ClientOSError", errno.ECONNRESET, "lost"),
    "fsspec: could not ask": lambda: chained(FileNotFoundError("u"), of_aiohttp("ServerDisconnectedError")),
    "requests: lost": lambda: of_requests("ConnectionError", "lost"),
    "requests: time-out": lambda: of_requests("ReadTimeout"),
    "requests: chunk": lambda: of_requests("ChunkedEncodingError"),
    "paramiko: banner": lambda: of_paramiko("SSHException", "Error reading SSH protocol banner"),
    "paramiko: end": lambda: EOFError(),
    "paramiko: cut at the login": lambda: of_paramiko(
        "AuthenticationException", "Authentication failed: transport shut down or saw EOF"
    ),
    "paramiko: closed": lambda: OSError("Socket is closed"),
    "paramiko: refused": lambda: of_paramiko("NoValidConnectionsError", {("h", 22): ConnectionRefusedError()}),
    "azure: request": lambda: pytest.importorskip("azure.core.exceptions").ServiceRequestError("lost"),
    "azure: response": lambda: pytest.importorskip("azure.core.exceptions").ServiceResponseError("lost"),
    "google: transport": lambda: pytest.importorskip("google.auth.exceptions").TransportError("lost"),
}
LASTING: dict[str, Callable[[], BaseException]] = {
    "missing": lambda: FileNotFoundError(errno.ENOENT, "missing"),
    "forbidden": lambda: PermissionError(errno.EACCES, "forbidden"),
    "full": lambda: OSError(errno.ENOSPC, "full"),
    "a fault of ours": lambda: TypeError("unexpected keyword argument"),
    "wrong certificate": lambda: chained(
        of_requests("SSLError", "x"), ssl.SSLCertVerificationError(1, "self-signed certificate")
    ),
    "botocore: no credentials": lambda: of_botocore("NoCredentialsError"),
    "botocore: half credentials": lambda: of_botocore("PartialCredentialsError", provider="p", cred_var="v"),
    "botocore: parameter": lambda: of_botocore("ParamValidationError", report="r"),
    "aiohttp: address": lambda: of_aiohttp("InvalidURL", "http://["),
    "requests: address": lambda: of_requests("InvalidURL"),
    "paramiko: password": lambda: of_paramiko("AuthenticationException", "Authentication failed."),
    "paramiko: kind": lambda: of_paramiko("BadAuthenticationType", "Bad authentication type", ["publickey"]),
    "paramiko: no key": lambda: of_paramiko("SSHException", "No authentication methods available"),
    "paramiko: peer": lambda: of_paramiko("IncompatiblePeer", "no acceptable kex algorithm"),
    "google: credentials": lambda: pytest.importorskip("google.auth.exceptions").DefaultCredentialsError("none"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_transient_wrapped_or_not(name):
    error = TRANSIENT[name]()
    assert is_transient(error)
    assert is_transient(chained(RuntimeError("wrapped"), error))
    assert not is_missing(error)


@pytest.mark.parametrize("name", LASTING)
def test_what_stays_is_lasting_wrapped_or_not(name):
    error = LASTING[name]()
    assert not is_transient(error)
    assert not is_transient(chained(RuntimeError("wrapped"), error))


def test_the_outermost_error_that_says_anything_decides():
    """A connection may be lost while it is found out what was wrong before."""
    assert is_transient(chained(ConnectionResetError(), boto("NoSuchKey", 404), by_from=False))
    assert not is_transient(chained(boto("AccessDenied", 403), ConnectionResetError()))


def test_an_error_that_is_its_own_cause_ends():
    error = ValueError()
    assert not is_transient(chained(error, chained(KeyError(), error)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_wrapped_or_not(number):
    assert is_out_of_space(chained(RuntimeError(), OSError(number, "full")))
    assert not is_out_of_space(OSError(errno.EIO, "broken"))
    assert is_out_of_space(boto("XMinioStorageFull", 507))


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", pauses.append)
    return pauses


def failing(times: int, error: BaseException) -> Callable[[], str]:
    left = iter([error] * times)

    def work() -> str:
        for found in left:
            raise found
        return "done"

    return work


@pytest.mark.parametrize("times", range(len(PAUSES) + 1))
def test_work_is_done_once_the_error_has_passed(waited, times):
    assert retrying(failing(times, ConnectionResetError())) == "done"
    assert len(waited) == times


def test_the_last_error_is_raised_unchanged(waited):
    error = ConnectionResetError()
    assert raised(lambda: retrying(failing(100, error))) is error
    assert len(waited) == len(PAUSES)


def test_a_lasting_error_is_raised_at_once(waited):
    error = PermissionError()
    assert raised(lambda: retrying(failing(1, error))) is error
    assert waited == []


def test_the_pauses_are_drawn_below_limits_that_double(waited):
    assert all(later == 2 * earlier for earlier, later in pairwise(PAUSES))
    for _ in range(100):
        retrying(failing(len(PAUSES), TimeoutError()))
    by_try = [waited[number :: len(PAUSES)] for number in range(len(PAUSES))]
    for drawn, most in zip(by_try, PAUSES, strict=True):
        assert 0 <= min(drawn) < most / 4 < most * 3 / 4 < max(drawn) <= most  # not so in one of 10**11 runs


def test_who_has_waited_for_long_is_not_kept_longer(waited, monkeypatch):
    clock = iter([0.0, PATIENCE_SECONDS / 2, PATIENCE_SECONDS + 1])
    monkeypatch.setattr("tasks.storage.retrying.monotonic", lambda: next(clock))
    raised(lambda: retrying(failing(100, TimeoutError())))
    assert len(waited) == 1


def test_waiting_draws_nothing_from_the_random_numbers_of_others(waited):
    random.seed(1)
    expected = random.random()  # noqa: S311
    random.seed(1)
    retrying(failing(3, TimeoutError()))
    assert random.random() == expected  # noqa: S311
