"""The backends of fsspec: how each is opened, with whose options, and what it promises of a write."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from socket import IPPROTO_TCP, TCP_NODELAY
from threading import Semaphore
from typing import Any

from fsspec import available_protocols
from fsspec.core import url_to_fs
from fsspec.implementations.cached import CachingFileSystem
from fsspec.registry import known_implementations

from tasks.domain.addresses import without_password

# Seconds that a server may take to be connected to, and to send the next bytes. The libraries' own (none for SFTP, five
# minutes for HTTP, one minute for S3, asked up to 25 times) would keep a run for long before a dead endpoint.
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0
# With these a dead S3 endpoint is told after a minute: three requests of ANSWER_SECONDS. Their files are read in one
# request: s3fs asks for the size before, to read large ones in parallel, and pieces of two versions of a file that
# changes may then come together. A listing that is kept would hide what others write.
S3_REQUESTS = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS, "retries": {"max_attempts": 2}}
S3_OPTIONS = {"max_concurrency": 1, "use_listings_cache": False}
# Every thread has a connection of its own. OpenSSH drops new ones by chance while ten log in (MaxStartups 10:30:100).
SSH_LOGINS = Semaphore(4)
# Bytes of a part of a large upload to S3, which lies in memory: as boto3 has it (TransferConfig.multipart_chunksize).
S3_PART = 8 * 2**20
# A file appears there in one step when all of it has arrived; elsewhere a reader may find the half of one.
PUTS_WHOLE = frozenset({"s3", "gcs", "abfs", "memory"})
# Options that may be shown: without them a message about the wrong server would not say which.
NO_SECRETS = frozenset(
    {"endpoint_url", "host", "username", "user", "account_name", "project", "region_name", "profile"}
)
SHORTEST_SECRET = 4  # letters; the "a" of a test's password is in every message
READ_ONLY = ("http://", "https://")


def options_for(uri: str, storage_options: Mapping[str, object]) -> Mapping[str, Any]:
    """Those of `storage_options` that the backend of a path or URL gets; none for a path.

    They are flat, for every URL alike, or by protocol, `{s3: {...}, sftp: {...}}`: exactly when every key is a protocol
    that fsspec knows and every value is a mapping. Protocols of one backend (s3 and s3a) are the same then. Each part
    of a chained URL (simplecache::s3://...) gets the options of its own protocol.
    """
    if "://" not in uri:
        return {}
    if not _is_by_protocol(storage_options):
        return storage_options
    by_backend = {_implementation(protocol): options for protocol, options in storage_options.items()}
    chain = [part.partition("://")[0] for part in uri.split("::")]
    options = {protocol: by_backend.get(_implementation(protocol), {}) for protocol in chain}
    return options if len(chain) > 1 else options[chain[0]]  # type: ignore[return-value]


def _is_by_protocol(storage_options: Mapping[str, object]) -> bool:
    return storage_options.keys() <= set(available_protocols()) and all(
        isinstance(options, Mapping) for options in storage_options.values()
    )


def _implementation(protocol: str) -> str:
    return str(known_implementations.get(protocol, {}).get("class", protocol))


def open_backend(uri: str, storage_options: Mapping[str, object]) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; opened with our time-outs where the options name no others.

    fsspec keeps what it opened and hands it out again. Raises whatever the backend does.
    """
    options = dict(options_for(uri, storage_options))
    protocol = uri.partition("://")[0]
    if protocol in ("s3", "s3a"):
        requests = {"config_kwargs": {**S3_REQUESTS, **options.get("config_kwargs", {})}}
        options = {**S3_OPTIONS, **options, **requests}
    elif protocol in ("sftp", "ssh"):
        options = {"timeout": CONNECT_SECONDS, **options}
    elif protocol in ("http", "https"):
        options["client_kwargs"] = {"timeout": _http_timeout(), **options.get("client_kwargs", {})}
    with _logging_in(protocol):
        filesystem, path = url_to_fs(uri, **options)
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1  # each try is botocore's, with retries of its own
    elif protocol in ("sftp", "ssh"):
        _hurry(filesystem.ftp.get_channel())
    return filesystem, path


def _hurry(channel: Any) -> None:
    channel.settimeout(ANSWER_SECONDS)
    # Else the end of every 32 KiB waits 40 ms for what was sent before to be acknowledged (Nagle's algorithm):
    # 100 kB over localhost took 90 ms, and take 3 ms so.
    with suppress(OSError, AttributeError):  # the connection was lost, or is a command's (ProxyCommand)
        channel.get_transport().sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


def _logging_in(protocol: str) -> AbstractContextManager[object]:
    if protocol not in ("sftp", "ssh"):
        return nullcontext()
    # paramiko logs every cut connection with a traceback, and raises it besides.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    return SSH_LOGINS


def _http_timeout() -> Any:
    from aiohttp import ClientTimeout  # only for HTTP, whose backend needs it

    return ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


def without_secrets(text: str, storage_options: Mapping[str, object]) -> str:
    """A text, such as the message of a backend's error, with *** for the passwords in URLs and the secrets of options.

    An option is a secret unless it is known not to be one: backends have others every year.
    """
    for secret in sorted(_secrets(storage_options), key=len, reverse=True):
        text = text.replace(secret, "***")
    return without_password(text)


def _secrets(options: Mapping[str, object]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= SHORTEST_SECRET and name not in NO_SECRETS:
            yield value


def is_read_only(uri: str) -> bool:
    """Whether nothing can be written at a URL."""
    return any(part.startswith(READ_ONLY) for part in uri.split("::"))


def beneath_caches(filesystem: Any) -> Any:
    """The file system that others (simplecache, filecache, blockcache) keep copies of."""
    while isinstance(filesystem, CachingFileSystem):
        filesystem = filesystem.fs
    return filesystem


def puts_whole(filesystem: Any) -> bool:
    """Whether readers of this backend see a file that is put only when it is whole."""
    return not PUTS_WHOLE.isdisjoint(protocols(filesystem))


def protocols(filesystem: Any) -> tuple[str, ...]:
    """What the URLs of a backend may begin with; its names are not those of its class."""
    names = beneath_caches(filesystem).protocol
    return (names,) if isinstance(names, str) else tuple(names)
