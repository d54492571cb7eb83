"""What `autolabel evaluate --masks` prints."""

import json

import pytest

from flows.cli import run

SIZE = {"height": 40, "width": 40}


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def square(number, of_class, side, **more):
    return {
        "id": number,
        "image_id": 1,
        "category_id": of_class,
        "bbox": [0, 0, side, side],
        "segmentation": [[0, 0, side, 0, side, side, 0, side]],
        **more,
    }


@pytest.fixture
def files(tmp_path):
    """The labels and the truth: a [big] object of which a half is found, and a small one without a mask."""
    parts = {
        "images": [{"id": 1, "file_name": "a.jpg", **SIZE}],
        "categories": [{"id": 1, "name": "[big]"}, {"id": 2, "name": "small"}],
    }
    half = {"segmentation": [[0, 0, 20, 0, 20, 40, 0, 40]]}
    for name, rows in (
        ("labels", [square(1, 1, 40, **half), square(2, 2, 8, segmentation=[], mask_failure="no pixel")]),
        ("truth", [square(1, 1, 40), square(2, 2, 8)]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({**parts, "annotations": rows}))
    return [str(tmp_path / "labels.json"), "--ground-truth", str(tmp_path / "truth.json")]


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")]


def test_the_table_has_classes_sizes_and_all(files, capsys):
    assert run(["evaluate", *files, "--masks"]) == 0
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if "│" in line or "┃" in line]
    assert rows == [
        ["class", "labels", "truth", "found", "mIoU", "box mIoU", "ellipse mIoU", "AP50", "AP"],
        ["[big]", "1", "1", "1", "0.500", "1.000", "0.790", "1.000", "0.100"],
        ["small", "1", "1", "1", "0.000", "1.000", "0.812", "0.000", "0.000"],
        ["small", "-", "1", "1", "0.000", "1.000", "0.812", "-", "-"],
        ["medium", "-", "1", "1", "0.500", "1.000", "0.790", "-", "-"],
        ["large", "-", "0", "0", "-", "-", "-", "-", "-"],
        ["all", "2", "2", "2", "0.250", "1.000", "0.801", "0.500", "0.050"],
    ]


def test_what_counts_otherwise_is_told_below_the_table(files, capsys):
    assert run(["evaluate", *files, "--masks"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "mIoU of the found: 0.250, mean of the classes: 0.250",
        "AP of small masks: 0.000, medium: 0.100, large: -",
        "labels without a mask (their IoU is 0): 1",
        "labels without a score (AP takes 1): 2",
    ]


def test_json_has_everything(files, capsys):
    assert run(["evaluate", *files, "--masks", "--class-agnostic", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "coco",
        "overall",
        "miou_classes",
        "classes",
        "sizes",
        "truths_without_mask",
        "labels_without_score",
        "labels_not_ranked",
        "crowd_labels",
        "coverage",
    }
    assert (list(report["classes"]), report["overall"]["miou"]) == (["object"], 0.25)


def test_a_malformed_mask_ends_with_a_message_and_the_status_of_something_to_mend(files, tmp_path, capsys):
    document = json.loads((tmp_path / "labels.json").read_bytes())
    document["annotations"][0]["segmentation"] = {"size": [40, 40], "counts": "~"}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    assert run(["evaluate", *files, "--masks"]) == 2
    message = (
        f"`annotations` of the labels {tmp_path}/labels.json: the `segmentation` of entry 0 cannot be read: found "
    )
    assert message in capsys.readouterr().err


def test_the_help_says_that_masks_need_no_score(capsys):
    with pytest.raises(SystemExit, match="0"):
        run(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--masks compare masks in place of boxes" in text
    assert "labels need no score" in text
