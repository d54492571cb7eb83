"""SFTP for many threads, with an end to waiting.

fsspec's own file system shares one client of paramiko, which drops the answers that another thread waits for: eight
readers hang for ever (paramiko 5.1). A connection for each reader is also the fastest: 100 kB files over localhost took
12 ms each one after the other, 7 ms with eight channels of one connection, and 2 ms with eight connections.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from threading import local
from time import monotonic
from typing import Any

import paramiko  # type: ignore[import-untyped]
from fsspec.implementations.sftp import SFTPFileSystem

from tasks.image_sources.limits import READ_SECONDS
from tasks.storage.backends import ANSWER_SECONDS, CONNECT_SECONDS, SSH_LOGINS

# paramiko logs every cut connection with a traceback, and raises it besides.
LOG = logging.getLogger(f"{__name__}.paramiko")
LOG.setLevel(logging.CRITICAL)
SSH_PORT = 22  # RFC 4253, section 4.1
PIECE = 32768  # bytes, the largest that every server answers with (draft-ietf-secsh-filexfer-02, section 3)


class SftpFiles(SFTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's SFTP, read only, with a connection for each reader, as fast as the line, with an end to its patience.

    Hosts in the user's known_hosts must show the key that is noted there. What is to be otherwise is told by the
    options of `paramiko.SSHClient.connect`: `timeout` for the connection, `channel_timeout` for every answer after it.
    """

    def _connect(self) -> None:
        self._idle: list[Any] = []
        self._of_thread = local()

    @property
    def port(self) -> int:
        """The port of the server."""
        return int(self.ssh_kwargs.get("port", SSH_PORT))

    @property
    def ftp(self) -> Any:
        """The client that this thread has at the moment."""
        return self._of_thread.client

    def ls(self, path: str, detail: bool = False) -> list[Any]:
        """What is in the folder `path`."""
        with self._connected():
            entries: list[Any] = super().ls(path, detail)
            return entries

    def info(self, path: str) -> dict[str, Any]:
        """What the server tells of the file `path`; links are followed."""
        with self._connected():
            info: dict[str, Any] = super().info(path)
            return info

    def cat_file(self, path: str, **_: object) -> bytes:
        """The bytes of a file; raises EOFError where fewer came than it has, TimeoutError after READ_SECONDS."""
        with self._connected():
            return self._whole(path)

    def _whole(self, path: str) -> bytes:
        begin, data = monotonic(), BytesIO()
        with self.ftp.open(path, "rb") as file:
            size = file.stat().st_size
            file.prefetch(size)  # asks for all pieces at once, where one after the other would take a round trip each
            while piece := file.read(PIECE):
                data.write(piece)
                if monotonic() - begin > READ_SECONDS:
                    raise TimeoutError(f"{data.tell()} of {size} bytes came in {READ_SECONDS} s")
        if data.tell() != size:
            raise EOFError(f"{data.tell()} of {size} bytes came")
        return data.getvalue()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        client = self._of_thread.client = self._idle_client() or self._new_client()
        try:
            yield
        except (FileNotFoundError, PermissionError):
            self._idle.append(client)
            raise
        except Exception:
            # A connection on which an answer is missing may never give another, and what cut it may have cut all.
            for cut in (client, *self._idle):
                _transport(cut).close()
            raise
        self._idle.append(client)

    def _idle_client(self) -> Any:
        while True:
            try:
                client = self._idle.pop()
            except IndexError:  # asked like this and not beforehand: other threads take from it too
                return None
            if _transport(client).is_active():
                return client

    def _new_client(self) -> Any:
        client = paramiko.SSHClient()
        client.set_log_channel(LOG.name)
        client.load_system_host_keys()
        # An option of fsspec 2026; before, whoever was not known was believed.
        client.set_missing_host_key_policy(getattr(self, "host_key_policy", paramiko.AutoAddPolicy()))
        with SSH_LOGINS:
            client.connect(self.host, **{"timeout": CONNECT_SECONDS, **self.ssh_kwargs})
        sftp = client.open_sftp()
        sftp.get_channel().settimeout(self.ssh_kwargs.get("channel_timeout", ANSWER_SECONDS))
        return sftp


def open_sftp(url: str, options: Mapping[str, Any]) -> tuple[SftpFiles, str]:
    """The files of a server, and the path in them."""
    server = SftpFiles._get_kwargs_from_urls(url)  # noqa: SLF001 - fsspec's own way from a URL to a file system
    return SftpFiles(**{**server, **options}), SftpFiles._strip_protocol(url)  # noqa: SLF001 - as above


def _transport(client: Any) -> Any:
    return client.get_channel().get_transport()
