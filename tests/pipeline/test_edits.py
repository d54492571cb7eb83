"""What a second run forwards after an edit: what the detector was never asked, no more, and as many as were planned."""

import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tasks.infer as step
from flows.auto_label import auto_label
from flows.plan import plan_run
from tasks.domain.spec import ExperimentSpec
from tasks.models import DetectorConfig, load_prompter
from tasks.models.fake import FakeDetector

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server"), pytest.mark.slow]

CAT, DOG = (10, 10, 40, 30), (60, 60, 100, 90)
IMAGES = 14
Asked = Counter[tuple[bytes, tuple[str, ...], float]]


class Listening(FakeDetector):
    """A detector that remembers the pixels and the prompt of every question."""

    def __init__(self) -> None:
        self.asked: Asked = Counter()

    def detect(self, images: Any, prompts: Any, *, keep_floor: float, batch_size: int = 1) -> Any:
        for image, prompt in zip(images, prompts, strict=True):
            self.asked[np.ascontiguousarray(image).tobytes(), tuple(prompt), keep_floor] += 1
        return super().detect(images, prompts, keep_floor=keep_floor, batch_size=batch_size)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Listening:
    listening = Listening()
    monkeypatch.setattr(step, "load_detector", lambda config, device: listening)
    return listening


@pytest.fixture
def data(tmp_path: Path, paint_image: Callable[..., Path]) -> Path:
    """Fourteen different pictures in two folders; some objects are found only by the lower threshold."""
    for i in range(IMAGES):
        cat = ("cat", 0.9 - i / 100, CAT)
        dog = ("dog", 0.8 - i / 20, DOG)
        paint_image(f"{'ab'[i % 2]}/{i:02}.png", [cat, dog])
    return tmp_path / "images"


def new_image(data: Path, spec: dict[str, Any]) -> None:
    (data / "a/01.png").write_bytes(_other_picture((data / "a/00.png").read_bytes()))


def removed_image(data: Path, spec: dict[str, Any]) -> None:
    (data / "b/03.png").unlink()


def renamed_folder(data: Path, spec: dict[str, Any]) -> None:
    (data / "b").rename(data / "z")


def changed_image(data: Path, spec: dict[str, Any]) -> None:
    changed = data / "a/04.png"
    changed.write_bytes(_other_picture(changed.read_bytes()))


def same_bytes_under_a_new_name(data: Path, spec: dict[str, Any]) -> None:
    shutil.copy(data / "a/00.png", data / "b/99.png")


def new_class(data: Path, spec: dict[str, Any]) -> None:
    spec["dataset"]["class_names"] = ["cat", "dog", "bird"]


def removed_class(data: Path, spec: dict[str, Any]) -> None:
    spec["dataset"]["class_names"] = ["cat"]


def other_thresholds(data: Path, spec: dict[str, Any]) -> None:
    spec["thresholds"] = (0.6, 0.1)


def other_aggregation(data: Path, spec: dict[str, Any]) -> None:
    spec["aggregation"] = {"method": "wbf"}


def pictures_drawn(data: Path, spec: dict[str, Any]) -> None:
    spec["visualize"] = True


def other_shard_size(data: Path, spec: dict[str, Any]) -> None:
    spec["shard_size"] = 5


def other_batch_size(data: Path, spec: dict[str, Any]) -> None:
    spec["batch_size"] = 7


def lower_keep_floor(data: Path, spec: dict[str, Any]) -> None:
    spec["keep_floor"] = 0.02


def nothing(data: Path, spec: dict[str, Any]) -> None:
    pass


