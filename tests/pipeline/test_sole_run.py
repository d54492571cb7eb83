"""One run at a time in a results_dir: what a second one may not touch, and that a run never stands in its own way."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from threading import Event

import pytest

from flows.auto_label import auto_label
from flows.cli import run
from flows.label_dataset import label_dataset
from tasks import infer as step
from tasks.domain.errors import CheckpointError, ClaimedError, LostClaimError
from tasks.models.fake import FakeDetector
from tasks.storage.claims import claim
from tasks.storage.folder import Folder
from tasks.storage.local_claims import LOCK_FILE

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

CAT = (10, 10, 60, 50)
OTHER = "autolabel run 'quick-fox' on elsewhere, process 7, since 2026-01-01 00:00:00 UTC"
REFUSED = f"in use by {OTHER}; wait for that to end, stop it, or choose another folder"


@pytest.fixture
def spec(paint_image, make_spec):
    """A spec over one painted image."""
    paint_image("a.png", [("cat", 0.9, CAT)])
    return make_spec({"class_names": ["cat"]})


@pytest.fixture
def when_it_detects(monkeypatch) -> Callable[[Callable[[], None]], None]:
    """Has something done when the detector is asked."""

    def do(something: Callable[[], None]) -> None:
        class Interrupted(FakeDetector):
            def detect(self, *args, **keys):
                something()
                return super().detect(*args, **keys)

        monkeypatch.setattr(step, "load_detector", lambda config, device: Interrupted())

    return do


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def course(results: Path) -> list[str]:
    return [json.loads(line)["status"] for line in (results / "status.json").read_text().splitlines()]


def test_a_run_is_refused_where_another_works_and_touches_nothing_there(spec, results):
    auto_label(spec)
    with claim(Folder(str(results)), exclusive=True, owner=OTHER):
        before = contents(results)
        with pytest.raises(ClaimedError) as refused:
            auto_label(spec)
        assert contents(results) == before
    assert str(refused.value) == f"results_dir: {results} is {REFUSED}"


def test_a_run_is_refused_where_somebody_has_its_cache_alone_and_touches_nothing(spec, results):
    with claim(Folder(str(results / "cache")), exclusive=True, owner=OTHER):
        with pytest.raises(ClaimedError) as refused:
            auto_label(spec)
        assert list(contents(results)) == [f"cache/{LOCK_FILE}"]
    assert str(refused.value) == f"cache_dir: {results}/cache is {REFUSED}"


def test_a_run_shares_its_cache(spec, results):
    with claim(Folder(str(results / "cache")), exclusive=False, owner=OTHER):
        auto_label(spec)
    assert course(results) == ["STARTED", "SUCCESS"]


def test_a_run_whose_cache_is_its_results_dir_is_not_in_its_own_way(paint_image, make_spec, results):
    paint_image("a.png", [("cat", 0.9, CAT)])
    spec = make_spec({"class_names": ["cat"]}).model_copy(update={"cache_dir": f"{results}/../results"})
    auto_label(spec)
    assert course(results) == ["STARTED", "SUCCESS"]


def test_two_flows_in_threads_of_one_process_refuse_each_other(spec, results, when_it_detects):
    reached, refused = Event(), Event()

    def wait() -> None:
        reached.set()
        assert refused.wait(120)

    when_it_detects(wait)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(copy_context().run, auto_label, spec)
        assert reached.wait(120)
        try:
            with pytest.raises(
                ClaimedError, match=r"is in use by autolabel run '[a-z-]+' on .*, process \d+, since 20"
            ):
                pool.submit(copy_context().run, auto_label, spec).result()
        finally:
            refused.set()
        assert first.result().images.labelled == 1
    assert course(results) == ["STARTED", "SUCCESS"]


def test_a_run_that_failed_is_tried_again_by_prefect_and_by_the_same_process(spec, results, when_it_detects):
    failing = [True, True, False, False]

    def fail() -> None:
        if failing.pop(0):
            raise CheckpointError

    when_it_detects(fail)
    again = auto_label.with_options(retries=1, retry_delay_seconds=0)
    with pytest.raises(CheckpointError):
        again(spec)
    assert again(spec).images.labelled == 1
    assert course(results) == ["STARTED", "SUCCESS"]
    assert LOCK_FILE not in contents(results)


def test_boxes_and_masks_are_one_run_with_one_claim(paint_image, make_spec, results):
    paint_image("a.png", [("cat", 0.9, CAT)])
    keys = {"autolabel_type": "grounding_dino+mal", "mal": {"checkpoint": "fake"}}
    label_dataset(make_spec({"class_names": ["cat"]}, **keys))
    assert course(results) == ["STARTED", "SUCCESS"]


def test_a_run_that_was_taken_over_writes_no_label_and_not_the_status_of_who_works_there(
    spec, results, when_it_detects
):
    when_it_detects(lambda: (results / LOCK_FILE).unlink(missing_ok=True))
    with pytest.raises(LostClaimError, match="was deleted or replaced while a run worked there"):
        auto_label(spec)
    assert sorted(path.name for path in results.iterdir()) == ["cache", "status.json"]
    assert course(results) == ["STARTED"]


def test_what_killed_processes_were_writing_is_deleted_from_both_folders(spec, tmp_path, results):
    cache = tmp_path / "shared"
    old = ".tmp-0123456789abcdef"
    for folder in (results, cache):
        folder.mkdir()
        (folder / old).write_bytes(b"half")
        os.utime(folder / old, (0, 0))
    auto_label(spec.model_copy(update={"cache_dir": str(cache)}))
    assert [*results.rglob(".tmp-*"), *cache.rglob(".tmp-*")] == []


def test_a_demo_is_refused_before_it_draws_where_another_run_works(tmp_path, capsys):
    (tmp_path / "demo").mkdir()
    with claim(Folder(str(tmp_path / "demo")), exclusive=True, owner=OTHER):
        assert run(["demo", "--scenes", "1", f"results_dir={tmp_path}/demo"]) == 2
        assert list(contents(tmp_path / "demo")) == [LOCK_FILE]
    assert capsys.readouterr().err == f"autolabel: results_dir: {tmp_path}/demo is {REFUSED}\n"
