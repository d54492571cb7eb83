"""When the loop stops, and what it asks next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.annotations import Annotation, Record
from tasks.domain.iteration import Progress, StopReason, Termination, next_prompt, stop_reason

NEVER = Termination()


def test_an_empty_first_iteration_is_not_convergence():
    assert stop_reason([Progress(0, 0, 3)], NEVER, at_floor=False) is None


def test_an_empty_first_iteration_is_not_a_lack_of_new_labels():
    assert stop_reason([Progress(0, 0, 3)], Termination(min_new_labels=5), at_floor=False) is None


def test_everything_labelled_but_still_adding_is_not_convergence():
    assert stop_reason([Progress(4, 4, 0)], NEVER, at_floor=False) is None


def test_everything_labelled_and_nothing_added_is_convergence():
    history = [Progress(4, 4, 0), Progress(0, 4, 0)]
    assert stop_reason(history, NEVER, at_floor=True) is StopReason.CONVERGED


def test_a_class_that_is_missing_keeps_the_loop_going_when_an_iteration_adds_nothing():
    assert stop_reason([Progress(4, 4, 1), Progress(0, 4, 1)], NEVER, at_floor=False) is None


def test_the_loop_stops_at_the_floor_of_the_schedule():
    assert stop_reason([Progress(4, 4, 1)], NEVER, at_floor=True) is StopReason.SCHEDULE_FLOOR


def test_the_loop_stops_after_max_iterations():
    history = [Progress(4, 4, 1), Progress(4, 8, 1)]
    assert stop_reason(history[:1], Termination(max_iterations=2), at_floor=False) is None
    assert stop_reason(history, Termination(max_iterations=2), at_floor=False) is StopReason.MAX_ITERATIONS


def test_the_loop_stops_after_patience_iterations_with_few_new_labels():
    rule = Termination(min_new_labels=3, patience=2)
    history = [Progress(9, 9, 1), Progress(2, 11, 1), Progress(1, 12, 1)]
    assert stop_reason(history[:2], rule, at_floor=False) is None
    assert stop_reason(history, rule, at_floor=False) is StopReason.FEW_NEW_LABELS


@given(st.lists(st.builds(Progress, st.integers(1, 9), st.integers(1, 99), st.integers(0, 9)), min_size=1))
def test_an_iteration_that_adds_labels_above_the_floor_is_never_the_last_without_a_rule(history):
    assert stop_reason(history, NEVER, at_floor=False) is None


def test_a_phrase_with_a_label_leaves_the_prompt_only_under_reprompt_undetected():
    label = Annotation("cat", (0.0, 0.0, 9.0, 9.0), 0.9, 0, 0.5, ())
    record = Record(0, None, ("cat", "dog"), (label,))
    assert next_prompt(record, "undetected") == ("dog",)
    assert next_prompt(record, "all") == ("cat", "dog")


@pytest.mark.parametrize("reprompt", ["undetected", "all"])
def test_a_record_without_labels_is_asked_in_full(reprompt):
    assert next_prompt(Record(0, None, ("cat", "dog")), reprompt) == ("cat", "dog")
