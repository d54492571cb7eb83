"""Several processes that train one network: one for each device, started for an epoch and gone after it."""

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import distributed, multiprocessing

from tasks.domain.errors import AutoLabelError

Result = TypeVar("Result", covariant=True)
Tell = Callable[[int], None]  # told of samples that are done; only the first process is asked to

_PATIENCE = 1.0  # seconds between two looks at whether a process has died


@dataclass(frozen=True)
class Team:
    """A process among those that train together: its place, how many there are, and its device."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0


class Work(Protocol[Result]):
    """What every process of a team does; it is sent to new processes, so it must be possible to pickle it."""

    def __call__(self, team: Team, tell: Tell) -> Result:
        """Do it as a member of `team`, and give the result of the first one."""
        ...


@dataclass(frozen=True)
class _Message(Generic[Result]):
    """What a process says: samples done, its result, or why there is none."""

    samples: int = 0
    result: Any = None
    ends: bool = False
    error: AutoLabelError | None = None
    traceback: str = ""


def together(work: Work[Result], devices: tuple[str, ...], tell: Tell) -> Result:
    """What `work` gives in the first of as many processes as there are devices; one device needs no new process.

    Gradients travel over NCCL between GPUs, and over Gloo between processes on the CPU.

    Raises:
        AutoLabelError: what a process raised of them.
        RuntimeError: a process ended in another way.
    """
    if len(devices) == 1:
        return work(Team(device=devices[0]), tell)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        inbox = context.Queue()
        arguments = (work, devices, str(Path(folder) / "meeting"), inbox)
        processes = [context.Process(target=_take_part, args=(rank, *arguments)) for rank in range(len(devices))]
        try:
            for process in processes:
                process.start()
            return _listen(inbox, processes, tell)  # type: ignore[no-any-return]
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                process.join()


def _listen(inbox: Any, processes: list[Any], tell: Tell) -> Any:
    """Pass on what the processes tell, until all are done."""
    results: list[Any] = []
    ended = 0
    while ended < len(processes):
        try:
            message = inbox.get(timeout=_PATIENCE)
        except Empty:
            _refuse_the_dead(processes)
            continue
        if message.error is not None:
            raise message.error
        if message.traceback:
            raise RuntimeError(f"a training process failed:\n{message.traceback}")
        tell(message.samples)
        if message.ends:
            ended += 1
            results += [message.result] if message.result is not None else []
    return results[0]


def _refuse_the_dead(processes: list[Any]) -> None:
    for rank, process in enumerate(processes):
        if process.exitcode not in (None, 0):
            raise RuntimeError(
                f"training process {rank} ended with {process.exitcode}: it was killed, or out of memory"
            )


def _take_part(rank: int, work: Work[Any], devices: tuple[str, ...], meeting: str, inbox: Any) -> None:
    """One process: joins the others, works, and tells the parent how it ended."""
    team = Team(rank, len(devices), devices[rank])
    backend = "nccl" if team.device.startswith("cuda") else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(team.device)
    try:
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=team.rank, world_size=team.size)
        result = work(team, lambda samples: inbox.put(_Message(samples=samples)) if team.leads else None)
        inbox.put(_Message(result=result if team.leads else None, ends=True))
        distributed.destroy_process_group()
    except AutoLabelError as error:
        inbox.put(_Message(error=error))
    except Exception:  # noqa: BLE001  it is raised in the parent
        inbox.put(_Message(traceback=traceback.format_exc()))
