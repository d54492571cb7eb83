"""Step: one epoch of a training, from the state in results_dir to the next one there."""

from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import CheckpointError
from tasks.domain.training_record import EpochRecord
from tasks.formats.training_boxes import load_labelled_boxes
from tasks.models.mal.distributed import Team, Tell, together
from tasks.models.mal.samples import SampleSet
from tasks.models.mal.training import Trainer
from tasks.models.mal.training_state import TrainingState
from tasks.progress import advance, begin
from tasks.training_files import STATE, Training, read_state, reader, write_state

STAGE = "train"


@task(
    name="train epoch",
    task_run_name="epoch {epoch} / train",
    cache_policy=NO_CACHE,
    persist_result=False,
    tags=["gpu"],
)
def train_epoch(training: Training, boxes: ArtifactRef, epoch: int) -> EpochRecord:
    """Train the epoch that is under way to its end, on all devices; the state is written at its end at the latest.

    Raises:
        ImageError: an image cannot be read any more, or has changed.
        SpecError: the losses are no numbers any more.
    """
    del epoch  # it names the task run
    begin(STAGE, _samples(training, boxes))
    return together(EpochWork(training, boxes), training.devices, lambda samples: advance(STAGE, samples))


def _samples(training: Training, boxes: ArtifactRef) -> int:
    """How many boxes an epoch looks at: all of them, filled up to whole steps."""
    count, of_step = int(str(training.store.counts(boxes)["boxes"])), training.boxes_per_step
    return -(-count // of_step) * of_step


@dataclass(frozen=True)
class EpochWork:
    """An epoch as every process of a team works on it."""

    training: Training
    boxes: ArtifactRef

    def __call__(self, team: Team, tell: Tell) -> EpochRecord:
        """The record of the epoch; the first process writes the state."""
        trainer = self._trainer(team)

        def keep(state: TrainingState) -> None:
            if team.leads:
                write_state(self.training, state)

        record = trainer.run_epoch(tell, keep)
        keep(trainer.state)
        return record

    def _trainer(self, team: Team) -> Trainer:
        spec = self.training.spec
        state = read_state(self.training)
        if state is None:
            raise CheckpointError(f"{STATE} was deleted while the training went on; start it again")
        samples = SampleSet(
            load_labelled_boxes(self.training.store.read(self.boxes)),
            reader(self.training.source),
            crop_size=spec.dataset.crop_size,
            margin_rate=spec.train.margin_rate,
            seed=state.seed,
            augmentation=spec.train.augmentation,
        )
        return Trainer(spec, samples, state, team)
