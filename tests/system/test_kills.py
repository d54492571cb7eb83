"""A run that is killed at any moment and started again ends as one that nothing disturbed: in its bytes and its price.

Some forty kills by default; AUTOLABEL_KILLS sets another number for the first test, one for every step by default.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


def _load(name: str) -> ModuleType:
    """A module beside this one: tests are no package."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


runs = _load("durable_runs")

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

KILLS = int(os.environ.get("AUTOLABEL_KILLS", "1"))
STEPS = {
    "index_images",
    "shard_images",
    "infer",
    "aggregate",
    "export_iteration",
    "export_labels",
    "segment",
    "export_masks",
}
MASK_STEPS = {"shard_boxes", "index_named_images", "segment", "export_masks"}

Moment = tuple[str, int]  # the name of an event, and which one of that name


@pytest.fixture(scope="module")
def driver(tmp_path_factory, server, paint_picture) -> Iterator[Any]:
    """Starts attempts in folders beside images/."""
    folder = tmp_path_factory.mktemp("kills")
    runs.paint_dataset(folder, paint_picture)
    with runs.driver(folder, server) as started:
        yield started


@pytest.fixture(scope="module")
def new_place(driver) -> Callable[..., Path]:
    """Makes a folder beside images/ in which a spec can be run."""
    numbers = count()

    def made(spec: str = runs.SPEC) -> Path:
        return Path(runs.write_spec(driver.log.with_name(f"place {next(numbers)}"), spec))

    return made


@pytest.fixture(scope="module")
def whole(driver, new_place) -> Any:
    """An undisturbed run for boxes and masks."""
    return runs.run_undisturbed(driver, new_place())


def lives(driver: Any, new_place: Callable[[], Path], moments: Sequence[Moment], whole: Any) -> Iterator[Any]:
    """Runs that die at one moment after the other, and are left alone then: what each leaves, and what it told.

    An attempt does less than the one before it, so that a moment may not come again: the next life begins with it.
    """
    left = list(moments)
    while left:
        place = new_place()
        died = live(driver, place, left, whole)
        assert died > 0
        left = left[died:]
        yield place / "results", driver.told()
        shutil.rmtree(place)


def live(driver: Any, place: Path, moments: Sequence[Moment], whole: Any) -> int:
    """Make attempts that die at one of the moments each, until one is done; how many died."""
    for died, (event, number) in enumerate(moments):
        attempt = driver.attempt(place, at={"event": event, "count": number, "signal": "SIGKILL"})
        assert runs.half_written(place / "results", whole) == []
        if attempt.status == runs.SOME_FAILED:
            return died
        assert attempt.status == -signal.SIGKILL, attempt.output
    done = driver.attempt(place)
    assert done.status == runs.SOME_FAILED, done.output
    return len(moments)


def test_a_run_that_is_killed_in_every_step_ends_as_an_undisturbed_one(driver, new_place, whole):
    deaths: list[str] = []
    for seed in count():
        for results, told in lives(driver, new_place, runs.one_of_each_step(whole.first.events, seed), whole):
            assert runs.deviations(results, whole) == {}
            assert runs.overpaid(told, whole, runs.at_work(told.disturbed)) == {}
            deaths += told.disturbed
        if len(deaths) >= KILLS:
            break
    print(*deaths, sep="\n")
    assert STEPS - set(map(runs.step_of, deaths)) == set()


def test_a_run_over_finished_results_that_is_killed_in_every_step_leaves_them_as_they_were(driver, new_place, whole):
    def finished() -> Path:
        place = new_place()
        shutil.copytree(whole.results, place / "results")
        return place

    deaths: list[str] = []
    for results, told in lives(driver, finished, runs.one_of_each_step(whole.second.events, seed=7), whole):
        assert runs.deviations(results, whole) == {}
        assert not told.forwards
        deaths += told.disturbed
    assert {"export_iteration", "export_labels", "export_masks"} <= set(map(runs.step_of, deaths))


def test_a_run_that_is_killed_at_random_times_ends_as_an_undisturbed_one(driver, new_place, whole):
    place = new_place()
    kills = max(6, KILLS // 4)
    for seconds in np.random.default_rng(4711).uniform(0.3, 3, kills):
        driver.attempt(place, kill_after=seconds)
        assert runs.half_written(place / "results", whole) == []
    assert driver.attempt(place).status == runs.SOME_FAILED
    assert runs.deviations(place / "results", whole) == {}
    assert runs.overpaid(driver.told(), whole, {"detector": kills, "segmenter": kills}) == {}


def test_masks_of_a_coco_file_that_are_killed_in_every_step_end_as_undisturbed_ones(driver, new_place):
    whole = runs.run_undisturbed(driver, new_place(runs.MASKS_SPEC))
    moments = runs.one_of_each_step(whole.first.events, seed=3)
    deaths: list[str] = []
    for results, told in lives(driver, partial(new_place, runs.MASKS_SPEC), moments, whole):
        assert runs.deviations(results, whole) == {}
        assert runs.overpaid(told, whole, runs.at_work(told.disturbed)) == {}
        deaths += told.disturbed
    assert MASK_STEPS - set(map(runs.step_of, deaths)) == set()


STOPPED = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_that_is_asked_to_stop_says_how_to_go_on_and_goes_on(driver, new_place, whole, name):
    place = new_place()
    forwards = [event for event in whole.first.events if event.startswith("infer before-forward")]
    stopped = driver.attempt(place, at={"event": forwards[len(forwards) // 2], "count": 1, "signal": name})
    status, word = STOPPED[name]
    told = f"autolabel: {word}; the same command goes on where it stopped\n"
    assert (stopped.status, stopped.output) == (status, told)
    *_, last = (place / "results" / "status.json").read_text().splitlines()
    assert json.loads(last)["message"] == f"The run was {word}; the same command goes on where it stopped."
    assert driver.attempt(place).status == runs.SOME_FAILED
    assert runs.deviations(place / "results", whole) == {}
    assert runs.overpaid(driver.told(), whole, {"detector": 1, "segmenter": 0}) == {}


def test_a_run_that_is_asked_to_stop_does_not_finish_its_shards_first(driver, new_place, whole):
    place = new_place()
    third = [event for event in whole.first.events if event.startswith("infer before-forward")][2]
    at = {"event": third, "count": 1, "signal": "SIGINT"}
    assert driver.attempt(place, at=at, seconds_per_forward=0.5).status == 130
    assert driver.told().forwards["detector"] <= 4


def test_an_artifact_of_a_newer_format_ends_a_run_in_words(driver, new_place, whole):
    place = new_place()
    shutil.copytree(whole.results, place / "results")
    newer = min((place / "results" / "cache" / "candidates").glob("*/*.manifest.json"))
    newer.write_text('{"format": 99}')
    refused = driver.attempt(place)
    assert (refused.status, "Traceback" in refused.output) == (2, False)
    assert f"{newer.name} under results/cache is of format 99, newer than 1" in refused.output
    assert newer.read_text() == '{"format": 99}'
