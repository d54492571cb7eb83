"""Images from web servers: what their pages list, what comes through a bad line, and who gets to see the password."""

import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote, unquote

import pytest

from flows.auto_label import auto_label
from tasks.domain.errors import SpecError
from tasks.domain.spec import validate_spec
from tasks.image_files import FetchError, ImageSource

if find_spec("aiohttp") is None:
    pytest.skip("aiohttp is not installed", allow_module_level=True)

from tasks.image_sources.web_files import names_linked

CAT = (10, 10, 60, 50)


@dataclass
class Site:
    """A web server over a folder: its address, what was asked of it, and what it does instead of answering well.

    `faults` are taken from the left, one for each request of a path: an HTTP status, or the name of a fault.
    """

    url: str
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    password: str | None = None
    tells_versions: bool = True
    knows_head: bool = True
    over: Event = field(default_factory=Event)

    def count(self, method: str) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for asked, path, _ in self.asked if asked == method)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with the pages of `python -m http.server`, as far as its site lets it."""

    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def _answer(self, well: Callable[[], None]) -> None:
        site, path = self.site, unquote(self.path)
        site.asked.append((self.command, path, dict(self.headers)))
        faults = site.faults.get(path, []) if self.command == "GET" else []
        fault = faults.pop(0) if faults else None
        if self.command == "HEAD" and not site.knows_head:
            self._say(405)
        elif site.password is not None and self.headers.get("Authorization") != site.password:
            self._say(401)
        elif path in site.moved:
            self._say(301, {"Location": site.moved[path]})
        elif path in site.pages:
            self._say(200, {"Content-Type": "text/html"}, site.pages[path].encode())
        elif isinstance(fault, int):
            self._say(fault)
        elif fault is not None:
            getattr(self, f"_{fault}")(Path(self.translate_path(self.path)).read_bytes())
        else:
            well()

    def _say(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    def _cut(self, data: bytes) -> None:
        """Half of the body comes, then the connection ends."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def _cut_chunks(self, data: bytes) -> None:
        """The same where the length was never told."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data) // 2, data[: len(data) // 2]))
        self.close_connection = True

    def _slow(self, data: bytes) -> None:
        """The body comes in five pieces, over half a second."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for piece in range(5):
            time.sleep(0.1)
            self.wfile.write(data[piece * len(data) // 5 : (piece + 1) * len(data) // 5])

    def _stalled(self, data: bytes) -> None:
        """After half of the body there comes nothing any more."""
        self._cut(data)
        self.site.over.wait(timeout=30)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified" or self.site.tells_versions:
            super().send_header(keyword, value)


class Server(ThreadingHTTPServer):
    """Does not mind clients who hang up."""

    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site("")
    server = Server(("127.0.0.1", 0), partial(type("", (Handler,), {"site": site}), directory=str(folder)))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with served(folder) as site:
        yield site


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes any time."""
    made: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", made.append)
    return made


def put(folder: Path, *paths: str, data: bytes = b"content") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def keys_of(root: str, **options: object) -> list[str]:
    return [file.key for file in ImageSource((root,), options).list_images()]


def versions_of(root: str) -> dict[str, str | None]:
    return {file.key: file.version for file in ImageSource((root,)).list_images()}


# What is listed

AWKWARD = [
    "a b.png",
    "100%.png",
    "%41.png",
    "what?.png",
    "a#1.png",
    "a&amp;b.png",
    "a'b\"c.png",
    "1+1=2;.png",
    "http:.png",
    "<b>.png",
    "日本 é.png",
    "földer #2?/%20.png",
    "back\\slash.png",
]


def test_files_of_awkward_names_are_listed_and_read(folder: Path, site: Site) -> None:
    for name in AWKWARD:
        put(folder, name, data=name.encode())
    source = ImageSource((site.url,))
    keys = [file.key for file in source.list_images()]
    assert keys == sorted(AWKWARD)
    assert list(source.read_ahead(keys, workers=4)) == [(key, key.encode()) for key in keys]


def test_a_root_of_an_awkward_name_is_written_with_escapes(folder: Path, site: Site) -> None:
    put(folder, "my photos #1 (100%)?/sub/1.png")
    source = ImageSource((f"{site.url}/{quote('my photos #1 (100%)?')}/",))
    assert [(file.key, source.read(file.key)) for file in source.list_images()] == [("sub/1.png", b"content")]


def test_folders_are_searched_all_the_way_down_and_hidden_ones_are_not(folder: Path, site: Site) -> None:
    put(folder, "b.png", "a/b/c/1.PNG", ".cache/2.png", "a/out/images_annotated/3.png", ".4.png", "notes.txt")
    source = ImageSource((site.url,), excluded=(f"{site.url}/a/out",))
    assert [file.key for file in source.list_images()] == [".4.png", "a/b/c/1.PNG", "b.png"]


def test_a_server_of_its_own_process_is_searched(folder: Path) -> None:
    put(folder, *AWKWARD)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split("port ")[1].split()[0]
        found = keys_of(f"http://127.0.0.1:{port}")
        process.terminate()
    assert found == sorted(AWKWARD)


NGINX = """<html>
<head><title>Index of /data/</title></head>
<body>
<h1>Index of /data/</h1><hr><pre><a href="../">../</a>
<a href="train/">train/</a>                                             22-Nov-2024 20:37                   -
<a href="a%20very%20long%20name%20which%20is%20cut%20in%20the%20page%201.jpg">a very long name which is cut in..&gt;</a>
<a href="b%26c.jpg">b&amp;c.jpg</a>                                             22-Nov-2024 20:37              117412
</pre><hr></body>
</html>
"""
APACHE = """<table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><A class=x HREF='sub/'>sub/</A></td></tr>
<tr><td><a href="/data/1.jpg">1.jpg</a> http://host/data/in_the_text.jpg</td></tr>
<tr><td><a href="2&amp;3.jpg?download=1">2&amp;3.jpg</a></td></tr>
</table>
"""
CADDY = (
    """<a href="./sub/"><span>sub</span></a><a href="./1.jpg#top">1.jpg</a><a href="..">up</a><a name="x.jpg"></a>"""
)
ELSEWHERE = """<a href="http://elsewhere/data/1.jpg">1</a> <a href="//elsewhere/data/2.jpg">2</a>
<a href="/other/3.jpg">3</a> <a href="../4.jpg">4</a> <a href="/data/../5.jpg">5</a> <a href="%2e%2e/">up</a>
<a href="sub/6.jpg">6</a> <a href="http://[">7</a> <a href="mailto:8.jpg">8</a> <a href="http://host:81/data/9.jpg">9</a>
<a href="HTTP://HOST:80/%64ata/10.jpg">10</a> <a href="https://host/data/11.jpg">11</a> <a href=".">.</a>
<a href="">-</a> <a href="..%2F..%2F12.jpg">12</a>"""


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (NGINX, ["a very long name which is cut in the page 1.jpg", "b&c.jpg", "train/"]),
        (APACHE, ["1.jpg", "sub/"]),
        (CADDY, ["1.jpg", "sub/"]),
        (ELSEWHERE, ["..%2F..%2F12.jpg", "10.jpg", "11.jpg"]),
        ("<a href=", []),
        ("\0<<>>&&", []),
    ],
    ids=["nginx", "apache", "caddy", "elsewhere", "cut", "rubbish"],
)
def test_of_a_page_only_the_links_to_what_is_in_its_folder_count(page: str, names: list[str]) -> None:
    assert names_linked(page, "http://host/data/") == names


def test_an_escaped_slash_does_not_lead_out_of_the_root(folder: Path, site: Site) -> None:
    put(folder, "secret.png", "data/1.png")
    site.pages["/data/"] = '<a href="..%2Fsecret.png">x</a> <a href="%2e%2e%2fsecret.png">y</a> <a href="1.png">z</a>'
    source = ImageSource((f"{site.url}/data",))
    found = {key: isinstance(data, bytes) for key, data in source.read_ahead(list(versions_of(f"{site.url}/data")), 2)}
    assert found == {"..%2Fsecret.png": False, "1.png": True}


def test_links_to_other_servers_are_not_asked_for(folder: Path, site: Site, tmp_path: Path) -> None:
    put(folder, "1.png")
    with served(tmp_path) as other:
        site.pages["/"] = f'<a href="{other.url}/2.png">2</a> <a href="{other.url}/sub/">3</a> <a href="1.png">1</a>'
        assert keys_of(site.url) == ["1.png"]
        assert other.asked == []


def test_a_folder_that_is_linked_in_itself_does_not_lead_in_circles(folder: Path, site: Site) -> None:
    put(folder, "a/1.png")
    site.pages["/a/"] = '<a href="/a/">again</a> <a href="./">again</a> <a href="1.png">1</a>'
    assert keys_of(site.url) == ["a/1.png"]


def test_a_source_works_after_a_trip_to_another_process(folder: Path, site: Site) -> None:
    put(folder, "a/1.png")
    site.password = ME
    source = ImageSource((site.url.replace("://", "://me:hunter%202%3A%C3%A9@"),))
    assert len(list(source.list_images())) == 1
    travelled = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
    assert [travelled.read(file.key) for file in travelled.list_images()] == [b"content"]


@pytest.mark.parametrize("root", ["/nowhere", "/1.png", "/notes.txt", "/empty"])
def test_a_root_that_shows_no_images_is_an_error_of_the_spec(folder: Path, site: Site, root: str) -> None:
    put(folder, "1.png", "notes.txt", "empty/notes.txt")
    with pytest.raises(SpecError, match="check image_dir"):
        keys_of(f"{site.url}{root}")


def test_a_root_with_a_query_is_refused_and_its_query_not_shown(site: Site) -> None:
    with pytest.raises(SpecError, match="a folder has no") as caught:
        keys_of(f"{site.url}/images?token=hunter2")
    assert ("hunter2" in str(caught.value), site.asked) == (False, [])


def test_a_server_that_is_not_there_is_an_error_of_the_spec(pauses: list[float]) -> None:
    with pytest.raises(SpecError, match=r"cannot be listed: .*check image_dir"):
        keys_of("http://127.0.0.1:9")
    assert len(pauses) > 1


@pytest.mark.parametrize("status", [403, 404])
def test_a_folder_that_may_not_be_searched_is_reported(folder: Path, site: Site, status: int) -> None:
    put(folder, "a.png", "locked/2.png", "z.png")
    site.faults["/locked/"] = [status] * 9
    listed = [(file.key, file.reason) for file in ImageSource((site.url,)).list_images()]
    assert [key for key, _ in listed] == ["a.png", "locked/", "z.png"]
    assert str(status) in str(listed[1][1])


def test_a_folder_that_fails_for_a_while_is_asked_for_again(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "a/1.png")
    site.faults |= {"/": [503], "/a/": [500, 502]}
    assert (keys_of(site.url), len(pauses)) == (["a/1.png"], 3)


def test_a_folder_that_fails_at_every_try_ends_the_listing(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "0.png", "a/1.png")
    site.faults["/a/"] = [500] * 99
    with pytest.raises(SpecError, match=r"'a/' in http.* cannot be listed: .*500"):
        keys_of(site.url)


def test_named_images_are_found_where_no_folder_is_shown(folder: Path, site: Site) -> None:
    put(folder, "a/1.png", "b/2 #.png")
    site.faults |= {"/": [403] * 9, "/a/": [403] * 9, "/b/": [403] * 9}
    listed = ImageSource((site.url,)).list_named(["a/1.png", "b/2 #.png", "a/3.png", "../1.png"])
    assert [(file.key, file.reason) for file in listed if file.reason is None] == [
        ("a/1.png", None),
        ("b/2 #.png", None),
    ]
    assert {file.key: file.reason for file in listed}["a/3.png"] == "is not there"
    assert "GET" not in {method for method, _, _ in site.asked}


# Versions


def test_the_version_of_a_file_stays_until_the_file_changes(folder: Path, site: Site) -> None:
    put(folder, "1.png", "2.png")
    before = versions_of(site.url)
    put(folder, "1.png", data=b"another content")
    after = versions_of(site.url)
    assert None not in before.values()
    assert (after["1.png"] != before["1.png"], after["2.png"] == before["2.png"]) == (True, True)


def test_the_version_of_a_named_file_is_that_of_a_listed_one(folder: Path, site: Site) -> None:
    put(folder, "a/1.png")
    source = ImageSource((site.url,))
    assert source.list_named(["a/1.png"]) == list(source.list_images())


@pytest.mark.parametrize("lacks", ["tells_versions", "knows_head"])
def test_where_no_version_is_told_there_is_none(folder: Path, site: Site, lacks: str) -> None:
    put(folder, "1.png")
    setattr(site, lacks, False)
    assert versions_of(site.url) == {"1.png": None}


def test_listing_reads_no_file(folder: Path, site: Site) -> None:
    put(folder, *(f"{number:03}.png" for number in range(100)))
    assert len(versions_of(site.url)) == 100
    assert (site.count("GET"), site.count("HEAD").total()) == (Counter({"/": 1}), 100)


# Passwords and redirects

ME = "Basic bWU6aHVudGVyIDI6w6k="  # me:hunter 2:é in base64, RFC 7617
WRONG = {"username": "me", "password": "wrong"}
LOGIN = {"username": "me", "password": "hunter2"}


@pytest.mark.parametrize(
    ("login", "options"),
    [
        ("me:hunter%202%3A%C3%A9@", {}),
        ("", {"username": "me", "password": "hunter 2:é"}),
        ("", {"headers": {"Authorization": ME}}),
        ("", {"http": {"username": "me", "password": "hunter 2:é"}, "s3": {"key": "x"}}),
    ],
    ids=["in the URL", "as options", "as a header", "by protocol"],
)
def test_basic_authentication(folder: Path, site: Site, login: str, options: Mapping[str, Any]) -> None:
    put(folder, "a/1.png")
    site.password = ME
    source = ImageSource((site.url.replace("://", f"://{login}"),), options)
    assert [source.read(file.key) for file in source.list_images()] == [b"content"]


def test_no_message_and_no_address_shows_the_password(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "1.png")
    root = site.url.replace("://", "://me:hunter2@")
    site.faults |= {"/1.png": [403, "cut", *[500] * 99], "/": [200]}
    source = ImageSource((root,))
    told = [repr(source), repr(source.addresses)]
    for _ in range(3):
        with pytest.raises(FetchError) as read:
            source.read("1.png")
        told.append(str(read.value))
    site.password = "another"
    with pytest.raises(SpecError) as listed:
        next(source.list_images())
    assert "me:***@" in str(listed.value)
    assert "hunter2" not in " ".join([*told, str(listed.value)])


def test_a_wrong_password_is_told_at_once(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "1.png")
    site.password = ME
    with pytest.raises(SpecError, match=r"cannot be listed: .*401"):
        keys_of(site.url, **WRONG)
    assert (pauses, len(site.asked)) == ([], 1)


def test_a_root_that_has_moved_is_followed(folder: Path, site: Site) -> None:
    put(folder, "new/sub/1.png")
    site.moved |= {path: path.replace("old", "new") for path in ("/old/", "/old/sub/", "/old/sub/1.png")}
    site.pages["/new/"] = '<a href="/new/sub/">sub</a> <a href="/new/">here</a>'
    source = ImageSource((f"{site.url}/old",))
    [file] = source.list_images()
    assert (file.key, file.version is None, source.read(file.key)) == ("sub/1.png", False, b"content")


def test_another_server_to_which_a_file_has_moved_is_not_told_the_password(folder: Path, site: Site) -> None:
    put(folder, "1.png")
    with served(folder) as other:
        site.moved["/1.png"] = f"{other.url}/1.png"
        source = ImageSource((site.url,), LOGIN)
        assert source.read("1.png") == b"content"
        assert "Authorization" in site.asked[-1][2]
        assert "Authorization" not in other.asked[-1][2]


# A bad line


@pytest.mark.parametrize("faults", [[500], [503, 502, 429], ["cut"], ["cut_chunks"], ["cut", 500], ["slow"]], ids=repr)
def test_a_file_comes_whole_after_faults_that_pass(
    folder: Path, site: Site, pauses: list[float], faults: Sequence[int | str]
) -> None:
    put(folder, "1.png", data=bytes(range(256)) * 100)
    site.faults["/1.png"] = list(faults)
    assert ImageSource((site.url,)).read("1.png") == bytes(range(256)) * 100
    assert len(pauses) == len([fault for fault in faults if fault != "slow"])


@pytest.mark.parametrize(("status", "told"), [(404, "is not there"), (403, "403"), (401, "401"), (410, "410")])
def test_what_no_pause_mends_is_told_at_once(
    folder: Path, site: Site, pauses: list[float], status: int, told: str
) -> None:
    put(folder, "1.png")
    site.faults["/1.png"] = [status]
    with pytest.raises(FetchError, match=told):
        ImageSource((site.url,)).read("1.png")
    assert pauses == []


def test_a_server_that_falls_silent_is_not_waited_for(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "1.png", "2.png")
    site.faults["/1.png"] = ["stalled"] * 99
    source = ImageSource((site.url,), {"timeout": 0.2})
    stalled, whole = source.read_ahead(["1.png", "2.png"], workers=2)
    assert isinstance(stalled[1], FetchError)
    assert "TimeoutError" in str(stalled[1])
    assert whole == ("2.png", b"content")


def test_a_file_that_comes_too_slowly_for_an_option_is_given_up(folder: Path, site: Site, pauses: list[float]) -> None:
    put(folder, "1.png")
    site.faults["/1.png"] = ["slow"] * 99
    with pytest.raises(FetchError, match="TimeoutError"):
        ImageSource((site.url,), {"timeout": 0.2}).read("1.png")


def test_a_file_that_comes_too_slowly_is_given_up_in_the_end(
    folder: Path, site: Site, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "1.png")
    site.faults["/1.png"] = ["slow"] * 99
    monkeypatch.setattr("tasks.image_sources.filesystems.READ_SECONDS", 0.2)
    with pytest.raises(FetchError, match="Timeout"):
        ImageSource((site.url,)).read("1.png")


# Whole runs


def label(image_dir: str, results: Path, **storage_options: object) -> Any:
    spec = {
        "autolabel_type": "grounding_dino",
        "results_dir": str(results),
        "storage_options": storage_options,
        "grounding_dino": {
            "checkpoint": "fake",
            "visualize": False,
            "iteration_scheduler": [{"conf_threshold": 0.5}, {"conf_threshold": 0.3}],
            "dataset": {"image_dir": image_dir, "class_names": ["cat"]},
        },
    }
    return auto_label(validate_spec(spec)).images


def failures(results: Path) -> dict[str, str]:
    lines = (results / "failures.jsonl").read_text().splitlines()
    return {failure["image"]: failure["reason"] for failure in map(json.loads, lines)}


@pytest.fixture
def painted(folder: Path, paint_picture: Callable[..., Path]) -> list[str]:
    names = [*(f"{number:02}.png" for number in range(6)), "sub folder/#1 100%.png"]
    for number, name in enumerate(names):
        paint_picture(folder / name, [("cat", 0.4 + 0.1 * (number % 5), CAT)] if number else [])
    return names


@pytest.mark.prefect
@pytest.mark.usefixtures("server", "painted")
def test_a_run_over_http_leaves_the_bytes_of_a_run_over_the_folder(folder: Path, site: Site, tmp_path: Path) -> None:
    label(str(folder), tmp_path / "local")
    label(site.url, tmp_path / "remote")
    assert (tmp_path / "remote/annotations.json").read_bytes() == (tmp_path / "local/annotations.json").read_bytes()


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_a_second_run_reads_no_image_and_a_new_image_is_the_only_one_read(
    folder: Path, site: Site, tmp_path: Path, painted: list[str], paint_picture: Callable[..., Path]
) -> None:
    label(site.url, tmp_path / "results")
    site.asked.clear()
    label(site.url, tmp_path / "results")
    assert [path for path in site.count("GET") if path.endswith(".png")] == []
    paint_picture(folder / "new.png", [("cat", 0.9, CAT)])
    label(site.url, tmp_path / "results")
    assert {path for path in site.count("GET") if path.endswith(".png")} == {"/new.png"}


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_where_no_version_is_told_a_changed_image_is_noticed(
    folder: Path, site: Site, tmp_path: Path, painted: list[str], paint_picture: Callable[..., Path]
) -> None:
    site.tells_versions = False
    before = label(site.url, tmp_path / "results")
    paint_picture(folder / painted[0], [("cat", 0.9, CAT)])
    after = label(site.url, tmp_path / "results")
    assert (before.labelled + 1, before.empty - 1) == (after.labelled, after.empty)


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_every_image_ends_in_one_state_and_the_next_run_labels_exactly_the_missing(
    folder: Path, site: Site, tmp_path: Path, pauses: list[float], painted: list[str]
) -> None:
    label(str(folder), tmp_path / "expected")
    site.faults |= {"/00.png": [500, "cut"], "/01.png": [403] * 99, "/02.png": [500] * 99, "/03.png": ["slow"] * 9}
    root = site.url.replace("://", "://me:hunter2@")
    first = label(root, tmp_path / "results")
    reasons = failures(tmp_path / "results")
    assert (sorted(reasons), first.failed) == (["01.png", "02.png"], 2)
    assert ("403" in reasons["01.png"], "500" in reasons["02.png"]) == (True, True)
    assert first.labelled + first.empty + first.failed == len(painted)
    site.faults.clear()
    site.asked.clear()
    again = label(root, tmp_path / "results")
    assert again.failed == 0
    assert {path for path in site.count("GET") if path.endswith(".png")} == {"/01.png", "/02.png"}
    expected = (tmp_path / "expected/annotations.json").read_bytes()
    assert (tmp_path / "results/annotations.json").read_bytes() == expected
    texts = [path.read_text() for path in (tmp_path / "results").rglob("*.json*")]
    assert "hunter2" not in "".join(texts)
