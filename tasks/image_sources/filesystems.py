"""The fsspec file system behind a URL of images, with what the libraries' own lack for reading many of them."""

from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from tasks.image_sources.limits import READ_SECONDS
from tasks.storage.backends import open_backend, options_for


def open_url(url: str, storage_options: Mapping[str, object]) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; raises whatever the backend does."""
    match url.partition("://")[0]:
        case "http" | "https":
            from tasks.image_sources.web_files import open_web  # aiohttp need not be installed for other URLs

            return open_web(url, options_for(url, storage_options))
        case "sftp" | "ssh":
            from tasks.image_sources.sftp_files import open_sftp  # nor paramiko

            return open_sftp(url, options_for(url, storage_options))
        case _:
            return open_backend(url, storage_options)


def read_file(filesystem: Any, path: str) -> bytes:
    """The bytes of a file, in no more than READ_SECONDS where the backend can be stopped."""
    if isinstance(filesystem, AsyncFileSystem) and type(filesystem).cat_file is AbstractFileSystem.cat_file:
        # What `cat_file` does there, which takes no time-out.
        data: bytes = sync(filesystem.loop, filesystem._cat_file, path, timeout=READ_SECONDS)  # noqa: SLF001
        return data
    return bytes(filesystem.cat_file(path))
