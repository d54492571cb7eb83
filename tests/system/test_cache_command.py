"""`autolabel cache` as a user has it: real processes, real exit statuses, real files."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.filesize import decimal

from flows.cli import _parser, run
from tasks.domain.artifacts import ArtifactRef
from tasks.registered_runs import RunRegister
from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.store import ArtifactStore

Run = subprocess.CompletedProcess[str]
Cache = Callable[..., Run]

SECRET = "correct-horse-battery"
WIDE = "300"  # columns: too many to break a line
DAY = 86_400


@pytest.fixture
def process(tmp_path: Path) -> Cache:
    """Runs `autolabel cache` with the arguments in a process of its own, in `tmp_path`."""

    def command(*arguments: str) -> Run:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "cache", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": WIDE},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cache:
    """Does the same in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDE)

    def command(*arguments: str) -> Run:
        capsys.readouterr()
        try:
            status = run(["cache", *arguments])
        except SystemExit as exit_of_argparse:
            status = int(str(exit_of_argparse.code))
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return command


@pytest.fixture
def refs(tmp_path: Path) -> list[ArtifactRef]:
    """Three artifacts in out/cache, 1, 11 and 21 days old, of which a run over `out` needs the first."""
    store = ArtifactStore(str(tmp_path / "out" / "cache"))
    refs = [store.publish("masks", f"{number:02x}" * 32, b"m" * 1000) for number in range(3)]
    for number, ref in enumerate(refs):
        for path in (tmp_path / "out" / "cache").rglob(f"{ref.key}.*"):
            os.utime(path, (time.time() - (1 + 10 * number) * DAY,) * 2)
    begun = RunRegister(store).begin(str(tmp_path / "out"), "segment-masks")
    begun.needs(refs[:1])
    begun.finish()
    return refs


def left(tmp_path: Path) -> list[int]:
    """The numbers of the artifacts that are still there."""
    return sorted(int(path.parent.name, 16) for path in (tmp_path / "out").rglob("*.manifest.json"))


def size(tmp_path: Path, *numbers: int) -> str:
    """The size of these artifacts, as it is shown."""
    folders = [tmp_path / "out" / "cache" / "masks" / f"{number:02x}" for number in numbers]
    return decimal(sum(path.stat().st_size for folder in folders for path in folder.iterdir()))


