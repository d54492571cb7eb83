"""Claims of real processes that are killed, suspended, or leave children behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.domain.errors import ClaimedError
from tasks.storage.claimants import Process, load_claimant, this_process
from tasks.storage.claims import claim
from tasks.storage.folder import Folder

# Claims a folder, says so, and asks at every line of its input whether the claim still holds.
OWNER = """
import subprocess, sys
from tasks.storage.claims import claim
from tasks.domain.errors import LostClaimError
from tasks.storage.folder import Folder

root, kind, heartbeat = sys.argv[1:]
folder = Folder(root) if kind == "local" else Folder("dir://folder", {"path": root, "target_protocol": "file"})
with claim(folder, exclusive=True, owner="the run of before", heartbeat_seconds=float(heartbeat)) as held:
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    for _ in sys.stdin:
        try:
            held.refuse_if_lost()
            print("holds", flush=True)
        except LostClaimError as lost:
            print(lost, flush=True)
    child.kill()
    child.wait()
"""
KINDS = ("local", "remote")


def folder_at(root: Path, kind: str) -> Folder:
    return (
        Folder(str(root)) if kind == "local" else Folder("dir://folder", {"path": str(root), "target_protocol": "file"})
    )


class Owner:
    """A process that has claimed a folder."""

    def __init__(self, root: Path, kind: str, heartbeat_seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(root), kind, str(heartbeat_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.child = int(self.process.stdout.readline())

    def ask(self) -> str:
        """What it answers when asked whether its claim holds."""
        assert self.process.stdin
        assert self.process.stdout
        print("well?", file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    """Starts a process that has claimed the folder; it and its child are gone afterwards."""
    started: list[Owner] = []

    def start(kind: str, heartbeat_seconds: float) -> Owner:
        started.append(Owner(tmp_path, kind, heartbeat_seconds))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
        with suppress(ProcessLookupError):
            os.kill(one.child, signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_is_killed_blocks_nobody_not_even_through_a_child_that_lives_on(owner, tmp_path, kind):
    killed = owner(kind, 60)
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    started = time.monotonic()
    with claim(folder_at(tmp_path, kind), exclusive=True, owner="the next run", heartbeat_seconds=60):
        assert time.monotonic() - started < 2
        assert Path(f"/proc/{killed.child}").exists()


def test_a_process_that_is_killed_blocks_nobody_before_its_parent_has_heard_of_it(owner, tmp_path):
    killed = owner("remote", 60)
    killed.process.send_signal(signal.SIGKILL)
    started = time.monotonic()
    while not _is_zombie(killed.process.pid):
        time.sleep(0.01)
    with claim(folder_at(tmp_path, "remote"), exclusive=True, owner="the next run", heartbeat_seconds=60):
        assert time.monotonic() - started < 2


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_a_process_that_is_suspended_keeps_its_local_folder(owner, tmp_path):
    suspended = owner("local", 0.1)
    suspended.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ClaimedError, match="the run of before"):
        claim(folder_at(tmp_path, "local"), exclusive=True, owner="the next run").__enter__()
    suspended.process.send_signal(signal.SIGCONT)
    assert suspended.ask() == "holds\n"


def test_a_process_that_is_suspended_is_taken_over_where_there_are_no_locks_and_finds_that_out(owner, tmp_path, caplog):
    suspended = owner("remote", 0.4)
    assert suspended.ask() == "holds\n"
    suspended.process.send_signal(signal.SIGSTOP)
    with claim(folder_at(tmp_path, "remote"), exclusive=True, owner="the next run", heartbeat_seconds=0.4) as held:
        assert "the run of before left its claim and does not answer; taken over after 1 s" in caplog.text
        suspended.process.send_signal(signal.SIGCONT)
        told = suspended.ask()
        assert "was taken over from the run of before, which did not show for 1 s that it lives" in told
        time.sleep(1)  # its heart would have beaten twice
        assert "was taken over" in suspended.ask()
        held.refuse_if_lost()
    with claim(folder_at(tmp_path, "remote"), exclusive=True, owner="one more", heartbeat_seconds=60):
        pass


# --- which process it is


PRINT_CLAIMANT = """
import sys
from tasks.storage.claimants import Claimant, dump_claimant, this_process
sys.stdout.buffer.write(dump_claimant(Claimant("me", True, this_process())))
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_process_that_runs_is_not_gone_and_one_that_ended_is():
    with subprocess.Popen(
        [sys.executable, "-c", PRINT_CLAIMANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        other = load_claimant(child.stdout.readline()).process
        assert (other.pid, this_process().is_gone(), other.is_gone()) == (child.pid, False, False)
        child.communicate()
        assert other.is_gone()


def test_a_process_id_that_was_given_again_is_another_process():
    me = this_process()
    assert Process(me.pid, me.started - 1, me.counted_in).is_gone()


@pytest.mark.parametrize("counted_in", [None, "another kernel pid:[4026531836]"])
def test_of_a_process_of_another_machine_or_container_nothing_is_known(counted_in):
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not Process(ended.pid, 0, counted_in).is_gone()
    assert Process(ended.pid, 0, this_process().counted_in).is_gone()
