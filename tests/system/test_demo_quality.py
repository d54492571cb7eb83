"""How good the labels of the detector that ships are, on 200 scenes that neither training nor tuning has seen."""

from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import BoxReport, evaluate

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(autolabel: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the demo as a user does, without pictures, and evaluates what it leaves."""

    def made(*options: str, truth: str) -> BoxReport:
        folder: Path = tmp_path_factory.mktemp("demo")
        keys = ("results_dir=out", "grounding_dino.visualize=false")
        answer = autolabel("demo", "--scenes", "200", *options, *keys, cwd=folder)
        assert answer.returncode == 0, answer.stderr
        return evaluate(str(folder / "out"), str(folder / "out" / "scenes" / truth))

    return made


def test_class_names_are_found_with_an_ap50_of_nine_tenths_and_as_much_precision_and_recall(report):
    classes = report(truth="ground_truth.json").overall
    assert min(classes.ap50, classes.counts.precision, classes.counts.recall) >= 0.90


def test_phrases_of_colour_and_shape_are_found_among_phrases_that_are_absent(report):
    phrases = report("--grounding", truth="ground_truth_phrases.json").overall
    assert phrases.ap50 >= 0.85
    assert min(phrases.counts.precision, phrases.counts.recall) >= 0.90
