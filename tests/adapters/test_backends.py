"""Which options a backend gets, and that none of their secrets is ever shown."""

import logging
import traceback
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import ArtifactError
from tasks.storage.backends import ANSWER_SECONDS, open_backend, options_for, without_secrets
from tasks.storage.folder import Folder, MissingFileError

S3 = {"key": "AKIAIOSFODNN7EXAMPLE", "client_kwargs": {"region_name": "eu-west-1"}}
SFTP = {"username": "me", "password": "hunter22"}
BOTH = {"s3": S3, "sftp": SFTP}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/folder", S3),
        ("s3a://bucket/folder", S3),
        ("sftp://host/folder", SFTP),
        ("ssh://host/folder", SFTP),
        ("gs://bucket", {}),
        ("https://host/folder", {}),
        ("memory://folder", {}),
        ("/a/folder", {}),
        ("a/folder", {}),
        ("", {}),
        ("simplecache::s3://bucket", {"simplecache": {}, "s3": S3}),
        ("zip://inner::ssh://host/archive.zip", {"zip": {}, "ssh": SFTP}),
    ],
)
def test_each_url_gets_the_options_of_its_protocol(uri, expected):
    assert options_for(uri, BOTH) == expected


@pytest.mark.parametrize("flat", [S3, SFTP, {"client_kwargs": {"verify": False}}, {"s3": {}, "key": "k"}, {"s3": "k"}])
def test_options_that_are_not_all_by_protocol_go_to_every_url(flat):
    assert options_for("s3://bucket", flat) == options_for("sftp://host/folder", flat) == flat
    assert options_for("/a/folder", flat) == {}


PROTOCOLS = st.sampled_from(["s3", "sftp", "gs", "abfs", "http", "memory"])


@given(st.dictionaries(PROTOCOLS, st.dictionaries(st.text(), st.text())), PROTOCOLS)
def test_no_url_gets_the_options_of_another_protocol(options, protocol):
    assert options_for(f"{protocol}://place", options) == options.get(protocol, {})


def test_options_of_other_protocols_do_not_disturb_a_backend(tmp_path: Path):
    folder = Folder("memory://folder", BOTH)
    folder.write("file", b"x")
    assert folder.read("file") == b"x"
    fsspec.filesystem("memory").store.clear()


def test_the_users_own_time_outs_stand():
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    mine = {"read_timeout": 99.0, "retries": {"mode": "adaptive"}}
    filesystem, _ = open_backend("s3://bucket", {"config_kwargs": mine, "max_concurrency": 7})
    assert filesystem.config_kwargs["read_timeout"] == 99.0
    assert filesystem.config_kwargs["retries"] == {"mode": "adaptive"}
    assert filesystem.max_concurrency == 7
    assert open_backend("s3://bucket", {})[0].config_kwargs["read_timeout"] == ANSWER_SECONDS


def test_an_address_and_its_account_are_shown_and_everything_else_is_not():
    options = {
        "s3": {"endpoint_url": "http://minio:9000", "secret": "wJalrXUtnFEMI", "client_kwargs": {"new": "s3cr3t"}}
    }
    told = without_secrets("http://minio:9000 refuses wJalrXUtnFEMI, s3cr3t; ftp://me:pw@host", options)
    assert told == "http://minio:9000 refuses ***, ***; ftp://me:***@host"


def test_a_secret_that_holds_another_is_masked_whole():
    assert without_secrets("hunter22, hunter", {"password": "hunter", "secret": "hunter22"}) == "***, ***"


class Talker(MemoryFileSystem):
    """A backend that tells everything it knows in its errors."""

    protocol = "talker"
    token: str

    def __init__(self, token: str = "", **options: object) -> None:
        super().__init__(**options)
        self.token = token
        if token.startswith("no such file"):
            raise FileNotFoundError(token)

    def cat_file(self, path: str, *_: object, **__: object) -> bytes:
        try:
            raise KeyError(f"inner {self.token}")
        except KeyError as error:
            raise PermissionError(f"{path} is not\nfor {self.token}") from error


@pytest.mark.parametrize("token", ["s3cr3t-t0ken", "no such file s3cr3t-t0ken"])
def test_a_secret_is_in_no_message_and_no_traceback(token, caplog):
    fsspec.register_implementation("talker", Talker, clobber=True)
    with caplog.at_level(logging.DEBUG), pytest.raises(ArtifactError) as caught:
        Folder("talker://folder", {"token": token}).read("file")
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown + caplog.text
    assert "***" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, MissingFileError)
