"""Claims where something is not as it should be: no locks, no network, folders deleted, files half written."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest

from tasks.domain.errors import ArtifactError, ClaimedError, LostClaimError
from tasks.storage.claimants import Claimant, Process, dump_claimant
from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.storage.local_claims import LOCK_FILE
from tasks.storage.remote_claims import CLAIMS

HEARTBEAT_SECONDS = 0.1
ELSEWHERE = Process(7, 1234, "another kernel")


@pytest.fixture
def remote(tmp_path: Path) -> Folder:
    return Folder("dir://folder", {"path": str(tmp_path), "target_protocol": "file"})


def claim_of(folder: Folder, owner: str = "me", exclusive: bool = True):
    return claim(folder, exclusive=exclusive, owner=owner, heartbeat_seconds=HEARTBEAT_SECONDS)


def leave(folder: Folder, exclusive: bool = True) -> None:
    """The claim of a process that died on another machine."""
    folder.write(f"{CLAIMS}/0123.json", dump_claimant(Claimant("the dead run", exclusive, ELSEWHERE)))
    folder.write(f"{CLAIMS}/0123.beat", b"41")


# --- local


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_local_folder_without_locks_is_claimed_as_a_remote_one(tmp_path, monkeypatch, number):
    def flock(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("tasks.storage.local_claims.fcntl.flock", flock)
    folder = Folder(str(tmp_path / "mounted"))
    with claim_of(folder, "the first") as held:
        assert folder.names() == [CLAIMS]
        with pytest.raises(ClaimedError, match="the first"):
            claim_of(folder).__enter__()
        held.refuse_if_lost()
    assert [file.path for file in folder.files()] == []


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_who_works_in_a_folder_that_is_deleted_is_told_so_and_leaves_the_next_one_alone(tmp_path, is_made_anew):
    folder = Folder(str(tmp_path / "folder"))
    with claim_of(folder, "the first") as held:
        folder.delete_tree(LOCK_FILE)
        if not is_made_anew:
            with pytest.raises(LostClaimError, match="was deleted or replaced while a run worked there"):
                held.refuse_if_lost()
            return
        second = claim_of(folder, "the second")
        second.__enter__()
        with pytest.raises(LostClaimError):
            held.refuse_if_lost()
    with pytest.raises(ClaimedError, match="the second"):
        claim_of(folder).__enter__()
    second.__exit__(None, None, None)


def test_who_held_a_folder_before_is_not_named(tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(
        dump_claimant(Claimant("who was killed elsewhere", exclusive=True, process=ELSEWHERE))
    )
    with claim_of(Folder(str(tmp_path)), "me"), pytest.raises(ClaimedError, match=r"is in use by me; wait"):
        claim_of(Folder(str(tmp_path))).__enter__()


@pytest.mark.parametrize("words", [b"", b"{", b"[]\n", b'{"owner": "x"}\n'])
def test_whoever_cannot_be_named_is_refused_all_the_same(tmp_path, words):
    with claim_of(Folder(str(tmp_path))):
        (tmp_path / LOCK_FILE).write_bytes(words)
        with pytest.raises(ClaimedError, match="is in use by another process"):
            claim_of(Folder(str(tmp_path))).__enter__()


def test_a_folder_that_is_a_file_is_told_with_the_way_out(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ArtifactError, match=r"taken cannot be claimed: .*; check the permissions .*another folder"):
        claim_of(Folder(str(tmp_path / "taken"))).__enter__()
    assert (tmp_path / "taken").read_text() == "mine"


def test_two_addresses_of_one_folder_are_one_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with claim_of(Folder(str(tmp_path / "link")), "the first"), pytest.raises(ClaimedError, match="the first"):
        claim_of(Folder(f"file://{tmp_path}/real")).__enter__()


# --- remote


def test_a_claim_of_a_dead_process_elsewhere_is_taken_over_after_a_silence_and_one_line(remote, caplog):
    leave(remote)
    started = time.monotonic()
    with claim_of(remote):
        assert time.monotonic() - started > 2 * HEARTBEAT_SECONDS
        (told,) = [record.getMessage() for record in caplog.records]
        assert told == "dir://folder: the dead run left its claim and does not answer; taken over after 0 s"
        assert "0123.json" not in remote.names(CLAIMS)
    assert remote.names(CLAIMS) == []


def test_a_dead_claim_that_excludes_nobody_holds_nobody_up(remote):
    leave(remote, exclusive=False)
    started = time.monotonic()
    with claim(remote, exclusive=False, owner="me", heartbeat_seconds=60):
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("payload", [b"", b'{"owner": "the dead r', b"[]", b'{"owner": 1, "exclusive": true}'])
def test_a_claim_that_is_half_written_is_waited_for_and_taken_over(remote, payload):
    remote.write(f"{CLAIMS}/0123.json", payload)
    with claim_of(remote):
        assert "0123.json" not in remote.names(CLAIMS)


def test_a_claim_whose_beat_goes_on_is_refused_at_the_first_beat(remote):
    with claim(remote, exclusive=True, owner="the first", heartbeat_seconds=0.3):
        started = time.monotonic()
        with pytest.raises(ClaimedError, match="the first"):
            claim(remote, exclusive=True, owner="the second", heartbeat_seconds=3).__enter__()
        assert time.monotonic() - started < 1.5


def test_who_loses_its_claim_leaves_that_of_who_took_over(remote):
    with claim_of(remote, "the first") as first:
        for name in remote.names(CLAIMS):
            remote.delete_tree(f"{CLAIMS}/{name}")
        second = claim_of(remote, "the second")
        second.__enter__()
        with pytest.raises(LostClaimError, match="was taken over from the first"):
            first.refuse_if_lost()
    with pytest.raises(ClaimedError, match="the second"):
        claim_of(remote).__enter__()
    second.__exit__(None, None, None)


class Slow(Folder):
    """A folder whose backend takes its time, so that two who come at once see each other's claims."""

    def write(self, path: str, payload: bytes) -> None:
        super().write(path, payload)
        if path.endswith(".json"):
            time.sleep(0.015)


