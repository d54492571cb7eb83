"""Where and how fast a flow runs: devices, threads, the size of a task. Nothing here may change a label or a key.

The environment is read in this file alone: AUTOLABEL_DEVICE ("cpu", "cuda", "cuda:1") overrides the specs' `gpu_ids`.
"""

import logging
import os
from dataclasses import dataclass

from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec
from tasks.domain.spec_train_mal import TrainMalTrainSpec
from tasks.models import cuda_is_available

logger = logging.getLogger(__name__)

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
    if all(checkpoint == "fake" for checkpoint in spec.checkpoints):
        return "cpu"
    return f"cuda:{spec.gpu_ids[0]}" if cuda_is_available() else "cpu"


def training_devices(train: TrainMalTrainSpec) -> tuple[str, ...]:
    """The devices that the spec and the environment ask for; imports torch to see which GPUs there are.

    Raises SpecError where there are GPUs, but not those.
    """
    if named := os.environ.get("AUTOLABEL_DEVICE"):
        return (named,)
    ids = train.gpu_ids if len(train.gpu_ids) >= train.num_gpus else tuple(range(train.num_gpus))
    if not cuda_is_available():
        if len(ids) > 1:
            logger.warning("train.gpu_ids: there is no GPU here; one process trains on the CPU")
        return ("cpu",)
    return _of_this_machine(ids)


def _of_this_machine(ids: tuple[int, ...]) -> tuple[str, ...]:
    import torch

    count = torch.cuda.device_count()
    if missing := [gpu for gpu in ids if gpu >= count]:
        raise SpecError(f"train.gpu_ids: found {missing}, expected numbers below {count}, the GPUs of this machine")
    return tuple(f"cuda:{gpu}" for gpu in ids)
