"""What a cache knows about the runs that use it: nothing that a run needs is ever dropped too early."""

import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import registered_runs
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError
from tasks.registered_runs import REGISTER_FILE, DamagedEntry, RunEntry, RunRegister
from tasks.store import ArtifactStore

FLOW = "auto-label"


def ref(number: int, kind: str = "candidates") -> ArtifactRef:
    return ArtifactRef(kind, f"{number:064x}", f"{number + 1:064x}")


@pytest.fixture(params=["path", "memory URL"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    yield ArtifactStore({"path": str(tmp_path / "cache"), "memory URL": f"memory://{uuid4()}"}[request.param])
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "cache"))


def entry(store: ArtifactStore) -> RunEntry:
    (found,) = RunRegister(store).entries()
    assert isinstance(found, RunEntry)
    return found


def run(store: ArtifactStore, results_dir: str, refs: Iterable[ArtifactRef], flow: str = FLOW) -> None:
    """A run from its beginning to its end."""
    begun = RunRegister(store).begin(results_dir, flow)
    begun.needs(refs)
    begun.finish()


def register_file(store: ArtifactStore) -> Path:
    (file,) = Path(store.uri, "runs").iterdir()
    return file


def test_a_finished_run_needs_what_it_told(store, tmp_path):
    run(store, str(tmp_path / "out"), [ref(1), ref(2), ref(1)])
    found = entry(store)
    assert (found.flow, found.results_dir, found.state, found.since) == (FLOW, str(tmp_path / "out"), "finished", None)
    assert found.needs == {ref(1), ref(2)}


def test_what_only_the_run_before_needed_is_kept_until_this_one_is_finished(store, tmp_path):
    run(store, str(tmp_path), [ref(1), ref(2)])
    again = RunRegister(store).begin(str(tmp_path), FLOW)
    assert (entry(store).state, entry(store).needs) == ("running", {ref(1), ref(2)})
    again.needs([ref(2), ref(3)])
    assert (entry(store).state, entry(store).needs) == ("running", {ref(1), ref(2), ref(3)})
    again.finish()
    assert (entry(store).state, entry(store).needs) == ("finished", {ref(2), ref(3)})


def test_killed_runs_leave_all_that_any_of_them_needed(store, tmp_path):
    run(store, str(tmp_path), [ref(1)])
    for number in (2, 3):
        RunRegister(store).begin(str(tmp_path), FLOW).needs([ref(number)])
    assert entry(store).needs == {ref(1), ref(2), ref(3)}


def test_a_killed_run_stays_unfinished_since_the_first_of_its_tries_began(store, tmp_path):
    RunRegister(store).begin(str(tmp_path), FLOW)
    since = entry(store).since
    assert since
    for number in range(3):
        RunRegister(store).begin(str(tmp_path), FLOW).needs([ref(number)])
    assert entry(store).since == since


def test_a_run_after_a_finished_one_is_unfinished_since_it_began_itself(local, tmp_path):
    run(local, str(tmp_path), [ref(1)])
    os.utime(register_file(local), (1000, 1000))
    RunRegister(local).begin(str(tmp_path), FLOW).needs([ref(2)])
    assert entry(local).since > 1000


def test_the_flows_of_one_results_dir_and_other_results_dirs_keep_what_is_theirs(store, tmp_path):
    for flow, results_dir, number in ((FLOW, "a", 1), ("segment-masks", "a", 2), (FLOW, "b", 3)):
        run(store, str(tmp_path / results_dir), [ref(number)], flow)
    run(store, str(tmp_path / "a"), [], "segment-masks")
    kept = {(Path(e.results_dir).name, e.flow): e.needs for e in RunRegister(store).entries()}
    assert kept == {("a", FLOW): {ref(1)}, ("a", "segment-masks"): frozenset(), ("b", FLOW): {ref(3)}}


