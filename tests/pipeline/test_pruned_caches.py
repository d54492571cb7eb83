"""A real run, its cache pruned, and the same run again: it pays only for what was let go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.auto_label import auto_label
from flows.cache_address import cache_of_address
from flows.label_dataset import label_dataset
from flows.segment_masks import segment_masks
from tasks.cache_contents import survey
from tasks.domain.errors import CheckpointError
from tasks.domain.spec import ExperimentSpec
from tasks.housekeeping import prune, unreferenced, verify
from tasks.models.fake import FakeDetector

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

LABELS = ("annotations.json", "final_annotation.jsonl", "auto_label0/annotations.json", "failures.jsonl")


@pytest.fixture
def spec(paint_image: Callable[..., Path], make_spec: Callable[..., ExperimentSpec]) -> ExperimentSpec:
    for number in range(5):
        paint_image(f"{number}.png", [("cat", 0.9 - number / 10, (10, 10, 60, 50)), ("dog", 0.4, (80, 10, 140, 50))])
    return make_spec({"class_names": ["cat", "dog"]}, shard_size=2)


def labels(results: Path) -> list[bytes]:
    return [(results / name).read_bytes() for name in LABELS]


def forwards(spec: ExperimentSpec) -> int:
    return sum(iteration.forwards for iteration in auto_label(spec).iterations)


def test_a_run_whose_cache_was_pruned_makes_no_forward_pass(spec, results):
    assert forwards(spec) > 0
    before = labels(results)
    store = cache_of_address(str(results), [])
    store.publish("candidates", "ab" * 32, b"of a spec that nobody runs any more")
    gone = prune(store, unreferenced).artifacts
    assert [(artifact.kind, artifact.key) for artifact in gone] == [("candidates", "ab" * 32)]
    assert (forwards(spec), labels(results)) == (0, before)


def test_a_run_that_was_forgotten_makes_everything_anew_with_the_same_bytes(spec, results):
    first = forwards(spec)
    before = labels(results)
    store = cache_of_address(str(results), [])
    prune(store, unreferenced, [str(results)])
    assert not list((results / "cache").rglob("*.json"))
    assert (forwards(spec), labels(results)) == (first, before)


def test_what_only_an_earlier_spec_needed_goes_and_the_last_one_costs_nothing(spec, results, make_spec):
    forwards(spec)
    other = make_spec({"class_names": ["cat"]}, shard_size=2)
    forwards(other)
    before = labels(results)
    store = cache_of_address(str(results), [])
    assert prune(store, unreferenced).artifacts
    assert verify(store).is_sound
    assert (forwards(other), labels(results)) == (0, before)
    assert forwards(spec) > 0


@pytest.mark.slow
def test_a_cache_that_two_runs_share_keeps_what_both_need(spec, results, make_spec, tmp_path):
    shared = str(tmp_path / "shared")
    mine = spec.model_copy(update={"cache_dir": shared})
    theirs = make_spec({"class_names": ["dog"]}, results_dir=str(tmp_path / "theirs")).model_copy(
        update={"cache_dir": shared}
    )
    forwards(mine)
    forwards(theirs)
    prune(cache_of_address(shared, []), unreferenced)
    assert (forwards(mine), forwards(theirs)) == (0, 0)
    prune(cache_of_address(str(results), []), unreferenced, [str(results)])
    assert (forwards(theirs), forwards(mine) > 0) == (0, True)


@pytest.mark.slow
def test_a_chain_and_its_masks_made_alone_cost_nothing_after_pruning(spec, results, make_spec):
    both = {"autolabel_type": "grounding_dino+mal", "mal": {"checkpoint": "fake"}}
    chain = make_spec({"class_names": ["cat", "dog"]}, shard_size=2, **both)
    assert label_dataset(chain).masks.masks.boxes_forwarded > 0
    store = cache_of_address(str(results), [])
    for again in (lambda: label_dataset(chain).masks, lambda: segment_masks(chain)):
        store.publish("masks", "ab" * 32, b"of a spec that nobody runs any more")
        gone = prune(store, unreferenced).artifacts
        assert [artifact.key for artifact in gone] == ["ab" * 32]
        assert again().masks.boxes_forwarded == 0
    assert forwards(chain) == 0


def test_what_a_run_had_made_when_it_was_stopped_outlives_a_pruning(spec, monkeypatch):
    everything = forwards(spec)
    store = cache_of_address(spec.results_dir, [])
    prune(store, unreferenced, [spec.results_dir])
    answered: list[int] = []
    detect = FakeDetector.detect

    def stopped(*args: Any, **keywords: Any) -> object:
        if len(answered) == 3:
            raise CheckpointError("the disk is gone")
        answered.append(1)
        return detect(*args, **keywords)

    monkeypatch.setattr(FakeDetector, "detect", stopped)
    with pytest.raises(CheckpointError):
        forwards(spec)
    monkeypatch.undo()
    kept = len(survey(store).artifacts)
    assert prune(store, unreferenced).artifacts == ()
    assert len(survey(store).artifacts) == kept
    assert forwards(spec) < everything
