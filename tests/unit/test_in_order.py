"""Results come in the order of the items, few of them are in memory, and no one waits for a consumer who left."""

from collections.abc import Iterator
from contextvars import ContextVar
from threading import Event
from time import monotonic
from weakref import WeakSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.in_order import in_order


@given(st.lists(st.integers()), st.integers(1, 5))
def test_every_item_comes_with_its_result_in_the_order_of_the_items(items: list[int], workers: int) -> None:
    assert list(in_order(lambda item: item + 1, items, workers)) == [(item, item + 1) for item in items]


who: ContextVar[str] = ContextVar("who")


def test_the_work_sees_the_context_of_the_consumer() -> None:
    who.set("the consumer")
    assert list(in_order(lambda _: who.get(), [1, 2], workers=2)) == [(1, "the consumer"), (2, "the consumer")]


class Result:
    """Something whose life can be watched."""


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_results_than_two_a_worker_are_alive_at_any_time(workers: int) -> None:
    alive: WeakSet[Result] = WeakSet()
    counts = []

    def made(_: int) -> Result:
        result = Result()
        alive.add(result)
        counts.append(len(alive))
        return result

    for _, result in in_order(made, range(50), workers):
        counts.append(len(alive))
        assert result in alive
        del _, result  # the consumer is done with it before it asks for the next
    assert max(counts) <= 2 * workers


def test_items_are_taken_as_they_are_needed_and_not_before() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(str, items(), workers=2)
    assert next(results) == (0, "0")
    assert len(taken) == 4
    results.close()


def test_work_for_later_items_goes_on_while_the_first_takes_its_time() -> None:
    begun = [Event() for _ in range(4)]

    def work(item: int) -> bool:
        begun[item].set()
        return begun[3].wait(timeout=10) if item == 0 else True

    assert list(in_order(work, range(4), workers=2)) == [(item, True) for item in range(4)]


def test_an_error_of_the_items_comes_out_as_it_is() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more of them")

    with pytest.raises(LookupError, match="no more of them"):
        list(in_order(str, items(), workers=2))


def test_an_error_of_the_work_comes_in_its_place() -> None:
    results = in_order(lambda item: 1 // item, [2, 1, 0, 3], workers=4)
    assert [next(results), next(results)] == [(2, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_consumer_that_stops_early_does_not_wait_for_what_has_begun() -> None:
    stalled = Event()

    def work(item: int) -> int:
        return item if item == 0 else stalled.wait(timeout=10)

    results = in_order(work, range(100), workers=2)
    assert next(results) == (0, 0)
    begin = monotonic()
    results.close()
    took = monotonic() - begin
    stalled.set()
    assert took < 5
