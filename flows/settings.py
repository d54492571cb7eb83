"""Where and how fast a flow runs: devices, threads, the size of a task. Nothing here may change a label or a key.

The environment is read in this file alone: AUTOLABEL_DEVICE ("cpu", "cuda", "cuda:1") overrides the spec's `gpu_ids`.
"""

import os
from dataclasses import dataclass

from tasks.domain.spec import ExperimentSpec
from tasks.models import cuda_is_available

# A task run costs 10 ms in threads and 46 ms of the server (measured with Prefect 3.8.8), so a run of four iterations
# is kept under 500 of them: 4 * (2 * 60 + 3) + 3 = 495. An iteration has up to 60 of `infer`, as many of `aggregate`,
# and three more (export, termination, annealing); three stand beside the iterations (index, shards, labels).
TASKS_PER_STEP = 60


@dataclass(frozen=True)
class Settings:
    """How a run uses this machine: torch device, images per forward on a GPU, and images read ahead of the detector."""

    device: str
    batch_size: int
    read_ahead: int


def settings_for(spec: ExperimentSpec) -> Settings:
    """The settings that the spec and the environment ask for; imports torch to see whether there is a GPU."""
    return Settings(device=_device(spec), batch_size=spec.batch_size, read_ahead=max(1, spec.num_workers))


def _device(spec: ExperimentSpec) -> str:
    if named := os.environ.get("AUTOLABEL_DEVICE"):
        return named
    if spec.grounding_dino.checkpoint == "fake":
        return "cpu"
    return f"cuda:{spec.gpu_ids[0]}" if cuda_is_available() else "cpu"
