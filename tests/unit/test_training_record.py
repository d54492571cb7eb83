"""The record of a training, and its curve."""

from dataclasses import asdict, replace
from xml.etree import ElementTree as ET

import pytest

from flows.training_plot import training_curve
from tasks.domain.training_record import (
    EpochRecord,
    MaskScores,
    TrainingRecord,
    Validation,
    best_epoch,
    epoch_from_json,
)

EPOCH = EpochRecord(0, 0.5, None, 1e-3, samples=8, skipped=0, seconds=1.0)


def measured(epoch: int, iou: float | None) -> EpochRecord:
    scores = MaskScores(3, iou, None, iou, None)
    return replace(EPOCH, epoch=epoch, refinement_loss=0.2, validation=Validation(scores, scores, seconds=1.0))


@pytest.mark.parametrize("epoch", [EPOCH, measured(1, 0.5), replace(EPOCH, validation=Validation(projection_loss=0.1))])
def test_an_epoch_comes_back_from_json_equal(epoch: EpochRecord) -> None:
    assert epoch_from_json(asdict(epoch)) == epoch


def test_the_best_epoch_is_the_first_of_the_greatest_mean_iou() -> None:
    assert best_epoch([measured(0, 0.4), measured(1, 0.6), measured(2, 0.6), replace(EPOCH, epoch=3)]) == measured(
        1, 0.6
    )


def test_without_a_measurement_no_epoch_is_the_best() -> None:
    assert TrainingRecord({}, {}, ("cpu",), 1, {}, 0, (EPOCH,)).to_json()["best_epoch"] is None


@pytest.mark.parametrize("epochs", [[EPOCH], [measured(0, 0.4), EPOCH, measured(2, None)]])
def test_the_curve_is_a_picture_of_as_many_panels_as_there_is_to_show(epochs: list[EpochRecord]) -> None:
    root = ET.fromstring(training_curve(epochs))  # noqa: S314  our own text
    panels = root.findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == (2 if any(epoch.mean_iou is not None for epoch in epochs) else 1)


def test_a_curve_has_a_dot_for_every_value() -> None:
    assert training_curve([measured(epoch, 0.1 * epoch) for epoch in range(3)]).count("<circle") == 3 * 4