def assert_refused(done: Run, *told: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert [part for part in told if part not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


# --- ls


def test_ls_says_who_uses_the_cache_and_what_is_in_it(process, refs, tmp_path):
    (tmp_path / "out" / "cache" / "notes.txt").write_text("mine")
    shown = process("ls", "out")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines() if "│" in line]
    assert rows[0] == [str(tmp_path / "out"), "segment-masks", "finished", "1", size(tmp_path, 0), "there"]
    held = ["3", size(tmp_path, 0, 1, 2), f"2, {size(tmp_path, 1, 2)}"]
    assert [row[:4] for row in rows[1:]] == [["masks", *held], ["all", *held]]
    assert "files of other kinds: 1; they are left alone" in shown.stdout


def test_ls_tells_a_program_the_same_in_bytes_and_seconds(cache, refs, tmp_path):
    told = json.loads(cache("ls", "out", "--json").stdout)
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.json*"))
    assert (told["bytes"], told["other_files"], told["damaged_runs"]) == (size, 0, [])
    (masks,) = told["kinds"].values()
    assert (masks["artifacts"], masks["unreferenced"]) == (3, 2)
    assert [round((time.time() - masks[end]) / DAY) for end in ("oldest", "newest")] == [21, 1]
    (run,) = told["runs"]
    assert (run["results_dir"], run["finished"], run["results_there"]) == (str(tmp_path / "out"), True, True)


@pytest.mark.parametrize("address", ["out", "out/", "out/cache", "./out/cache/", "linked"])
def test_a_results_dir_stands_for_its_cache(cache, refs, tmp_path, address):
    (tmp_path / "linked").symlink_to("out")
    assert len(json.loads(cache("ls", address, "--json").stdout)["runs"]) == 1


def test_a_results_dir_stands_for_the_cache_dir_that_its_run_named(cache, refs, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text(json.dumps({"spec": {"cache_dir": str(tmp_path / "out" / "cache")}}))
    assert len(json.loads(cache("ls", "results", "--json").stdout)["runs"]) == 1


def test_a_spec_stands_for_the_cache_of_its_runs(cache, refs, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "autolabel_type: grounding_dino\nresults_dir: elsewhere\nstorage_options: {secret: x}\n"
        "grounding_dino: {checkpoint: fake, dataset: {image_dir: images, class_names: [cat]}}\n"
    )
    for overrides in (["results_dir=out"], ["cache_dir=out/cache"]):
        shown = cache("ls", "--json", "-e", "mine.yaml", *overrides)
        assert json.loads(shown.stdout)["cache"] == "out/cache"


def test_a_cache_in_which_no_run_is_registered_is_shown_as_such(cache, tmp_path):
    ArtifactStore(str(tmp_path / "cache")).publish("masks", "ab" * 32, b"x")
    assert "no run is registered here" in cache("ls", "cache").stdout


# --- verify


def test_verify_of_a_sound_cache_is_done(cache, refs):
    done = cache("verify", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "artifacts read: 3; damaged: 0\n", "")


def test_verify_names_what_is_damaged_and_its_exit_status_says_so(process, refs, tmp_path):
    (data,) = (tmp_path / "out" / "cache" / "masks" / "01").glob(f"{refs[1].key}.{refs[1].sha256[:16]}.json")
    data.write_bytes(b"m" * 999)
    done = process("verify", "out")
    assert (done.returncode, done.stderr) == (3, "")
    assert f"  masks/01/{data.name} has sha256 " in done.stdout
    assert done.stdout.startswith("artifacts read: 3; damaged: 1\n")
    assert done.stdout.endswith("made again by the next run that needs it\n")


# --- prune


def test_without_yes_nothing_goes_and_what_would_go_is_told(cache, refs, tmp_path):
    done = cache("prune", "out")
    assert (done.returncode, done.stderr, left(tmp_path)) == (0, "", [0, 1, 2])
    goes, stays = size(tmp_path, 1, 2), size(tmp_path, 0)
    assert f"│ masks │ 2        │ {goes} │ 1     │ {stays} │" in done.stdout
    assert f"nothing was deleted; the same command with --yes deletes {goes}, and " in done.stdout


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        ([], [0]),
        (["--unreferenced"], [0]),
        (["--older-than", "15d"], [0, 1]),
        (["--older-than", "240h"], [0]),
        (["--older-than", "22d"], [0, 1, 2]),
        (["--to-size", "3kB"], [0, 1]),
        (["--to-size", "2.2KiB"], [0]),
        (["--to-size", "1 GB"], [0, 1, 2]),
        (["--to-size", "1B"], [0]),
        (["--forget", "out"], []),
    ],
)
def test_yes_deletes_what_was_asked_for(cache, refs, tmp_path, options, stay):
    done = cache("prune", "out", *options, "--yes")
    assert (done.returncode, done.stderr, left(tmp_path)) == (0, "", stay)
    assert "deleted: " in done.stdout


def test_a_size_below_what_runs_need_is_told_to_be_out_of_reach(cache, refs):
    done = cache("prune", "out", "--to-size", "500B", "--yes")
    assert "the cache stays larger than 500 bytes: registered runs need the rest; --forget those" in done.stdout


def test_what_an_unfinished_run_may_have_made_is_told_to_be_kept(cache, refs, tmp_path):
    store = ArtifactStore(str(tmp_path / "out" / "cache"))
    RunRegister(store).begin(str(tmp_path / "killed"), "auto-label")
    store.publish("candidates", "ab" * 32, b"x")
    shown = cache("prune", "out").stdout
    assert re.search(
        r"kept for runs that did not finish: 1 artifacts, .* repeat or --forget: .*/killed \(auto-label\)", shown
    )


def test_pruning_twice_is_like_pruning_once(process, refs, tmp_path):
    for _ in range(2):
        done = process("prune", "out", "--yes")
        assert (done.returncode, left(tmp_path)) == (0, [0])
    assert "deleted: 0 bytes" in done.stdout


def test_a_cache_in_use_is_refused_with_the_name_of_who_uses_it(cache, refs, tmp_path):
    with claim(Folder(str(tmp_path / "out" / "cache")), exclusive=False, owner="the nightly run"):
        assert cache("prune", "out").returncode == 0
        assert_refused(cache("prune", "out", "--yes"), "in use by the nightly run")
    assert left(tmp_path) == [0, 1, 2]


