"""How many task runs a run makes, and how torch's threads wait."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.settings import TASKS_PER_STEP
from flows.task_runs import in_batches


@given(st.integers(0, 10_000))
def test_a_run_of_four_iterations_stays_under_500_task_runs_whatever_the_number_of_shards(shards: int) -> None:
    batches = [batch for _, batch in in_batches(range(shards))]
    assert [shard for batch in batches for shard in batch] == list(range(shards))
    assert len(batches) <= TASKS_PER_STEP
    around_a_step = len(("export", "check termination", "anneal threshold"))
    around_the_loop = len(("index", "shard", "export labels"))
    assert 4 * (2 * len(batches) + around_a_step) + around_the_loop < 500


# Notes the policy at the first import of torch, from whichever module it comes.
AT_FIRST_IMPORT = """
import os, sys
class Watch:
    seen = []
    def find_spec(self, name, *_):
        if name == "torch":
            self.seen.append(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Watch())
CODE
print(Watch.seen[0])
"""

SETTINGS = """
from flows.settings import settings_for
from tasks.formats.spec_yaml import parse_spec
dataset = "{image_dir: images, class_names: [cat]}"
text = "autolabel_type: grounding_dino\\nresults_dir: out\\ngrounding_dino: {checkpoint: any, dataset: " + dataset + "}"
settings_for(parse_spec(text, source="here"))
"""


@pytest.mark.parametrize(
    "code",
    [
        SETTINGS,
        "import tasks.models.grounding_dino",
    ],
    ids=["the settings", "the detector's own module"],
)
def test_threads_sleep_while_they_wait_whoever_imports_torch_first(code: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "AUTOLABEL_"))}
    program = AT_FIRST_IMPORT.replace("CODE", code)
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert answer.stdout.split() == ["passive"]
