"""Images behind a web server that shows its folders as pages of links: Apache, nginx, `python -m http.server`.

fsspec's own file system takes every address in a page for a file, and a percent sign in a name for an escape.
"""

from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from aiohttp import ClientResponse, ClientTimeout
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from tasks.image_sources.limits import READ_SECONDS
from tasks.storage.backends import ANSWER_SECONDS, CONNECT_SECONDS

TIMEOUT = ClientTimeout(total=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
HTML = ("text/html", "application/xhtml+xml")
# What a server tells of a file that changes with its content (RFC 9110, section 8.8).
VERSION_HEADERS = ("ETag", "Last-Modified")


class WebFiles(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's HTTP, read only, with paths as people write them: `http://host/holiday photos/100%.jpg`.

    `username` and `password` are for basic authentication. They are sent to the host of the path alone, wherever it
    redirects to. `client_kwargs` go to `aiohttp.ClientSession`, `headers` and further options to each of its requests.
    """

    def __init__(
        self,
        *,
        username: str | None = None,
        password: str = "",
        headers: Mapping[str, str] | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        # As a header: aiohttp takes it away where it is redirected to another host.
        headers = {**(headers or {}), **({} if username is None else _basic(username, password))}
        super().__init__(client_kwargs={"timeout": TIMEOUT, **(client_kwargs or {})}, headers=headers, **options)

    def encode_url(self, url: str) -> URL:
        """The address of a path, every name in it escaped."""
        scheme, _, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        return URL(f"{scheme}://{host}{slash}{quote(path, errors='surrogateescape')}", encoded=True)

    async def _ls_real(self, url: str, detail: bool = True, **_: object) -> list[Any]:
        """What the page of the folder `url` links to in the folder itself."""
        folder = url.rstrip("/")
        session = await self.set_session()
        async with session.get(self.encode_url(f"{folder}/"), **self.kwargs) as response:
            _refuse(response)
            if response.content_type not in HTML:
                raise NotADirectoryError(f"the server sends {response.content_type}, not a page with links to files")
            page, shown_at = await response.text(errors="replace"), str(response.url)
        entries = [_entry(f"{folder}/{name}") for name in names_linked(page, shown_at)]
        return entries if detail else [entry["name"] for entry in entries]

    async def _info(self, url: str, **_: object) -> dict[str, Any]:
        """What the server tells of a file without sending it."""
        session = await self.set_session()
        async with session.head(self.encode_url(url), **{"allow_redirects": True, **self.kwargs}) as response:
            _refuse(response)
            told = {name: response.headers.get(name) for name in VERSION_HEADERS}
            return {**_entry(url), "size": response.content_length, **told}


def open_web(url: str, options: Mapping[str, Any]) -> tuple[WebFiles, str]:
    """The files of a web server, and the path in them; raises ValueError for a query, which no folder has."""
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError("a folder has no '?' or '#' in its address; one in a name is written as %3F or %23")
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    login = {"username": unquote(user), "password": unquote(password)} if user else {}
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(":443" if parts.scheme == "https" else ":80")
    path = f"{parts.scheme}://{host}{unquote(parts.path, errors='surrogateescape')}"
    return WebFiles(**{**login, **options}), path


def names_linked(page: str, shown_at: str) -> list[str]:
    """The names of what is directly in the folder of a page and linked there, sorted; folders end with a slash.

    Links that lead up, down by more than a folder, to other servers, or have a query (they sort the page) are none.
    """
    here = urlsplit(shown_at)
    folder = _names(here.path)[:-1]
    found = set()
    for link in _links(page):
        with suppress(ValueError):  # no address at all, such as http://[
            there = urlsplit(urljoin(shown_at, link))
            *above, name = _names(there.path.removesuffix("/"))
            if _server(there) == _server(here) and not there.query and above == folder and name not in {"", ".", ".."}:
                # A slash that was escaped is part of a name that no path can have; read like this, it is not found.
                found.add(name.replace("/", "%2F") + "/" * there.path.endswith("/"))
    return sorted(found)


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _links(page: str) -> list[str]:
    parser = _Links()
    parser.feed(page)
    parser.close()
    return parser.found


def _names(path: str) -> list[str]:
    return [unquote(name, errors="surrogateescape") for name in path.split("/")]


def _server(url: SplitResult) -> tuple[str | None, int | None]:
    """Host and port; the usual port of http is that of https, since pages link from one to the other."""
    return url.hostname, None if url.port in (80, 443) else url.port


def _basic(username: str, password: str) -> dict[str, str]:
    """The header of basic authentication (RFC 7617, section 2)."""
    return {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"}


def _refuse(response: ClientResponse) -> None:
    if response.status == HTTPStatus.NOT_FOUND:
        raise FileNotFoundError("404 Not Found")
    response.raise_for_status()


def _entry(path: str) -> dict[str, Any]:
    return {"name": path, "size": None, "type": "directory" if path.endswith("/") else "file"}