def test_two_that_see_each_other_withdraw_and_one_of_them_comes_back_and_gets_the_folder(caplog):
    folder, together, ended = Slow(f"memory://{uuid4()}"), Barrier(2), Barrier(2)

    def come(owner: str) -> str:
        together.wait()
        try:
            # Of the pauses up to 0.1 s that follow, two differ by more than the 0.015 s nearly always in five tries.
            with claim(folder, exclusive=True, owner=owner, heartbeat_seconds=0.5):
                ended.wait(timeout=30)
                return "got it"
        except ClaimedError as refused:
            ended.wait(timeout=30)
            return str(refused)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(come, ("run 0", "run 1")))
    assert outcomes.count("got it") == 1
    assert "does not answer" not in caplog.text


class Unreachable(Folder):
    """A folder whose backend does not answer when `what` is done to paths that end so."""

    def write(self, path: str, payload: bytes) -> None:
        if path.endswith(".beat") and self.storage_options["fails"] == "beats":
            raise ArtifactError("the network is gone")
        super().write(path, payload)

    def delete_tree(self, path: str) -> None:
        if self.storage_options["fails"] == "withdrawal":
            raise ArtifactError("the network is gone")
        super().delete_tree(path)


def unreachable(fails: str) -> Folder:
    return Unreachable("memory://unreachable", {"fails": fails})


def test_beats_that_fail_end_no_run(caplog):
    with claim_of(unreachable("beats")) as held:
        time.sleep(3 * HEARTBEAT_SECONDS)
        held.refuse_if_lost()


def test_a_claim_that_cannot_be_withdrawn_is_told_and_ends_no_run(caplog):
    with claim_of(unreachable("withdrawal")):
        pass
    assert "the claim of me was not withdrawn: the network is gone" in caplog.text
