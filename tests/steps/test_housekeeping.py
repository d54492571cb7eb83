"""Caches are kept in order: nothing that a run needs is lost, and what is unsound is named."""

import json
import os
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import housekeeping
from tasks.cache_contents import survey
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError, ClaimedError, LostClaimError
from tasks.housekeeping import beyond_size, older_than, plan_pruning, prune, unreferenced, verify
from tasks.registered_runs import RunRegister
from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.store import MANIFEST, ArtifactStore, DamagedArtifactError

LONG_AGO = 1_000_000_000.0  # POSIX seconds: when the first of all artifacts was written; each next one a second later

# Threads of flows that ran before in the process draw random numbers while a strategy does, which Hypothesis warns of.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")


@dataclass
class Cache:
    """A cache in a local folder, and what was done to it."""

    store: ArtifactStore
    refs: list[ArtifactRef] = field(default_factory=list)
    runs: dict[str, set[ArtifactRef]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.store.uri)

    def publish(self, kind: str, number: int, payload: bytes, replaces: ArtifactRef | None = None) -> ArtifactRef:
        ref = self.store.publish(kind, f"{number:02x}" * 32, payload, replaces=replaces)
        if ref not in self.refs:
            self.refs.append(ref)
            for path in self.path.glob(f"{kind}/*/{ref.key}.*"):
                os.utime(path, (LONG_AGO + len(self.refs),) * 2)
        return ref

    def run(self, name: str, needs: Sequence[ArtifactRef], *, finishes: bool = True) -> None:
        begun = RunRegister(self.store).begin(self.results_dir(name), "auto-label")
        begun.needs(needs)
        if finishes:
            begun.finish()
        self.runs[name] = set(needs)

    def results_dir(self, name: str) -> str:
        return str(self.path.parent / name)

    def data(self, ref: ArtifactRef) -> Path:
        return self.path / ref.kind / ref.key[:2] / f"{ref.key}.{ref.sha256[:16]}.json"

    def manifest(self, ref: ArtifactRef) -> Path:
        return self.path / ref.kind / ref.key[:2] / f"{ref.key}{MANIFEST}"

    def files(self) -> dict[str, bytes]:
        """Every file by its path in the cache."""
        return {str(path.relative_to(self.path)): path.read_bytes() for path in self.path.rglob("*") if path.is_file()}

    def readable(self, refs: set[ArtifactRef]) -> dict[ArtifactRef, bytes]:
        found = {}
        for ref in refs:
            try:
                found[ref] = self.store.read(ref)
            except DamagedArtifactError:
                continue
        return found

    def found_by_key(self, refs: set[ArtifactRef]) -> dict[ArtifactRef, ArtifactRef | None]:
        return {ref: self.store.lookup(ref.kind, ref.key) for ref in refs}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(ArtifactStore(str(tmp_path / "cache")))


# --- laws over random caches


@st.composite
def caches(draw: st.DrawFn, folder: Path) -> Cache:
    """A cache with artifacts, some of which took the place of others, orphans, strangers, and runs of all sorts."""
    cache = Cache(ArtifactStore(str(folder / str(uuid4()) / "cache")))
    made = st.tuples(st.sampled_from(["annotations", "masks"]), st.integers(0, 3), st.binary(max_size=40))
    for kind, number, payload in draw(st.lists(made, max_size=8)):
        cache.publish(kind, number, payload, cache.store.lookup(kind, f"{number:02x}" * 32))
    subsets = st.lists(st.sampled_from(cache.refs), unique=True) if cache.refs else st.just([])
    for path_of in (cache.manifest, cache.data):
        for lost in draw(subsets) if draw(st.integers(0, 2)) == 0 else ():
            path_of(lost).unlink(missing_ok=True)
    for number, needs in enumerate(draw(st.lists(subsets, max_size=3))):
        cache.run(f"results-{number}", needs, finishes=draw(st.integers(0, 3)) > 0)
    for name in draw(
        st.sets(st.sampled_from(["mine.txt", "masks/0a/mine.json", "runs/mine.jsonl", "masks/.tmp-mine"]))
    ):
        (cache.path / name).parent.mkdir(parents=True, exist_ok=True)
        (cache.path / name).write_text("not the store's")
    return cache


