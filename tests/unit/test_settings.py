"""How many task runs a run makes."""

from hypothesis import given
from hypothesis import strategies as st

from flows.auto_label import in_batches
from flows.settings import TASKS_PER_STEP


@given(st.integers(0, 10_000))
def test_a_run_of_four_iterations_stays_under_500_task_runs_whatever_the_number_of_shards(shards: int) -> None:
    batches = [batch for _, batch in in_batches(range(shards))]
    assert [shard for batch in batches for shard in batch] == list(range(shards))
    assert len(batches) <= TASKS_PER_STEP
    around_a_step = len(("export", "check termination", "anneal threshold"))
    around_the_loop = len(("index", "shard", "export labels"))
    assert 4 * (2 * len(batches) + around_a_step) + around_the_loop < 500
