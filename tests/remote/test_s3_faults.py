"""What breaks between us and a bucket: an artifact is whole or absent, and what passes by itself is waited for."""

import logging
import time

import pytest

from tasks.domain.errors import ArtifactError
from tasks.storage.folder import CHUNK, Folder
from tasks.storage.retrying import PAUSES
from tasks.store import ArtifactStore

KEY = "ab" * 32
PAYLOAD = bytes(range(256)) * 1000
FAULTS = [
    "internal error",
    "bad gateway",
    "slow down",
    "too many requests",
    "upload cut",
    "download cut",
    "answer cut",
    "slow",
]


@pytest.fixture
def store(s3) -> ArtifactStore:
    return ArtifactStore(f"{s3.uri}/cache", s3.storage_options)


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """The seconds that were to be waited for; none of them pass."""
    pauses: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("times", [1, len(PAUSES)])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_not_noticed(store, s3, waited, fault, method, times):
    s3.faults.plan(fault, times, at=f"^{method} .*/cache/")
    ref = store.publish("index", KEY, PAYLOAD)
    assert store.lookup("index", KEY) == ref
    assert store.read(ref) == PAYLOAD
    assert s3.faults.struck


@pytest.mark.parametrize("fault", ["internal error", "slow down", "upload cut", "answer cut"])
@pytest.mark.parametrize("file", ["manifest", r"\.[0-9a-f]{16}\.json"], ids=["manifest", "data"])
def test_an_artifact_is_whole_or_absent_after_a_fault_that_stays_and_is_made_whole_later(
    store, s3, waited, fault, file
):
    s3.faults.plan(fault, 100, at=f"^PUT .*{file}")
    with pytest.raises(ArtifactError, match="run the same command again when it answers"):
        store.publish("index", KEY, PAYLOAD)
    assert len(waited) == len(PAUSES)
    s3.faults.clear()
    found = store.lookup("index", KEY)
    assert found is None or store.read(found) == PAYLOAD
    ref = store.publish("index", KEY, PAYLOAD)
    assert store.lookup("index", KEY) == ref
    assert store.read(ref) == PAYLOAD


@pytest.mark.parametrize("fault", ["internal error", "download cut", "answer cut"])
def test_a_bucket_that_does_not_answer_is_not_taken_for_an_empty_one(store, s3, waited, fault):
    """Else what is there would be made again, and paid for again."""
    store.publish("index", KEY, PAYLOAD)
    s3.faults.plan(fault, 100, at="^(GET|HEAD) ")
    folder = Folder(store.uri, store.storage_options)
    asked = (lambda: store.lookup("index", KEY), lambda: folder.exists("index"), folder.names, folder.files)
    for ask in asked:
        with pytest.raises(ArtifactError, match="was asked several times"):
            ask()


def test_a_line_is_appended_once_whichever_answer_is_lost(s3, waited):
    folder = Folder(s3.uri, s3.storage_options)
    folder.append("status.json", b"1\n")
    for number in (2, 3, 4):
        s3.faults.plan("answer cut", number, at=" /.*status.json")
        folder.append("status.json", f"{number}\n".encode())
    assert folder.read("status.json") == b"1\n2\n3\n4\n"


@pytest.mark.parametrize("fault", ["internal error", "upload cut", "answer cut"])
@pytest.mark.parametrize("step", ["POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId"])
def test_an_upload_in_parts_is_taken_up_again(s3, waited, fault, step):
    folder = Folder(s3.uri, s3.storage_options)
    folder.write("file", b"old")
    s3.faults.plan(fault, 2, at=step)
    folder.write_stream("file", (bytes([number]) * CHUNK for number in range(18)))
    assert folder.read("file") == b"".join(bytes([number]) * CHUNK for number in range(18))
    assert s3.faults.struck


def test_an_upload_in_parts_that_never_ends_leaves_the_old_file(s3, waited):
    folder = Folder(s3.uri, s3.storage_options)
    folder.write("file", b"old")
    s3.faults.plan("internal error", 100, at="PUT .*partNumber=2")
    with pytest.raises(ArtifactError, match="run the same command again"):
        folder.write_stream("file", (bytes(CHUNK) for _ in range(18)))
    assert folder.read("file") == b"old"
    assert folder.names() == ["file"]


@pytest.mark.parametrize("fault", ["internal error", "answer cut"])
def test_a_tree_is_deleted_whichever_answer_is_lost(s3, waited, fault):
    folder = Folder(s3.uri, s3.storage_options)
    for name in "abc":
        folder.write(f"t/{name}", b"x")
    s3.faults.plan(fault, 2, at="^DELETE ")
    folder.delete_tree("t")
    assert folder.files() == []


def test_more_is_waited_from_try_to_try_and_each_time_another_while(store, s3, waited):
    for _ in range(2):
        s3.faults.plan("slow down", len(PAUSES), at="^PUT .*manifest")
        store.publish("index", KEY, PAYLOAD)
        Folder(store.uri, store.storage_options).delete_tree("index")
    assert all(0 <= pause <= most for pause, most in zip(waited, [*PAUSES, *PAUSES], strict=True))
    assert len(set(waited)) == len(waited)


WRONG = {
    "secret": {"secret": "not the secret of this account"},
    "account": {"key": "AKIAIOSFODNN7EXAMPLE"},
    "permission": {},
    "bucket": {},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_stays_wrong_is_told_at_once_in_one_line_without_a_secret(s3, waited, wrong, caplog):
    options = {**s3.storage_options, **WRONG[wrong]}
    store = ArtifactStore("s3://no-such-bucket" if wrong == "bucket" else s3.uri, options)
    if wrong == "permission":
        s3.faults.plan("access denied", 100)
    with caplog.at_level(logging.DEBUG, "tasks"), pytest.raises(ArtifactError) as caught:
        store.publish("index", KEY, PAYLOAD)
    message = str(caught.value)
    assert "\n" not in message
    assert store.uri in message
    assert ("check" if wrong != "bucket" else "there is no such bucket") in message
    assert waited == []
    for secret in (s3.secret, options["secret"], options["key"]):
        assert secret not in message + caplog.text


def test_a_host_that_no_one_knows_is_told_without_waiting(s3, waited):
    folder = Folder(s3.uri, {**s3.storage_options, "endpoint_url": "http://no-such-host.invalid"})
    with pytest.raises(ArtifactError, match=r"no-such-host\.invalid.*check the address"):
        folder.read("file")
    assert waited == []


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told_within_a_minute(s3, free_port):
    folder = Folder(s3.uri, {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{free_port}"})
    begin = time.monotonic()
    with pytest.raises(ArtifactError, match="run the same command again when it answers"):
        folder.read("file")
    assert time.monotonic() - begin < 60
