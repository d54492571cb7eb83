"""Every problem of a spec at once, in words that help."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec, examine_spec, validate_spec


def problems_of(data: Any) -> dict[str, str]:
    """The statements by path."""
    return {problem.path: problem.statement for problem in examine_spec(data)[1]}


def test_every_problem_is_told_at_once() -> None:
    data = {
        "autolabel_type": "grounding_dino",
        "results_dir": "???",
        "batch_sise": 3,
        "storage_options": "hunter2",
        "grounding_dino": {
            "dataset": {"class_names": ["car", True], "augmentation": None},
            "iteration_scheduler": [{"nms_threshold": 2}],
            "aggregation": {"method": "nms", "eps": 0.3},
            "score": "median",
        },
    }
    with pytest.raises(SpecError) as refused:
        validate_spec(data)
    assert str(refused.value).splitlines() == [
        "The spec has 10 problems:",
        "  storage_options: found a value that is not shown, expected a block of keys",
        (
            "  grounding_dino.dataset.class_names.1: found true, expected text "
            "(in quotes where YAML would read a number, a date or true/false)"
        ),
        "  grounding_dino.iteration_scheduler.0.conf_threshold: found nothing, expected a value (required)",
        "  grounding_dino.iteration_scheduler.0.nms_threshold: found 2, expected at most 1",
        "  grounding_dino.aggregation.eps: unknown key; known here: cross_class_iou, iou, method",
        "  grounding_dino.score: found \"median\", expected 'mean' or 'max'",
        "  batch_sise: unknown key; did you mean batch_size?",
        "  results_dir: fill in: found ???, expected your own value",
        (
            "  grounding_dino.checkpoint: found nothing, expected a detector, "
            "e.g. IDEA-Research/grounding-dino-tiny or bundled:grounding_dino_scenes"
        ),
        "  grounding_dino.dataset.image_dir: found nothing, expected the folder of the images, or a list of folders",
    ]


def test_a_problem_within_a_block_does_not_hide_one_between_blocks() -> None:
    annealing = {"schedule": "step", "start": 0.3, "drop": 0.1, "floor": 0.4}
    data = {"autolabel_type": "grounding_dino", "results_dir": "r", "grounding_dino": {"annealing": annealing}}
    paths = ["annealing.floor", "checkpoint", "dataset.image_dir", "dataset.class_names"]
    assert list(problems_of(data)) == [f"grounding_dino.{path}" for path in paths]


def test_a_misplaced_key_is_told_its_place() -> None:
    statement = problems_of({"class_names": ["car"]})["class_names"]
    assert statement == "unknown key; did you mean grounding_dino.dataset.class_names?"


def test_an_unknown_key_like_no_other_is_told_where_to_look() -> None:
    statement = problems_of({"grounding_dino": {"wombat": 1}})["grounding_dino.wombat"]
    assert statement == "unknown key; docs/spec.md lists the known ones"


def test_a_key_that_is_not_text_is_named() -> None:
    assert problems_of({1: 2, "mal": {True: 1}})["1"] == "found the key 1, expected text"


@pytest.mark.parametrize("data", [[], "text", 3])
def test_a_spec_that_is_not_a_block_is_one_problem(data: object) -> None:
    assert list(problems_of(data)) == [""]


@pytest.mark.parametrize("block", [3, "fake", ["fake"]])
def test_a_value_where_a_block_belongs_is_named(block: object) -> None:
    assert problems_of({"grounding_dino": {"model": block}})["grounding_dino.model"].endswith(
        "expected a block of keys"
    )


def test_a_placeholder_in_a_number_is_to_be_filled_in() -> None:
    assert problems_of({"batch_size": "???"})["batch_size"] == "fill in: found ???, expected a whole number"


def test_a_placeholder_in_the_block_of_the_other_pipeline_is_no_problem() -> None:
    block = {"checkpoint": "fake", "dataset": {"image_dir": "images", "class_names": ["car"]}}
    mal = {"checkpoint": "???", "inference": {"ann_path": "???", "checkpoint": "???"}}
    data = {"autolabel_type": "grounding_dino", "results_dir": "results", "grounding_dino": block, "mal": mal}
    assert problems_of(data) == {}


def test_a_long_value_is_shortened() -> None:
    assert len(problems_of({"autolabel_type": "x" * 10_000})["autolabel_type"]) < 200


@pytest.mark.parametrize("options", ["hunter2", ["hunter2"], {1: "hunter2"}])
def test_secrets_are_in_no_message(options: object) -> None:
    with pytest.raises(SpecError) as refused:
        validate_spec({"storage_options": options})
    assert "hunter2" not in str(refused.value)


def test_a_block_under_an_unknown_key_is_not_shown() -> None:
    assert "hunter2" not in str(problems_of({"storage_option": {"secret": "hunter2"}}))


keys = st.sampled_from(
    [*ExperimentSpec.model_fields, "dataset", "annealing", "aggregation", "schedule", "image_dir", "x"]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just("???")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(keys, st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_whatever_is_given_is_a_spec_or_a_list_of_problems(data: object) -> None:
    spec, problems = examine_spec(data)
    assert (spec is None) == bool(problems)
