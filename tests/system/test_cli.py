"""The command line as a user has it: real processes, real exit statuses, real files, a real Prefect server."""

import json
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

Run = subprocess.CompletedProcess[str]

COMMANDS = ("generate", "plan", "demo", "evaluate", "train-mal", "cache")
FRAMEWORKS = ("torch", "transformers", "prefect")
CAT, LIGHT = (10, 10, 60, 50), (80, 10, 140, 50)
SECRET = "correct-horse-battery"
SPEC = f"""
autolabel_type: grounding_dino
gpu_ids: [0, 1]
results_dir: not here
storage_options: {{secret: {SECRET}, client_kwargs: {{tokens: [{SECRET}]}}}}
grounding_dino:
  checkpoint: fake
  dataset: {{image_dir: ../images, class_names: [something else]}}
  iteration_scheduler: [{{conf_threshold: 0.5}}, {{conf_threshold: 0.3, nms_threshold: 0.7}}]
"""
RESULTS = "results of 標 ü [final] [/v]"
ONE_GPU = "gpu_ids: only GPU 0 is used; this version runs on one GPU\n"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, paint_picture) -> Path:
    """A spec in specs/, and in images/ six painted pictures and a broken one; commands run in work/."""
    folder = tmp_path_factory.mktemp("cli")
    for i in range(6):
        objects = [("cat", 0.9 - i / 10, CAT), ("traffic light", 0.45, LIGHT)]
        paint_picture(folder / "images" / f"{i}.png", objects)
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (folder / "specs").mkdir()
    (folder / "specs" / "mine.yaml").write_text(SPEC)
    (folder / "work").mkdir()
    return folder


@dataclass(frozen=True)
class Session:
    """A plan, and the same `generate` twice, in work/ with a relative spec and quoted overrides."""

    results: Path
    plan: Run
    first: Run
    second: Run
    planned_again: Run


@pytest.fixture(scope="module")
def session(folder, autolabel) -> Session:
    overrides = [
        f"results_dir={json.dumps(RESULTS)}",
        'grounding_dino.dataset.class_names=["traffic light", cat, "[/b]"]',
    ]
    arguments = ("-e", "../specs/mine.yaml", *overrides)
    runs = [autolabel(command, *arguments, cwd=folder / "work") for command in ("plan", "generate", "generate", "plan")]
    return Session(folder / "work" / RESULTS, *runs)