def test_a_results_dir_is_the_same_however_it_is_written(store, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    written = ("out", "./out/", f"{tmp_path}/x/../out", "link", f"file://{tmp_path}/out")
    for number, results_dir in enumerate(written):
        run(store, results_dir, [ref(number)])
    assert (entry(store).results_dir, entry(store).needs) == (str(tmp_path / "out"), {ref(len(written) - 1)})


@given(refs=st.sets(st.builds(ref, st.integers(0, 99), st.sampled_from(["annotations", "masks"]))), data=st.data())
def test_equal_needs_give_equal_bytes_in_whatever_order_they_were_told(tmp_path_factory, refs, data):
    folder = tmp_path_factory.mktemp("order")
    written = set()
    for told in (sorted(refs, key=str), data.draw(st.permutations(sorted(refs, key=str)))):
        store = ArtifactStore(str(folder / "cache"))
        begun = RunRegister(store).begin(str(folder / "out"), FLOW)
        at = data.draw(st.integers(0, len(told)))
        begun.needs(told[:at])
        begun.needs(iter(told[at // 2 :]))
        begun.finish()
        written.add(register_file(store).read_bytes())
    assert len(written) == 1


def test_what_is_known_to_be_needed_is_not_written_again(local, tmp_path):
    begun = RunRegister(local).begin(str(tmp_path), FLOW)
    begun.needs([ref(1), ref(2)])
    os.utime(register_file(local), (1000, 1000))
    begun.needs([ref(2)])
    begun.needs([])
    assert register_file(local).stat().st_mtime == 1000


@pytest.mark.parametrize("flow", ["", "Auto Label", "auto/label", "auto.label"])
def test_a_flow_whose_register_nobody_would_find_is_refused(local, tmp_path, flow):
    with pytest.raises(ValueError, match="expected lower-case letters, digits and hyphens"):
        RunRegister(local).begin(str(tmp_path), flow)
    assert RunRegister(local).files() == []


# --- files that cannot be trusted


@given(where=st.floats(0, 1, exclude_max=True), how=st.sampled_from(["cut", "changed", "grown"]))
def test_a_register_that_was_cut_or_changed_anywhere_is_damaged_and_never_needs_less(tmp_path_factory, where, how):
    folder = tmp_path_factory.mktemp("cut")
    store = ArtifactStore(str(folder / "cache"))
    run(store, str(folder), map(ref, range(3)))
    file = register_file(store)
    whole = file.read_bytes()
    at = int(where * len(whole))
    damaged = {"cut": whole[:at], "changed": whole[:at] + b"~" + whole[at + 1 :], "grown": whole + whole[at:]}
    file.write_bytes(damaged[how])
    assert list(RunRegister(store).entries()) == [DamagedEntry(f"runs/{file.name}")]


@pytest.mark.parametrize("garbage", [b"", b"\n", b"null\n", b"[]\n[]\n", b"{}\n", b'{"format": "x"}\n', b"\xff\xfe"])
def test_what_is_no_register_is_damaged(local, tmp_path, garbage):
    run(local, str(tmp_path), [ref(1)])
    register_file(local).write_bytes(garbage)
    assert [type(found) for found in RunRegister(local).entries()] == [DamagedEntry]


def test_a_damaged_register_stays_until_the_run_that_replaces_it_is_finished(local, tmp_path, caplog):
    run(local, str(tmp_path), [ref(1)])
    register_file(local).write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        again = RunRegister(local).begin(str(tmp_path), FLOW)
    again.needs([ref(2)])
    assert register_file(local).read_bytes() == b"cut"
    again.finish()
    assert entry(local).needs == {ref(2)}
    (told,) = caplog.messages
    assert told.startswith(f"runs/{register_file(local).name} in {local.uri} was cut or changed")


@pytest.mark.parametrize("use", [lambda register, _: list(register.entries()), lambda r, out: r.begin(out, FLOW)])
def test_a_register_of_a_newer_format_is_refused(local, tmp_path, use):
    run(local, str(tmp_path), [ref(1)])
    register_file(local).write_bytes(b'{"format": 2, "other": "fields"}\nand lines\n')
    with pytest.raises(ArtifactError, match=r"runs/[0-9a-f]{64}\.auto-label\.jsonl .* is of format 2, newer than 1"):
        use(RunRegister(local), str(tmp_path))


def test_a_foreign_file_beside_the_registers_is_no_run(local, tmp_path):
    run(local, str(tmp_path), [ref(1)])
    for name in ("notes.txt", f"{'0' * 64}.jsonl", f"{'0' * 63}.auto-label.jsonl"):
        Path(local.uri, "runs", name).write_text("mine")
    assert [REGISTER_FILE.fullmatch(found.path) is not None for found in RunRegister(local).entries()] == [True]


# --- secrets, machines, and what is left of a results_dir


def test_no_secret_is_in_the_register():
    store = ArtifactStore(f"memory://{uuid4()}", {"token": "correct-horse"})
    run(store, "memory://user:correct-horse@host/out", [ref(1)])
    (path,) = fsspec.filesystem("memory").find(store.uri.removeprefix("memory://"))
    written = fsspec.filesystem("memory").cat(path)
    assert b"correct-horse" not in written
    assert json.loads(written.splitlines()[0])["results_dir"] == "memory://user:***@host/out"
    fsspec.filesystem("memory").store.clear()


def test_folders_of_one_name_on_two_machines_that_share_a_remote_cache_are_two(tmp_path, monkeypatch):
    store = ArtifactStore(f"memory://{uuid4()}")
    for number, machine in enumerate(("left", "right")):
        monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
        run(store, str(tmp_path), [ref(number)])
    found = {e.machine: e.needs for e in RunRegister(store).entries()}
    assert found == {"left": {ref(0)}, "right": {ref(1)}}
    told = {e.machine: RunRegister(store).has_results(e) for e in RunRegister(store).entries()}
    assert told == {"left": None, "right": False}
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(("results_dir", "there"), [("full", True), ("empty", False), ("gone", False)])
def test_whether_anything_is_in_a_results_dir_is_told(local, tmp_path, results_dir, there):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    run(local, str(tmp_path / results_dir), [])
    assert RunRegister(local).has_results(entry(local)) is there


def test_a_results_dir_that_cannot_be_reached_is_neither_there_nor_gone(local, monkeypatch):
    run(local, "memory://bucket/out", [])
    monkeypatch.setattr(registered_runs.Folder, "names", _unreachable)
    assert RunRegister(local).has_results(entry(local)) is None


def _unreachable(*_: object) -> Callable[[], list[str]]:
    raise ArtifactError("nobody answers")


def test_a_run_is_found_by_its_results_dir_and_by_the_address_in_its_entry(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(store, "out", [ref(1)])
    found = entry(store)
    asked = ("out", f"{tmp_path}/out/", found.results_dir, "other", str(tmp_path))
    assert [RunRegister(store).is_over(results_dir, found) for results_dir in asked] == [True] * 3 + [False] * 2


def test_a_damaged_entry_is_found_by_its_results_dir(local, tmp_path):
    run(local, str(tmp_path / "out"), [ref(1)])
    register_file(local).write_bytes(b"")
    (found,) = RunRegister(local).entries()
    assert RunRegister(local).is_over(str(tmp_path / "out"), found)
    assert not RunRegister(local).is_over(str(tmp_path), found)
