"""Work on a remote backend, tried again after an error that passes by itself.

The backends' errors (botocore, aiohttp, requests, paramiko, azure, google) share no base class and are not imported:
what an error says is read from its HTTP status and error code, then from the names of its classes, then from its errno.
What none of them tells is taken for lasting, since a wait would mend nothing that we know of.
"""

import errno
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from random import SystemRandom
from time import monotonic, sleep
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The most seconds before each further try; the real ones are drawn between 0 and these ("full jitter", AWS Architecture
# Blog, "Exponential Backoff and Jitter", 2015), so that many workers do not come back in the same moment. With those of
# a backend's own retries (s3fs: five tries over a second, botocore: five over some eight) they outlast the seconds for
# which S3 throttles while it splits a prefix, and a server's restart.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
# Seconds after which no further try begins: a backend that waits and tries for that long by itself (gcsfs: half a
# minute) is not asked all of it again, and who waits for a dead endpoint is told within about a minute.
PATIENCE_SECONDS = 30.0

# Request timeout, too early, too many requests, and what a server or the gateway before it says of itself.
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
INSUFFICIENT_STORAGE = 507  # RFC 4918, 11.5; what MinIO answers when its disks are full
# Codes that S3 sends with other statuses: with 400 for a body that was cut or changed on the way, with 200 where a copy
# or a multipart upload fails after the headers were sent (S3 API Reference, "Error responses").
TRANSIENT_CODES = frozenset(
    {"BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable"}
    | {"NoSuchUpload"}  # an upload in parts whose end was done, and the answer to that lost: it is begun anew
    | {"SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException"}
)
# Classes by their package and name, base classes among them: connections refused, reset or cut, time-outs, and bodies
# that ended early or came damaged.
TRANSIENT_CLASSES = frozenset(
    {
        "builtins.ConnectionError",
        "builtins.EOFError",
        "builtins.TimeoutError",
        "http.BadStatusLine",
        "http.IncompleteRead",
        "ftplib.error_temp",
        "botocore.ChecksumError",
        "botocore.ConnectionError",
        "botocore.FlexibleChecksumError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseParserError",  # some servers throttle with a page that is no XML
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "requests.ChunkedEncodingError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.ProtocolError",
        "urllib3.TimeoutError",
        "paramiko.NoValidConnectionsError",
        "paramiko.SSHException",
        "azure.IncompleteReadError",
        "azure.ServiceRequestError",
        "azure.ServiceResponseError",
        "gcsfs.ChecksumError",
        "google.TimeoutError",
        "google.TransportError",
    }
)
# Classes below those that no pause mends.
LASTING_CLASSES = frozenset(
    {
        "aiohttp.ServerFingerprintMismatch",
        "paramiko.AuthenticationException",
        "paramiko.BadHostKeyException",
        "paramiko.ConfigParseError",
        "paramiko.IncompatiblePeer",
    }
)
# Those that Python has no class for; a socket's errors are errors of the connection.
TRANSIENT_ERRNOS = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
)
# Of a name that no file can have there: too long, not in the disk's encoding, a folder and a file of one name.
NAME_ERRNOS = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
# What paramiko 5.1 says in words alone (auth_handler.py, channel.py, client.py).
SAID = {
    "Authentication failed: transport shut down or saw EOF": True,
    "Socket is closed": True,
    "No authentication methods available": False,
}

_JITTER = SystemRandom()  # not the generator of `random`, whose numbers a seed promises to others


def retrying(work: Callable[[], T], *, pauses: Sequence[float] = PAUSES) -> T:
    """What `work` returns; after a transient error it is called again, after each of `pauses` (most seconds) once.

    The last error is raised unchanged, a lasting one at once. `work` must be such that a try which failed halfway does
    no harm: reads, and writes of whole files.
    """
    begin = monotonic()
    for most in pauses:
        try:
            return work()
        except Exception as error:
            if not is_transient(error) or monotonic() - begin > PATIENCE_SECONDS:
                raise
            pause = _JITTER.uniform(0, most)
            logger.info("%s from a remote backend; trying again in %.1f s", _name(error), pause)
        sleep(pause)
    return work()


def is_transient(error: BaseException) -> bool:
    """Whether an error of a backend may be gone at the next try: the connection, a time-out, throttling, 5xx.

    Errors wrap each other: the outermost that says anything decides. A host that no one knows and a certificate that is
    not trusted are lasting, wherever in the chain they are.
    """
    chain = list(chain_of(error))
    if any(_is_wrong_address(link) for link in chain):
        return False
    return next((verdict for link in chain if (verdict := _verdict(link)) is not None), False)


def is_missing(error: BaseException) -> bool:
    """Whether a file is not there; backends say so of files, too, that they only could not ask for."""
    return isinstance(error, FileNotFoundError) and not is_transient(error)


def is_out_of_space(error: BaseException) -> bool:
    """Whether a disk or a bucket is full, or its quota used up."""
    return any(
        _status_and_code(link)[0] == INSUFFICIENT_STORAGE
        or (isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT))
        for link in chain_of(error)
    )


def is_of_the_name(error: BaseException) -> bool:
    """Whether no file can have this name there."""
    return isinstance(error, OSError) and error.errno in NAME_ERRNOS


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_wrong_address(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN  # the name server itself does not answer
    return isinstance(error, ssl.SSLCertVerificationError)


def _verdict(error: BaseException) -> bool | None:
    """Whether this one error, whatever is behind it, is transient; None where it does not tell."""
    status, code = _status_and_code(error)
    if status is not None:
        return status in TRANSIENT_STATUSES or code in TRANSIENT_CODES
    if str(error) in SAID:
        return SAID[str(error)]
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if names & LASTING_CLASSES:
        return False
    if names & TRANSIENT_CLASSES:
        return True
    return True if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS else None


def _name(error: BaseException) -> str:
    """What an error is, such as "503 SlowDown"; not its message, which may hold an address with a password."""
    told = (_status_and_code(link) for link in chain_of(error))
    names = (f"{status} {code or ''}".strip() for status, code in told if status)
    return next(names, type(error).__name__)


def _status_and_code(error: BaseException) -> tuple[int | None, str | None]:
    """The HTTP status of an error and the service's code for it, where it has them; 0 in an answer of success."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _number(status) or 0, response.get("Error", {}).get("Code")
    holders = ((error, "status"), (error, "status_code"), (response, "status_code"), (error, "code"))
    statuses = (_number(getattr(holder, name, None)) for holder, name in holders)  # aiohttp, azure, requests, gcsfs
    return next((status for status in statuses if status is not None), None), None


def _number(value: object) -> int | None:
    """The HTTP status of an error (RFC 9110, 15), which gcsfs sometimes has as text; None for what is none."""
    text = str(value)
    return int(text) if text.isdecimal() and 400 <= int(text) <= 599 else None