# --- help


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_help_takes_less_than_a_second_of_cpu(arguments, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-m", "flows.cli", *arguments, "--help"], cwd=tmp_path, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_help_imports_no_framework(tmp_path):
    script = f"""
import contextlib, sys
from flows.cli import run
with contextlib.suppress(SystemExit):
    run(["generate", "--help"])
print("imported:", *sorted(sys.modules.keys() & set({FRAMEWORKS})), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "imported:\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_the_help_of_a_command_is_a_command_line_that_it_takes(command, capsys):
    from flows.cli import _parser

    with pytest.raises(SystemExit):
        _parser().parse_args([command, "--help"])
    (example,) = re.findall(r"^example:\n  autolabel (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert example.startswith(command)
    _parser().parse_args(shlex.split(example))


def test_the_console_script_is_this_command_line():
    from flows.cli import main

    (script,) = entry_points(group="console_scripts", name="autolabel")
    assert script.load() is main


def test_the_version_is_that_of_the_package(capsys):
    from flows.cli import run

    with pytest.raises(SystemExit) as done:
        run(["--version"])
    assert (done.value.code, capsys.readouterr().out) == (0, f"autolabel {version('autolabel-flow')}\n")


@pytest.mark.parametrize(
    ("option", "least"),
    [("--scenes=abc", 1), ("--scenes=0", 1), ("--scenes=1.5", 1), ("--seed=x", 0), ("--seed=-1", 0)],
)
def test_a_number_that_is_none_is_told_what_is_expected(option, least, capsys):
    from flows.cli import run

    with pytest.raises(SystemExit) as done:
        run(["demo", option])
    name, _, value = option.partition("=")
    assert done.value.code == 2
    assert f"argument {name}: found '{value}', expected a whole number, {least} or more" in capsys.readouterr().err


# --- what the user has to mend: a message, no traceback, exit status 2

REFUSED_SPECS = {
    "a spec that is missing": (["-e", "nowhere.yaml"], ["nowhere.yaml does not exist"]),
    "a name that is like one that ships": (["-e", "demmo"], ["demmo does not exist", "Did you mean `-e demo`"]),
    "d31 no spec": ([], ["-e/--experiment-spec"]),
    "all problems at once": (
        ["-e", "../specs/mine.yaml", "batch_sise=3", "grounding_dino.nms=1", "shard_size=none"],
        ["3 problems", "batch_sise: unknown key; did you mean batch_size?", "grounding_dino.nms: ", "shard_size: "],
    ),
    "an override without a value": (["-e", "../specs/mine.yaml", "batch_size"], ["batch_size", "key.sub=value"]),
    "an override that is not YAML": (["-e", "../specs/mine.yaml", "gpu_ids=[0"], ["gpu_ids", "not YAML"]),
    "d24 a file name is not one that ships": (["-e", "text2box.yaml"], ["text2box.yaml does not exist"]),
    "d31 an iteration without a threshold": (
        ["-e", "../specs/mine.yaml", "grounding_dino.iteration_scheduler=[{nms_threshold: 0.7}]"],
        ["grounding_dino.iteration_scheduler.0.conf_threshold: found nothing"],
    ),
    "values to fill in": (["-e", "text2box"], ["results_dir: fill in", "grounding_dino.dataset.image_dir: fill in"]),
}


@pytest.mark.prefect
@pytest.mark.parametrize(("arguments", "told"), REFUSED_SPECS.values(), ids=REFUSED_SPECS.keys())
def test_a_spec_that_cannot_be_used_is_refused_with_all_that_is_wrong(arguments, told, folder, autolabel):
    assert_refused(autolabel("generate", *arguments, cwd=folder / "work"), told)


def assert_refused(done: Run, told: list[str]) -> None:
    """The status of what a user can mend, every part of the message, and nothing that only we could read."""
    assert (done.returncode, done.stdout) == (2, "")
    assert [part for part in told if part not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


REFUSED_RUNS = {
    "no image folder": (["grounding_dino.dataset.image_dir=nowhere"], ["nowhere", "image_dir"]),
    "no such store": (["grounding_dino.dataset.image_dir=nosuch://bucket"], ["nosuch://bucket", "storage_options"]),
    "class names": (['grounding_dino.dataset.class_names=[cat, "?", "..."]'], ["2 of 3 phrases", "'?'", "'...'"]),
    "no checkpoint": (["grounding_dino.checkpoint=../no/such.pth"], ["../no/such.pth does not exist"]),
    "a hub id, offline": (["grounding_dino.checkpoint=nobody/no-such-model"], ["nobody/no-such-model", "hub"]),
    "an encrypted checkpoint": (["grounding_dino.checkpoint=../encrypted.tlt"], ["encrypted.tlt is an encrypted"]),
    "masks without boxes": (
        ["autolabel_type=mal", "mal={checkpoint: fake, inference: {ann_path: no/boxes.json, img_dir: ../images}}"],
        ["boxes.json", "was not found in no"],
    ),
    "masks over the boxes": (
        [
            "autolabel_type=mal",
            "mal={checkpoint: fake, inference: {ann_path: a.json, img_dir: ../images, label_dump_path: ../a.json}}",
        ],
        ["label_dump_path: found ../a.json, which is ann_path"],
    ),
    "no segmenter": (
        ["autolabel_type=grounding_dino+mal", "mal.checkpoint=../no/such.pth"],
        ["../no/such.pth does not exist"],
    ),
}


@pytest.mark.prefect
@pytest.mark.parametrize(("overrides", "told"), REFUSED_RUNS.values(), ids=REFUSED_RUNS.keys())
def test_a_run_that_cannot_begin_says_why_on_the_console_and_in_status_json(overrides, told, folder, autolabel):
    (folder / "encrypted.tlt").write_bytes(bytes(range(256)))
    done = autolabel("generate", "-e", "../specs/mine.yaml", *overrides, "results_dir=refused", cwd=folder / "work")
    assert_refused(done, told)
    *_, last = lines(folder / "work" / "refused" / "status.json")
    assert last["status"] == "FAILURE"
    assert [part for part in told if part not in last["message"]] == []


@pytest.mark.prefect
def test_a_server_that_cannot_be_reached_is_named(folder, autolabel):
    nobody = "http://127.0.0.1:9/api"
    done = autolabel("generate", "-e", "../specs/mine.yaml", cwd=folder / "work", PREFECT_API_URL=nobody)
    assert_refused(done, [f"PREFECT_API_URL={nobody}"])


GARBAGE = {"text": "no JSON at all", "an object": '{"images": 3}', "rows without ids": '{"images": [{}]}', "empty": ""}


@pytest.mark.prefect
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_evaluate_refuses_what_is_not_coco(garbage, tmp_path, autolabel):
    (tmp_path / "labels.json").write_text(garbage)
    (tmp_path / "truth.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert_refused(autolabel("evaluate", "labels.json", "--ground-truth", "truth.json", cwd=tmp_path), ["labels"])


@pytest.mark.prefect
def test_evaluate_names_a_file_that_is_missing(tmp_path, autolabel):
    assert_refused(autolabel("evaluate", "a.json", "--ground-truth", "b.json", cwd=tmp_path), ["a.json"])


@pytest.mark.prefect
def test_evaluate_shows_names_with_brackets_as_they_are(tmp_path, autolabel):
    truth = {
        "images": [{"id": 1, "file_name": "a[/v].jpg"}, {"id": 2, "file_name": "[red]b.jpg"}],
        "categories": [{"id": 1, "name": "cat [/b]"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    labels = {**truth, "images": truth["images"][:1], "annotations": [{**truth["annotations"][0], "score": 0.5}]}
    (tmp_path / "out[final]").mkdir()
    (tmp_path / "out[final]" / "annotations.json").write_text(json.dumps(labels))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    done = autolabel("evaluate", "out[final]", "--ground-truth", "truth.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "│ cat [/b] │" in done.stdout
    assert "their objects count as missed: [red]b.jpg\n" in done.stdout


@pytest.mark.prefect
def test_a_bare_name_never_shadows_a_file(tmp_path, autolabel):
    (tmp_path / "demo").write_text("mine: 1\n")
    assert_refused(autolabel("generate", "-e", "demo", cwd=tmp_path), ["demo has", "mine: unknown key"])


@pytest.mark.prefect
def test_d24_a_spec_without_a_folder_part_is_the_users_own(tmp_path, autolabel):
    (tmp_path / "text2box.yaml").write_text("mine: 1\n")
    assert_refused(autolabel("generate", "-e", "text2box.yaml", cwd=tmp_path), ["text2box.yaml has", "mine: unknown"])


# --- a run


@pytest.mark.prefect
def test_a_run_with_a_broken_image_ends_with_status_3_and_says_which(session):
    assert (session.first.returncode, session.first.stderr) == (3, ONE_GPU)
    assert "6 labelled, 0 empty, 1 failed" in session.first.stdout
    assert [failure["image"] for failure in lines(session.results / "failures.jsonl")] == ["broken.jpg"]


@pytest.mark.prefect
def test_a_run_says_where_its_labels_are(session):
    assert f"labels: {RESULTS}\n" in session.first.stdout
    assert len(COCO(session.results / "annotations.json").imgs) == 6


@pytest.mark.prefect
def test_a_class_without_a_label_is_named_as_it_is_written(session):
    assert "│ [/b] " in session.first.stdout


@pytest.mark.prefect
def test_status_json_ends_in_success_though_some_images_failed(session):
    assert [line["status"] for line in lines(session.results / "status.json")] == ["STARTED", "SUCCESS"]


@pytest.mark.prefect
def test_d23_overrides_are_honoured_with_several_gpus(session):
    """D-23, MAL-22: TAO's launcher drops them."""
    spec = json.loads((session.results / "run.json").read_text())["spec"]
    assert (spec["gpu_ids"], spec["results_dir"]) == ([0, 1], RESULTS)
    assert not (session.results.parent / "not here").exists()


@pytest.mark.prefect
def test_d25_a_class_name_with_a_space_in_an_override_stays_whole(session):
    categories = COCO(session.results / "annotations.json").cats.values()
    assert [category["name"] for category in categories] == ["traffic light", "cat", "[/b]"]


@pytest.mark.prefect
def test_d31_an_iteration_may_lack_its_nms_threshold(session):
    iterations = json.loads((session.results / "run.json").read_text())["iterations"]
    assert [iteration["threshold"] for iteration in iterations] == [0.5, 0.3]


def planned_forwards(plan: Run) -> list[str]:
    """The column of forwards in the table that `plan` prints."""
    return [line.split("│")[3].strip() for line in plan.stdout.splitlines() if line.startswith("│")]


@pytest.mark.prefect
def test_a_run_makes_the_forwards_that_were_planned(session):
    made = [row["forwards"] for row in _iterations(session.first)]
    assert planned_forwards(session.plan) == ["6", "0 to 6"]
    assert (made[0], made[1] <= 6) == (6, True)


@pytest.mark.prefect
def test_a_second_run_makes_the_no_forwards_that_were_planned(session):
    assert planned_forwards(session.planned_again) == ["0", "0"]
    record = json.loads((session.results / "run.json").read_text())
    assert [iteration["forwards"] for iteration in record["iterations"]] == [0, 0]


def _iterations(done: Run) -> list[dict[str, int]]:
    """Iteration and forwards, from the table that `generate` prints."""
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    return [{"iteration": int(row[1]), "forwards": int(row[6])} for row in rows]


# --- what Prefect knows


def flow_run_id(done: Run) -> str:
    (found,) = re.findall(r"^run: http\S+/runs/flow-run/(\S+)$", done.stdout, re.MULTILINE)
    return str(found)


def task_runs(ask: Callable[..., list[dict[str, Any]]], flow_run: str, expected: int) -> dict[str, str]:
    """State by name of the task runs; the server is given a while to record them."""
    deadline = time.monotonic() + 30
    while True:
        rows = ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
        if (len(rows) >= expected and all(row["end_time"] for row in rows)) or time.monotonic() > deadline:
            return {row["name"]: row["state"]["name"] for row in rows}
        time.sleep(0.5)


@pytest.mark.prefect
def test_the_flow_run_that_is_named_at_the_end_is_completed(session, ask_server):
    ids = [flow_run_id(session.first), flow_run_id(session.second)]
    rows = ask_server("flow_runs/filter", flow_runs={"id": {"any_": ids}})
    assert [(row["state"]["type"], row["state"]["name"]) for row in rows] == [("COMPLETED", "Completed")] * 2


TASKS_OF_AN_ITERATION = ("infer shards 1-1 of 1", "aggregate shards 1-1 of 1", "export", "check termination")


@pytest.mark.prefect
def test_a_task_run_is_named_after_what_it_does(session, ask_server):
    names = task_runs(ask_server, flow_run_id(session.first), 12)
    wanted = {f"iteration {k} / {task}" for k in (0, 1) for task in TASKS_OF_AN_ITERATION}
    assert wanted - names.keys() == set()


@pytest.mark.prefect
def test_what_a_second_run_takes_over_is_shown_as_cached(session, ask_server):
    states = task_runs(ask_server, flow_run_id(session.second), 12)
    reused = {name: state for name, state in states.items() if re.search("infer|aggregate|index", name)}
    assert len(reused) == 5
    assert set(reused.values()) == {"Cached"}


@pytest.mark.prefect
def test_the_console_stays_quiet_with_a_server_that_the_user_chose(session):
    assert (session.first.stderr, session.second.stderr) == (ONE_GPU, ONE_GPU)
    assert "Task run" not in session.first.stdout


# --- results elsewhere, and secrets


@pytest.mark.prefect
def test_results_go_to_a_url_and_secrets_of_its_backend_are_nowhere(folder, autolabel, ask_server, server):
    place = folder / "by url"
    overrides = [f"results_dir=file://{place}", f"cache_dir=file://{place}/artifacts", "shard_size=2"]
    done = autolabel("generate", "-e", "../specs/mine.yaml", *overrides, cwd=folder / "work")
    assert done.returncode == 3, done.stderr
    (row,) = ask_server("flow_runs/filter", flow_runs={"id": {"any_": [flow_run_id(done)]}})
    told = row["parameters"]["spec"]
    assert told["results_dir"] == f"file://{place}"
    assert told["storage_options"] == {"secret": "***", "client_kwargs": {"tokens": ["***"]}}
    everything = (done.stdout + done.stderr).encode() + bytes_below(place) + bytes_below(Path(server["PREFECT_HOME"]))
    assert SECRET.encode() not in everything


@pytest.mark.prefect
def test_results_go_to_memory(folder, server):
    script = """
import sys
from flows.cli import run
from tasks.storage.folder import Folder
print("status", run(sys.argv[1:]))
print(Folder("memory://out").names())
"""
    arguments = ["generate", "-e", "../specs/mine.yaml", "results_dir=memory://out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder / "work",
        env=dict(server),
        capture_output=True,
        text=True,
    )
    assert "\nstatus 3\n" in done.stdout, done.stderr
    assert {"'annotations.json'", "'cache'", "'status.json'"} <= set(re.findall(r"'[^']+'", done.stdout))