def test_a_mistaken_address_loses_nothing(cache, tmp_path):
    (tmp_path / "photos" / "ab").mkdir(parents=True)
    (tmp_path / "photos" / "ab" / "cat.json").write_text("{}")
    assert_refused(cache("prune", "photos", "--yes"), "there is no cache at photos: found 1 files")
    assert_refused(cache("prune", "nowhere", "--yes"), "there is no cache at nowhere: found nothing")
    assert (tmp_path / "photos" / "ab" / "cat.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


REFUSED = {
    "no address": (["ls"], ["neither ADDRESS nor -e SPEC"]),
    "an empty address": (["prune", "", "--yes"], ["an empty ADDRESS"]),
    "a secret under a wrong key": (["ls", "out", f"storage_option.secret={SECRET}"], ["storage_option: unknown key"]),
    "no override": (["ls", "out", "more"], ["more: found an override that is not of the form key.sub=value"]),
    "a backend that is none": (["ls", "nosuch://user:" + SECRET + "@host/x"], ["nosuch://user:***@host/x"]),
    "a spec that is missing": (["verify", "-e", "nowhere.yaml"], ["nowhere.yaml does not exist"]),
    "a run that is not registered": (["prune", "out", "--forget", "typo"], ["no run over typo is registered"]),
    "an age without a unit": (
        ["prune", "out", "--older-than", "30"],
        ["found '30', expected a number of days or hours"],
    ),
    "an age below zero": (["prune", "out", "--older-than", "-1d"], ["--older-than"]),
    "a size in no unit": (["prune", "out", "--to-size", "20G"], ["found '20G', expected a number of bytes with"]),
    "two choices": (["prune", "out", "--to-size", "1GB", "--older-than", "1d"], ["not allowed with"]),
}


@pytest.mark.parametrize(("arguments", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done_is_told_in_a_message(cache, refs, arguments, told):
    assert_refused(cache(*arguments), *told)


def test_a_cache_that_a_newer_version_wrote_is_refused(cache, refs, tmp_path):
    (register,) = (tmp_path / "out" / "cache" / "runs").iterdir()
    register.write_text('{"format": 2}\n')
    for command in ("ls", "verify", "prune"):
        assert_refused(cache(command, "out"), "newer than 1", "upgrade autolabel-flow")


def test_a_damaged_register_is_shown_and_nothing_is_pruned(cache, refs, tmp_path):
    (register,) = (tmp_path / "out" / "cache" / "runs").iterdir()
    register.write_bytes(register.read_bytes()[:-1])
    assert f"cut or changed: runs/{register.name}" in cache("ls", "out").stdout
    assert cache("verify", "out").returncode == 3
    assert_refused(cache("prune", "out", "--yes"), f"runs/{register.name}", "nothing is pruned")
    assert left(tmp_path) == [0, 1, 2]


# --- help


@pytest.mark.parametrize("command", [(), ("ls",), ("verify",), ("prune",)])
def test_the_example_in_the_help_is_a_command_line_that_it_takes(command, capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["cache", *command, "--help"])
    (example,) = re.findall(r"^example:\n  autolabel (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert example.startswith(" ".join(("cache", *command)))
    _parser().parse_args(shlex.split(example))


def test_a_folder_that_cannot_be_written_is_told(refs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tasks.housekeeping.claim", _read_only)
    assert run(["cache", "prune", str(tmp_path / "out"), "--yes"]) == 2
    assert "cannot be claimed" in capsys.readouterr().err


def _read_only(*_: object, **__: object) -> None:
    from tasks.domain.errors import ArtifactError

    raise ArtifactError("out cannot be claimed: read-only file system")


def test_every_command_of_the_page_is_a_command_line_that_it_takes():
    page = Path(__file__).parents[2].joinpath("docs", "cache.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:^\$ |^\| `)autolabel (cache .+?)(?:`|$)", page, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        _parser().parse_args(shlex.split(command))


# --- what the terminal shows


def test_names_are_shown_as_they_are(cache, tmp_path):
    store = ArtifactStore(str(tmp_path / "cache"))
    store.publish("masks", "ab" * 32, b"x")
    RunRegister(store).begin(str(tmp_path / "out[final] [/b] :cat:"), "auto-label")
    for arguments in (("ls", "cache"), ("prune", "cache", "--forget", "out[final] [/b] :cat:")):
        assert f"{tmp_path}/out[final] [/b] :cat:" in cache(*arguments).stdout


@pytest.mark.parametrize(("arguments", "stage"), [(["verify", "out"], "verify"), (["prune", "out", "--yes"], "prune")])
def test_long_work_shows_a_bar_at_a_terminal(cache, refs, monkeypatch, arguments, stage):
    terminal = Console(file=StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("flows.cache_console.errors", terminal)
    cache(*arguments)
    shown = terminal.file.getvalue()
    assert re.search(rf"{stage} .*{'3/3' if stage == 'verify' else '2/2'}", shown)