choices = st.one_of(
    st.just(unreferenced),
    st.integers(0, 12).map(lambda seconds: older_than(LONG_AGO + seconds + 0.5)),
    st.integers(0, 4000).map(beyond_size),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@given(data=st.data(), choice=choices)
def test_whatever_goes_no_run_loses_what_it_needs_and_no_stranger_a_file(folder, data, choice):
    cache = data.draw(caches(folder))
    forget = data.draw(st.lists(st.sampled_from(sorted(cache.runs)), unique=True)) if cache.runs else []
    needed = {ref for name, needs in cache.runs.items() if name not in forget for ref in needs}
    before, found, strangers = cache.readable(needed), cache.found_by_key(needed), _strangers(cache)
    prune(cache.store, choice, [cache.results_dir(name) for name in forget])
    assert cache.readable(needed) == before
    assert cache.found_by_key(needed) == found
    assert _strangers(cache) == strangers
    assert {run.entry.results_dir for run in survey(cache.store).runs} == {
        cache.results_dir(name) for name in cache.runs if name not in forget
    }


def _strangers(cache: Cache) -> dict[str, bytes]:
    return {path: payload for path, payload in cache.files().items() if "mine" in path}


@given(data=st.data(), choice=choices)
def test_the_plan_foresees_every_file_that_goes_and_every_byte_that_stays(folder, data, choice):
    cache = data.draw(caches(folder))
    before = cache.files()
    plan = plan_pruning(cache.store, choice)
    assert cache.files() == before
    planned = {file.path for artifact in plan.artifacts for file in artifact.files}
    planned |= {file.path for file in plan.contents.left_behind}
    assert prune(cache.store, choice) == plan
    after = cache.files()
    assert before.keys() - after.keys() == planned
    assert plan.freed == sum(len(before[path]) for path in planned)
    assert plan.stays == sum(map(len, after.values())) - sum(map(len, _strangers(cache).values()))


@given(data=st.data(), most_bytes=st.integers(0, 4000))
def test_the_cache_fits_the_size_unless_only_what_runs_need_is_left(folder, data, most_bytes):
    cache = data.draw(caches(folder))
    prune(cache.store, beyond_size(most_bytes))
    left = survey(cache.store)
    assert left.bytes <= most_bytes or left.unreferenced == []


@given(data=st.data(), most_bytes=st.integers(0, 4000))
def test_to_fit_a_size_the_oldest_go_and_not_one_too_many(folder, data, most_bytes):
    cache = data.draw(caches(folder))
    plan = plan_pruning(cache.store, beyond_size(most_bytes))
    going = {(artifact.kind, artifact.key) for artifact in plan.artifacts}
    staying = [one for one in plan.contents.unreferenced if (one.kind, one.key) not in going]
    assert all(gone.modified <= kept.modified for gone in plan.artifacts for kept in staying)
    if plan.artifacts:
        assert plan.stays + plan.artifacts[-1].bytes > most_bytes


@given(data=st.data())
def test_after_everything_unreferenced_went_nothing_is_left_to_go(folder, data):
    cache = data.draw(caches(folder))
    prune(cache.store, unreferenced)
    again = plan_pruning(cache.store, unreferenced)
    assert (again.artifacts, again.contents.left_behind, again.freed) == ((), (), 0)


@given(data=st.data(), survives=st.integers(0, 12))
def test_a_kill_at_any_file_leaves_no_manifest_without_its_data_and_the_next_prune_ends_it(folder, data, survives):
    cache = data.draw(caches(folder))
    needed = {ref for needs in cache.runs.values() for ref in needs}
    before, without_data = cache.readable(needed), _manifests_without_data(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "delete_tree", _killed_after(survives, Folder.delete_tree))
        try:
            prune(cache.store, unreferenced)
        except KeyboardInterrupt:
            assert _manifests_without_data(cache) <= without_data
            assert cache.readable(needed) == before
    prune(cache.store, unreferenced)
    assert plan_pruning(cache.store, unreferenced).freed == 0
    assert cache.readable(needed) == before


def _killed_after(deletions: int, delete: Callable[[Folder, str], None]) -> Callable[[Folder, str], None]:
    left = iter(range(deletions))

    def killed(folder: Folder, path: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        delete(folder, path)

    return killed


def _manifests_without_data(cache: Cache) -> set[str]:
    found = set()
    for path, payload in cache.files().items():
        if path.endswith(MANIFEST):
            data = path.removesuffix(MANIFEST) + f".{json.loads(payload)['sha256'][:16]}.json"
            found |= set() if (cache.path / data).exists() else {path}
    return found


# --- what may go, and what may not


def paths_of(contents_or_plan: object) -> list[tuple[str, str]]:
    return [(artifact.kind, artifact.key[:2]) for artifact in getattr(contents_or_plan, "artifacts", [])]


def test_what_an_unfinished_run_made_and_did_not_tell_yet_is_kept(cache):
    before = cache.publish("masks", 1, b"made before the run")
    RunRegister(cache.store).begin(cache.results_dir("out"), "auto-label")
    made = cache.store.publish("masks", f"{2:02x}" * 32, b"made by the run that was killed")
    plan = prune(cache.store, unreferenced)
    assert paths_of(plan) == [("masks", "01")]
    assert [artifact.key for artifact in plan.contents.recent] == [made.key]
    assert (cache.readable({before}), cache.readable({made})) == ({}, {made: b"made by the run that was killed"})


def test_a_run_that_was_killed_twice_keeps_what_the_first_try_made(cache):
    RunRegister(cache.store).begin(cache.results_dir("out"), "auto-label")
    made = cache.store.publish("masks", f"{1:02x}" * 32, b"x")
    time.sleep(0.02)
    RunRegister(cache.store).begin(cache.results_dir("out"), "auto-label").needs([ArtifactRef("index", "0" * 64, "")])
    prune(cache.store, unreferenced)
    assert cache.readable({made}) == {made: b"x"}


def test_forgetting_an_unfinished_run_lets_go_what_it_made(cache):
    RunRegister(cache.store).begin(cache.results_dir("out"), "auto-label")
    cache.store.publish("masks", f"{1:02x}" * 32, b"x")
    prune(cache.store, unreferenced, [cache.results_dir("out")])
    assert cache.files() == {}


def test_of_artifacts_whose_age_is_not_known_none_is_old(cache, monkeypatch):
    ref = cache.publish("masks", 1, b"x")
    os.utime(cache.data(ref), (0, 0))
    os.utime(cache.manifest(ref), (0, 0))
    assert plan_pruning(cache.store, older_than(time.time())).artifacts == ()


def test_data_whose_place_another_artifact_took_go_unless_a_run_refers_to_them(cache):
    first = cache.publish("masks", 1, b"first")
    second = cache.publish("masks", 1, b"second", replaces=first)
    cache.run("out", [second])
    assert [file.path for file in survey(cache.store).orphans] == [str(cache.data(first).relative_to(cache.path))]
    cache.run("other", [first])
    assert survey(cache.store).orphans == ()
    prune(cache.store, unreferenced)
    assert cache.readable({first, second}) == {first: b"first", second: b"second"}


def test_an_artifact_that_stands_where_a_run_needs_another_is_needed(cache):
    first = cache.publish("masks", 1, b"first")
    cache.run("out", [first])
    cache.data(first).unlink()
    second = cache.publish("masks", 1, b"second")
    assert prune(cache.store, unreferenced).artifacts == ()
    assert cache.store.lookup("masks", first.key) == second


def test_a_cache_that_just_fits_loses_nothing(cache):
    cache.publish("masks", 1, b"x")
    size = survey(cache.store).bytes
    chosen = [plan_pruning(cache.store, beyond_size(most)).artifacts for most in (size, size - 1)]
    assert list(map(len, chosen)) == [0, 1]


def test_data_under_a_key_whose_manifest_is_damaged_are_no_orphans_yet(cache):
    first = cache.publish("masks", 1, b"first")
    second = cache.publish("masks", 1, b"second", replaces=first)
    cache.manifest(second).write_text("cut")
    assert survey(cache.store).orphans == ()


def test_a_damaged_register_keeps_everything_and_says_how_to_go_on(cache):
    cache.publish("masks", 1, b"x")
    cache.run("out", [])
    (register,) = (cache.path / "runs").iterdir()
    register.write_bytes(register.read_bytes()[:-9])
    before = cache.files()
    with pytest.raises(ArtifactError, match=r"runs/.*\.auto-label\.jsonl in .* was cut or changed: .*repeat that run"):
        prune(cache.store, unreferenced)
    assert cache.files() == before
    prune(cache.store, unreferenced, [cache.results_dir("out")])
    assert cache.files() == {}


def test_a_register_of_a_newer_format_keeps_everything(cache):
    cache.publish("masks", 1, b"x")
    cache.run("out", [])
    (register,) = (cache.path / "runs").iterdir()
    register.write_text('{"format": 2}\n')
    for forget in ([], [cache.results_dir("out")]):
        with pytest.raises(ArtifactError, match="newer than 1"):
            prune(cache.store, unreferenced, forget)
    assert cache.readable(set(cache.refs))


def test_a_results_dir_that_no_run_is_over_cannot_be_forgotten(cache):
    cache.publish("masks", 1, b"x")
    cache.run("out", [])
    before = cache.files()
    with pytest.raises(ArtifactError, match=rf"no run over typo is registered .* over: {cache.results_dir('out')}$"):
        prune(cache.store, unreferenced, ["typo", cache.results_dir("out")])
    assert cache.files() == before


def test_all_flows_over_a_results_dir_are_forgotten_and_no_others(cache):
    for results_dir, flow in (("out", "auto-label"), ("out", "segment-masks"), ("other", "auto-label")):
        RunRegister(cache.store).begin(cache.results_dir(results_dir), flow).finish()
    plan = prune(cache.store, unreferenced, [cache.results_dir("out")])
    assert [entry.flow for entry in plan.forgotten] == ["auto-label", "segment-masks"]
    assert [run.entry.results_dir for run in survey(cache.store).runs] == [cache.results_dir("other")]


def test_a_cache_that_a_run_uses_is_not_pruned(cache):
    cache.publish("masks", 1, b"x")
    with (
        claim(Folder(cache.store.uri), exclusive=False, owner="the nightly run"),
        pytest.raises(ClaimedError, match="in use by the nightly run"),
    ):
        prune(cache.store, unreferenced)
    assert cache.readable(set(cache.refs))


def test_who_has_lost_the_cache_to_another_process_deletes_nothing_more(cache, monkeypatch):
    cache.publish("masks", 1, b"x")

    class Lost:
        def refuse_if_lost(self) -> None:
            raise LostClaimError("it was taken over")

    monkeypatch.setattr(housekeeping, "claim", lambda *_, **__: nullcontext(Lost()))
    with pytest.raises(LostClaimError):
        prune(cache.store, unreferenced)
    assert cache.readable(set(cache.refs))


def test_temporary_files_of_killed_processes_go_and_those_of_living_ones_stay(cache):
    from tasks.storage.temporaries import temporary_name

    ref = cache.publish("masks", 1, b"x")
    cache.run("out", [ref])
    mine = temporary_name()
    pid = str(os.getpid())
    dead = mine.replace(f"-{pid}-", f"-{2**22 + 1}-")  # beyond the largest process id of Linux
    for name in (mine, dead):
        (cache.data(ref).parent / name).write_text("half")
        (cache.path / "runs" / name).write_text("half")
    cache.path.joinpath("elsewhere").mkdir()
    cache.path.joinpath("elsewhere", dead).write_text("not beside an artifact")
    plan = prune(cache.store, unreferenced)
    assert sorted(file.path for file in plan.contents.temporaries) == [f"masks/01/{dead}", f"runs/{dead}"]
    left = {path for path in cache.files() if ".tmp-" in path}
    assert left == {f"masks/01/{mine}", f"runs/{mine}", f"elsewhere/{dead}"}


# --- what lies there


@given(payload=st.binary(max_size=100), kind=st.from_regex(r"[a-z]{1,9}", fullmatch=True), key=st.binary(min_size=32))
def test_every_file_that_the_store_writes_is_known_by_its_name(folder, payload, kind, key):
    store = ArtifactStore(str(folder / str(uuid4())))
    ref = store.publish(kind, key[:32].hex(), payload)
    found = survey(store)
    assert [(artifact.kind, artifact.key) for artifact in found.artifacts] == [(ref.kind, ref.key)]
    assert (found.foreign, found.orphans) == (0, ())
    assert found.bytes == sum(path.stat().st_size for path in Path(store.uri).rglob("*.json"))


KEY, DIGEST = "ab" * 32, "0123456789abcdef"
ALIKE = (
    f"masks/ab/{KEY}.json",
    f"masks/ab/{KEY}.{DIGEST[:-1]}.json",
    f"masks/ab/{KEY.upper()}.{DIGEST}.json",
    f"masks/cd/{KEY}.{DIGEST}.json",
    f"masks/ab/{KEY[:-1]}{MANIFEST}",
    f"masks/ab/{KEY}{MANIFEST}.bak",
    f"masks/{KEY}{MANIFEST}",
    f"deeper/masks/ab/{KEY}{MANIFEST}",
    f"ab/{KEY}{MANIFEST}",
    f"runs/{KEY}.jsonl",
    f"deeper/runs/{KEY}.auto-label.jsonl",
)


@pytest.mark.parametrize("name", ALIKE)
def test_a_file_whose_name_is_only_like_those_of_the_store_is_left_alone(cache, name):
    (cache.path / name).parent.mkdir(parents=True)
    (cache.path / name).write_text("mine")
    assert survey(cache.store).foreign == 1
    prune(cache.store, unreferenced)
    assert cache.files() == {name: b"mine"}


def test_the_files_of_a_claim_are_no_strangers(cache):
    cache.publish("masks", 1, b"x")
    remote = ArtifactStore(f"memory://{uuid4()}")
    remote.publish("masks", "ab" * 32, b"x")
    for store in (cache.store, remote):
        with claim(Folder(store.uri), exclusive=False, owner="a run"):
            assert survey(store).foreign == 0
    fsspec.filesystem("memory").store.clear()


def test_what_runs_need_and_is_not_there_is_missing(cache):
    there, gone = cache.publish("masks", 1, b"x"), ArtifactRef("masks", "ab" * 32, "cd" * 32)
    cache.run("out", [there, gone])
    found = survey(cache.store)
    assert found.missing == (gone,)
    assert [(run.needed, run.there) for run in found.runs] == [(2, 1)]
    assert found.runs[0].bytes == sum(map(len, map(Path.read_bytes, (cache.data(there), cache.manifest(there)))))


# --- whether it is sound


def test_a_cache_whose_artifacts_are_all_as_their_manifests_say_is_sound(cache):
    first = cache.publish("masks", 1, b"first")
    cache.publish("masks", 1, b"second", replaces=first)
    cache.run("out", [cache.publish("annotations", 1, b"x"), first])
    found = verify(cache.store)
    assert (found.is_sound, found.damaged, len(found.contents.artifacts)) == (True, (), 2)


def test_orphans_do_not_make_a_cache_unsound(cache):
    cache.manifest(cache.publish("masks", 1, b"x")).unlink()
    found = verify(cache.store)
    assert (found.is_sound, len(found.contents.orphans)) == (True, 1)


DAMAGES: Mapping[str, tuple[Callable[[Cache, ArtifactRef], object], str]] = {
    "a changed byte": (lambda cache, ref: cache.data(ref).write_bytes(b"other"), ".json has sha256 d9298a10d1b07358"),
    "a cut file": (lambda cache, ref: cache.data(ref).write_bytes(b""), ".json has sha256 e3b0c44298fc1c14"),
    "data that are gone": (lambda cache, ref: cache.data(ref).unlink(), ".manifest.json has lost its data"),
    "a manifest of other bytes": (
        lambda cache, ref: _retold(cache.manifest(ref), ref),
        ".manifest.json is not a manifest",
    ),
    "a cut manifest": (lambda cache, ref: cache.manifest(ref).write_text('{"form'), ".manifest.json is not a manifest"),
    "a manifest that is gone": (
        lambda cache, ref: cache.manifest(ref).unlink(),
        "has no manifest, and a registered run",
    ),
}


def _retold(manifest: Path, ref: ArtifactRef) -> None:
    """Have the manifest tell another digest, which begins as that in the name of the data."""
    other = ref.sha256[:-1] + ("0" if ref.sha256[-1] != "0" else "1")
    manifest.write_text(manifest.read_text().replace(ref.sha256, other))


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damage_is_named_and_nothing_else(cache, damage, told):
    refs = [cache.publish("masks", number, b"%d" % number) for number in range(3)]
    cache.run("out", refs)
    damage(cache, refs[1])
    (line,) = verify(cache.store).damaged
    assert line.startswith(f"masks/01/{'01' * 32}.")
    assert told in line


def test_data_that_only_a_run_refers_to_are_read_too(cache):
    first = cache.publish("masks", 1, b"first")
    cache.publish("masks", 1, b"second", replaces=first)
    cache.run("out", [first])
    cache.data(first).write_bytes(b"other")
    (line,) = verify(cache.store).damaged
    assert line.startswith(f"{cache.data(first).relative_to(cache.path)} has sha256")


@pytest.mark.parametrize("spoil", ["missing", "register"])
def test_a_cache_in_which_a_run_misses_something_is_not_sound(cache, spoil):
    cache.run("out", [ArtifactRef("masks", "ab" * 32, "cd" * 32)] if spoil == "missing" else [])
    if spoil == "register":
        (register,) = (cache.path / "runs").iterdir()
        register.write_bytes(b"")
    assert (verify(cache.store).is_sound, verify(cache.store).damaged) == (False, ())


def test_a_cache_is_read_in_level_memory(cache):
    for number in range(120):
        cache.publish("masks", number, os.urandom(2**20))
    tracemalloc.start()
    assert verify(cache.store).is_sound
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20
