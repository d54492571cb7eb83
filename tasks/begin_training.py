"""Step: where a training begins, or goes on."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, Json
from tasks.domain.errors import CheckpointError, SpecError
from tasks.domain.spec_problems import without_passwords
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_record import EpochRecord, epoch_from_json
from tasks.models.mal.training_state import TrainingState, initial_state, load_state
from tasks.training_files import NETWORK, RECORD, STATE, Training, read_state, read_validations, write_state


@dataclass(frozen=True)
class Standing:
    """How far a training is: the epochs that are done, with what was measured; `step` of the next one comes next."""

    epochs: tuple[EpochRecord, ...]
    step: int


@task(name="begin training", cache_policy=NO_CACHE, persist_result=False)
def begin_training(training: Training, boxes: ArtifactRef) -> Standing:
    """Where the training stands; a new one gets its first weights.

    Raises:
        SpecError: results_dir, or the state to resume from, is of another training.
        CheckpointError: a state or pretrained weights cannot be used.
    """
    asked = training.asked(boxes)
    state = read_state(training)
    if state is None:
        _refuse_foreign_network(training)
        state = _resumed(training, asked) or initial_state(training.spec, asked, _seed(training))
        write_state(training, state)
    elif changed := _changes(state, asked):
        raise SpecError(_not_of_results_dir(changed, training))
    known = read_validations(training.results)
    epochs = [epoch_from_json(row) for row in state.epochs]
    return Standing(
        tuple(epoch.validated(known[epoch.epoch]) if epoch.epoch in known else epoch for epoch in epochs), state.step
    )


def _seed(training: Training) -> int:
    asked = training.spec.train.seed
    return asked if asked >= 0 else secrets.randbits(32)


def _resumed(training: Training, asked: Mapping[str, Json]) -> TrainingState | None:
    """The state of another run that the spec names, if it names one. Raises SpecError where it is of other training."""
    path = training.spec.train.resume_training_checkpoint_path
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"train.resume_training_checkpoint_path {path} cannot be read: {error.strerror}; expected the {STATE} of "
            "a training"
        ) from error
    state = load_state(data, path)
    if changed := _changes(state, asked):
        raise SpecError(_not_to_resume(changed, path))
    return state


def _refuse_foreign_network(training: Training) -> None:
    if training.results.exists(NETWORK) and not training.results.exists(RECORD):
        raise SpecError(
            f"results_dir {without_password(training.results.uri)} holds {NETWORK}, which no training has made and one "
            "would replace; choose another results_dir"
        )


def _changes(state: TrainingState, asked: Mapping[str, Json]) -> list[str]:
    """What is asked for now and was not in the training of the state, key by key.

    A key that the spec has got since then had its default.
    """
    before = {**TrainMalSpec.model_construct().learned_from, **state.asked}
    return [
        f"{key}: {_shown(before.get(key))} then, {_shown(asked.get(key))} now"
        for key in sorted({*before, *asked})
        if before.get(key) != asked.get(key)
    ]


def _not_of_results_dir(changed: Sequence[str], training: Training) -> str:
    results_dir = without_password(training.results.uri)
    head = f"results_dir {results_dir} holds the state of another training, which would not go on with these:"
    way_out = (
        "choose another results_dir, with this one's mal as train.pretrained_model_path to start from its weights; or "
        f"delete its {STATE} to begin anew"
    )
    return "\n  ".join([head, *changed, way_out])


def _not_to_resume(changed: Sequence[str], path: str) -> str:
    head = f"train.resume_training_checkpoint_path {path} is of another training, which would not go on with these:"
    way_out = (
        "leave it out to begin anew, or give the mal folder beside its folder as train.pretrained_model_path to start "
        "from its weights"
    )
    return "\n  ".join([head, *changed, way_out])


def _shown(value: Json) -> str:
    text = str(without_passwords(value))
    return text if len(text) <= 40 else f"{text[:12]}..."