# The forwards with `reprompt: all`, where every image is asked once for all phrases.
EDITS: dict[Callable[[Path, dict[str, Any]], None], int] = {
    nothing: 0,
    new_image: 1,
    removed_image: 0,
    renamed_folder: 0,
    changed_image: 1,
    same_bytes_under_a_new_name: 0,
    new_class: IMAGES,
    removed_class: IMAGES,
    other_thresholds: 0,
    other_aggregation: 0,
    pictures_drawn: 0,
    other_shard_size: 0,
    other_batch_size: 0,
    lower_keep_floor: IMAGES,
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_after_an_edit_exactly_what_was_never_asked_is_forwarded_as_planned(edit, data, make_spec, detector):
    first, again, fresh = _three_runs(edit, data, make_spec, detector, reprompt="all")
    assert again.forwards == EDITS[edit]
    assert again.planned == (EDITS[edit], EDITS[edit])
    assert again.files == fresh.files
    assert sum(first.asked.values()) == IMAGES


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit is not other_thresholds], ids=lambda e: e.__name__)
def test_after_an_edit_no_question_is_asked_twice_where_prompts_follow_the_labels(edit, data, make_spec, detector):
    first, again, fresh = _three_runs(edit, data, make_spec, detector, reprompt="undetected")
    never_asked = {question for question in fresh.asked if question not in first.asked}
    assert set(again.asked) == never_asked
    assert again.forwards == sum(again.asked.values()) == len(never_asked)
    assert again.planned[0] <= again.forwards <= again.planned[1]
    assert again.files == fresh.files


def test_other_thresholds_ask_only_prompts_that_other_labels_leave(data, make_spec, detector):
    first, again, fresh = _three_runs(other_thresholds, data, make_spec, detector, reprompt="undetected")
    assert set(again.asked) == {question for question in fresh.asked if question not in first.asked}
    assert again.planned[0] <= again.forwards <= again.planned[1]
    assert again.files == fresh.files


def test_where_the_detector_runs_is_no_part_of_what_it_is_and_how_it_sees_is(tmp_path):
    def digest(**changed: Any) -> str:
        return load_prompter(DetectorConfig("bundled:grounding_dino_scenes", **changed)).digest

    same, precision, preprocessing = digest(), digest(precision="bf16"), digest(shortest_edge=320)
    assert len({same, precision, preprocessing}) == 3


class _Run:
    def __init__(self, spec: ExperimentSpec, detector: Listening) -> None:
        plan = plan_run(spec)
        detector.asked = Counter()
        record = auto_label(spec)
        self.planned = plan.least, plan.most
        self.forwards = sum(iteration.forwards for iteration in record.iterations)
        self.asked = detector.asked
        self.files = dict(_delivered(Path(spec.results_dir)))


def _three_runs(
    edit: Callable[[Path, dict[str, Any]], None], data: Path, make_spec: Any, detector: Listening, reprompt: str
) -> tuple[_Run, _Run, _Run]:
    """A run, the run after the edit, and one after the edit that knows nothing."""
    keys: dict[str, Any] = {"dataset": {"class_names": ["cat", "dog"]}, "shard_size": 4, "reprompt": reprompt}
    first = _Run(make_spec(**keys), detector)
    edit(data, keys)
    again = _Run(make_spec(**keys), detector)
    fresh = _Run(make_spec(**keys, results_dir=f"{data.parent}/fresh"), detector)
    return first, again, fresh


def _delivered(results: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(results.rglob("*")):
        name = file.relative_to(results).as_posix()
        if file.is_file() and not name.startswith("cache/") and name not in ("run.json", "status.json"):
            yield name, file.read_bytes()


def _other_picture(picture: bytes) -> bytes:
    """A picture of the same objects with another background."""
    pixels = np.asarray(Image.open(io.BytesIO(picture))).copy()
    pixels[(pixels == 128).all(axis=-1)] = 77
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_forwards_of_an_iteration_that_may_not_come_are_not_planned_as_certain(paint_image, make_spec, detector):
    paint_image("a.png", [("cat", 0.9, CAT), ("dog", 0.4, DOG)])
    dataset = {"class_names": ["cat", "dog"]}
    _Run(make_spec(dataset, thresholds=(0.5,)), detector)
    paint_image("b.png", [("thing", 0.9, CAT)])
    again = _Run(make_spec(dataset, thresholds=(0.5, 0.3), termination={"min_new_labels": 2}), detector)
    assert again.planned[0] <= again.forwards <= again.planned[1]
    assert again.forwards == 1
