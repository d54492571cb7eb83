"""Who may work in a folder: the same rules for a local one, whose lock the kernel keeps, and one that has no locks."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.domain.errors import ClaimedError, SpecError
from tasks.storage.claims import claim, owner_of
from tasks.storage.folder import Folder

HEARTBEAT_SECONDS = 0.2


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder that does not exist yet; fsspec shows the remote one as a backend of its own, without locks."""
    if request.param == "local":
        return Folder(str(tmp_path / "a" / "folder"))
    return Folder("dir://a/folder", {"path": str(tmp_path), "target_protocol": "file"})


@pytest.fixture
def claimed(folder: Folder) -> Callable[..., object]:
    """Claims the folder for an owner, at a heartbeat that tests can wait for."""
    return lambda owner="me", exclusive=True: claim(
        folder, exclusive=exclusive, owner=owner, heartbeat_seconds=HEARTBEAT_SECONDS
    )


def left_behind(folder: Folder) -> list[str]:
    return [file.path for file in folder.files()]


@pytest.mark.parametrize(("first", "second"), [(first, second) for first in (True, False) for second in (True, False)])
def test_only_claims_that_are_both_shared_go_together(claimed, first, second):
    with claimed("the first", first) as held:
        if first or second:
            with pytest.raises(ClaimedError, match="is in use by the first; wait for that to end, stop it, or choose"):
                claimed("the second", second).__enter__()
        else:
            with claimed("the second", second):
                pass
        held.refuse_if_lost()


def test_a_refusal_is_one_that_the_user_mends_in_the_spec():
    assert issubclass(ClaimedError, SpecError)


def test_a_folder_need_not_exist_and_the_claim_of_it_leaves_nothing(folder, claimed):
    with claimed():
        pass
    assert left_behind(folder) == []


def test_a_local_folder_that_was_made_for_the_claim_goes_with_it_and_no_other_does(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new", "filled"):
        with claim(Folder(str(tmp_path / name)), exclusive=False, owner="me"):
            if name == "filled":
                (tmp_path / name / "labels.json").write_text("[]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filled", "mine"]


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_a_claim_ends_with_its_context_however_that_ends(folder, claimed, end):
    def work() -> None:
        with claimed():
            if end is not None:
                raise end

    for _ in range(2):
        if end is None:
            work()
        else:
            with pytest.raises(end):
                work()
    assert left_behind(folder) == []


def test_a_refusal_names_who_shares_the_folder_and_nobody_who_left(claimed):
    with claimed("run a", exclusive=False), claimed("run c", exclusive=False):
        with claimed("run b", exclusive=False):
            pass
        with pytest.raises(ClaimedError, match=r"is in use by run [ac]") as refused:
            claimed("prune").__enter__()
    assert "run b" not in str(refused.value)
    with claimed("prune"):
        pass


@pytest.mark.parametrize("comers", [2, 5])
def test_of_several_that_come_at_once_exactly_one_gets_the_folder_and_nobody_is_taken_for_dead(claimed, comers, caplog):
    together, ended = Barrier(comers), Barrier(comers)

    def come(number: int) -> str:
        together.wait()
        try:
            with claimed(f"run {number}"):
                ended.wait(timeout=30)
                return "got it"
        except ClaimedError as refused:
            ended.wait(timeout=30)
            return str(refused)

    with ThreadPoolExecutor(comers) as pool:
        outcomes = list(pool.map(come, range(comers)))
    (winner,) = [number for number, outcome in enumerate(outcomes) if outcome == "got it"]
    assert [f"run {winner}" in outcome for outcome in outcomes].count(True) == comers - 1
    assert "does not answer" not in caplog.text


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(modes=st.lists(st.booleans(), min_size=3, max_size=6))
def test_whoever_has_a_folder_alone_is_alone(claimed, modes):
    guard, inside, seen = Lock(), [], []

    def work(exclusive: bool) -> None:
        for _ in range(3):
            try:
                with claimed(exclusive=exclusive):
                    with guard:
                        inside.append(exclusive)
                        seen.append(list(inside))
                    time.sleep(0.002)
                    with guard:
                        inside.remove(exclusive)
            except ClaimedError:
                pass

    with ThreadPoolExecutor(len(modes)) as pool:
        list(pool.map(work, modes))
    assert [together for together in seen if any(together) and len(together) > 1] == []
    assert seen


def come_and_go(folder: Folder, inside: Lock, *, exclusive: bool) -> tuple[int, int]:
    """Claim the folder again and again for a second: how often others were met in it, and how often it was refused."""
    met = refused = 0
    until = time.monotonic() + 1
    while time.monotonic() < until:
        try:
            with claim(folder, exclusive=exclusive, owner="me"):
                is_alone = inside.acquire(blocking=False)
                met += not is_alone
                time.sleep(0.0002)
                if is_alone:
                    inside.release()
        except ClaimedError:
            refused += 1
    return met, refused


@pytest.mark.parametrize("comers", [2, 8])
def test_the_lock_file_that_the_last_one_deletes_confuses_nobody_who_comes_just_then(tmp_path, comers):
    folder, inside = Folder(str(tmp_path)), Lock()
    with ThreadPoolExecutor(comers) as pool:
        alone = list(pool.map(lambda _: come_and_go(folder, inside, exclusive=True), range(comers)))
        shared = list(pool.map(lambda _: come_and_go(folder, inside, exclusive=False), range(comers)))
    assert [met for met, _ in alone] == [0] * comers
    assert [refused for _, refused in shared] == [0] * comers


def test_an_owner_is_told_with_host_process_and_since_when():
    assert owner_of("autolabel run 'quick-fox'").startswith("autolabel run 'quick-fox' on ")
    assert ", process " in owner_of("x")
    assert owner_of("x").endswith(" UTC")


def test_a_password_in_the_address_is_in_no_refusal():
    folder = Folder("memory://me:correct-horse@host/folder")
    with (
        claim(folder, exclusive=True, owner="me", heartbeat_seconds=HEARTBEAT_SECONDS),
        pytest.raises(ClaimedError, match=r"me:\*\*\*@host") as refused,
    ):
        claim(folder, exclusive=True, owner="you", heartbeat_seconds=HEARTBEAT_SECONDS).__enter__()
    assert "correct-horse" not in str(refused.value)
