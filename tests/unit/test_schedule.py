"""Annealing of the confidence threshold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.schedule import (
    CosineSchedule,
    ExponentialSchedule,
    ListSchedule,
    Schedule,
    StepSchedule,
)

shares = st.floats(0, 1)
falls = st.tuples(shares, shares).map(lambda pair: (max(pair), min(pair)))  # (start, floor)
steps = st.builds(
    lambda fall, drop, every: StepSchedule(fall[0], drop, every, fall[1]), falls, st.floats(0.01, 1), st.integers(1, 3)
)
exponentials = st.builds(lambda fall, gamma: ExponentialSchedule(fall[0], gamma, fall[1]), falls, st.floats(0.01, 0.9))
cosines = st.builds(lambda fall, iterations: CosineSchedule(fall[0], fall[1], iterations), falls, st.integers(1, 40))
lists = st.builds(lambda thresholds: ListSchedule(tuple(thresholds)), st.lists(shares, min_size=1, max_size=8))
formulas = st.one_of(steps, exponentials, cosines)


def thresholds_of(schedule: Schedule) -> list[float]:
    """Every threshold of a run that only the schedule ends."""
    thresholds = [schedule.threshold(0)]
    while not schedule.ends_after(len(thresholds) - 1):
        thresholds.append(schedule.threshold(len(thresholds)))
        assert len(thresholds) < 1000
    return thresholds


def test_a_step_schedule_falls_in_round_numbers() -> None:
    assert thresholds_of(StepSchedule(start=0.5, drop=0.1, every=1, floor=0.2)) == [0.5, 0.4, 0.3, 0.2]


def test_a_step_schedule_stays_for_as_many_iterations_as_asked() -> None:
    assert thresholds_of(StepSchedule(start=0.5, drop=0.2, every=2, floor=0.2)) == [0.5, 0.5, 0.3, 0.3, 0.2]


def test_a_last_drop_stops_at_the_floor() -> None:
    assert thresholds_of(StepSchedule(start=0.5, drop=0.2, every=1, floor=0.2)) == [0.5, 0.3, 0.2]


def test_an_exponential_schedule_multiplies() -> None:
    assert thresholds_of(ExponentialSchedule(start=0.8, gamma=0.5, floor=0.15)) == [0.8, 0.4, 0.2, 0.15]


def test_a_cosine_schedule_is_half_way_down_in_the_middle() -> None:
    assert CosineSchedule(start=0.5, floor=0.3, iterations=5).threshold(2) == 0.4


def test_a_cosine_schedule_of_one_iteration_is_its_start() -> None:
    schedule = CosineSchedule(start=0.5, floor=0.3, iterations=1)
    assert (thresholds_of(schedule), schedule.lowest) == ([0.5], 0.5)


def test_a_list_may_rise_and_is_taken_as_it_is() -> None:
    schedule = ListSchedule((0.3, 0.5))
    assert (thresholds_of(schedule), schedule.lowest) == ([0.3, 0.5], 0.3)


@given(formulas)
def test_a_formula_never_rises(schedule: Schedule) -> None:
    thresholds = thresholds_of(schedule)
    assert thresholds == sorted(thresholds, reverse=True)


@given(formulas)
def test_a_formula_ends_at_its_lowest_threshold(schedule: Schedule) -> None:
    assert thresholds_of(schedule)[-1] == schedule.lowest


@given(st.one_of(formulas, lists))
def test_no_threshold_is_below_the_lowest(schedule: Schedule) -> None:
    assert min(thresholds_of(schedule)) == schedule.lowest


@given(st.one_of(steps, exponentials, cosines.filter(lambda schedule: schedule.iterations > 1)))
def test_a_formula_begins_at_its_start(schedule: StepSchedule | ExponentialSchedule | CosineSchedule) -> None:
    assert schedule.threshold(0) == pytest.approx(schedule.start, abs=1e-12)


@given(falls, st.integers(2, 12))
def test_the_cosine_is_the_one_that_torch_anneals_learning_rates_with(
    fall: tuple[float, float], iterations: int
) -> None:
    torch = pytest.importorskip("torch")
    start, floor = fall
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=start)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=iterations - 1, eta_min=floor)
    for iteration in range(iterations):
        assert CosineSchedule(start, floor, iterations).threshold(iteration) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        reference.step()
