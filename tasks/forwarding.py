"""Tasks that put images through a model: where they run, and when they are worth another try."""

from dataclasses import dataclass

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from tasks.domain.errors import AutoLabelError
from tasks.image_files import ImageSource


@dataclass(frozen=True)
class Place:
    """Where images are and a model runs; none of it may change a label."""

    source: ImageSource
    device: str
    batch_size: int
    read_ahead: int


def may_pass(task: Task[..., object], run: TaskRun, state: State[object]) -> bool:
    """Whether a failure is worth another try: what the user has to mend is not."""
    del task, run
    return not isinstance(state.result(raise_on_failure=False), AutoLabelError)
