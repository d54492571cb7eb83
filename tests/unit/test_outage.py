"""A server that is away for long is no longer waited for, and soon found when it is back."""

import pytest

from tasks.image_sources.outage import ASK_AGAIN_SECONDS, OUTAGE_SECONDS, Outage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; the last one counts."""
    times = [1000.0]
    monkeypatch.setattr("tasks.image_sources.outage.monotonic", lambda: times[-1])
    return times


def test_a_server_that_answers_is_asked(clock: list[float]) -> None:
    outage = Outage()
    assert outage.may_ask()
    outage.answered()
    clock.append(clock[-1] + 10 * OUTAGE_SECONDS)
    assert outage.may_ask()


def test_a_short_outage_is_waited_for(clock: list[float]) -> None:
    outage = Outage()
    outage.failed()
    clock.append(clock[-1] + OUTAGE_SECONDS - 1)
    outage.failed()
    assert [outage.may_ask() for _ in range(3)] == [True] * 3


def test_in_a_long_outage_the_server_is_asked_now_and_then(clock: list[float]) -> None:
    outage = Outage()
    outage.failed()
    clock.append(clock[-1] + OUTAGE_SECONDS + 1)
    asked = []
    for _ in range(10):
        asked.append(outage.may_ask())
        clock.append(clock[-1] + ASK_AGAIN_SECONDS / 4)
    assert asked == [True, False, False, False, False, True, False, False, False, False]


def test_an_outage_is_over_with_the_first_answer(clock: list[float]) -> None:
    outage = Outage()
    outage.failed()
    clock.append(clock[-1] + OUTAGE_SECONDS + 1)
    assert [outage.may_ask() for _ in range(3)] == [True, False, False]
    outage.answered()
    assert [outage.may_ask() for _ in range(3)] == [True] * 3
    outage.failed()
    assert outage.may_ask()
