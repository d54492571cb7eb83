"""What the terminal shows: the user's words, as they are."""

import json
from dataclasses import replace

import pytest

from flows import console
from flows.plan import Plan
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.summary import ImageStates, IterationSummary, RunRecord, ShardCounts
from tasks.evaluate import evaluate_boxes

# An opening tag, a closing tag that nothing opened (rich refuses it in markup), and a name of an emoji.
NAMES = ("out[final]", "cat [/b]", "[bold]", "a :cat: here")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def document(names: tuple[str, ...], images: tuple[str, ...], **more: object) -> bytes:
    """A COCO file with an annotation of every class in the first image."""
    annotation = {"image_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5, **more}
    rows = [{**annotation, "category_id": i, "iteration": i} for i, _ in enumerate(names)]
    parts = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": rows,
    }
    return json.dumps(parts).encode()


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_names_of_missing_classes_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    counts = ShardCounts(labels=1)
    iteration = IterationSummary(0, 0.5, counts, NAMES, forwards=1, shards=1, reused_shards=0, seconds=1.0)
    record = RunRecord(
        {},
        {},
        {},
        (iteration,),
        "the [/schedule] ended",
        ImageStates(1, 0, 0),
        device="cpu",
        without_prompt=0,
        undrawn=0,
        labels=ArtifactRef("labels", "0" * 64, "0" * 64),
    )
    console.print_run(record)
    text = shown(capsys)
    assert ", ".join(NAMES) in text
    assert "stopped: the [/schedule] ended;" in text


def test_captions_of_a_plan_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        images=1,
        shards=1,
        failures=0,
        without_prompt=0,
        phrases=4,
        captions=((1, 1),),
        caption_texts=tuple((name, 5) for name in NAMES),
        iterations=(),
        stop=None,
        labels=None,
    )
    console.print_plan(plan)
    text = shown(capsys)
    assert [name for name in NAMES if f"caption of 5 tokens: {name}\n" not in text] == []


def test_names_of_classes_in_an_evaluation_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate_boxes(document(NAMES, ("a.jpg",)), document(NAMES, ("a.jpg",)))
    console.print_evaluation(report)
    text = shown(capsys)
    assert [name for name in NAMES if f"│ {name} " not in text] == []


def test_names_that_only_one_side_has_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    images = tuple(f"{name}.jpg" for name in NAMES)
    report = evaluate_boxes(document(("cat",), ("a.jpg", *images)), document(("cat", *NAMES), ("a.jpg",)))
    console.print_evaluation(report)
    text = shown(capsys)
    assert f"4 images are only in the labels: {', '.join(sorted(images))}\n" in text
    assert ", ".join(sorted(NAMES)) in text


def test_the_table_of_iterations_says_which_labels_it_judges(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate_boxes(document(("cat", "dog"), ("a.jpg",)), document(("cat", "dog"), ("a.jpg",)))
    console.print_evaluation(report)
    assert "labels up to iteration" in shown(capsys)
    console.print_evaluation(replace(report, iterations_are="after iteration"))
    assert "┃ after iteration ┃" in shown(capsys)
