"""What an edit costs in masks: the boxes never asked about, as many as were planned, and the labels of a fresh run."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from prefect import flow

from flows import mask_inputs
from flows.auto_label import auto_label
from flows.mask_inputs import MaskInputs, mask_inputs_of
from flows.mask_plan import plan_masks
from flows.segment_masks import segment_masks
from tasks import segment as step
from tasks.boxed_shards import BoxedShard
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import MaskRecord
from tasks.formats.label_shards import load_label_shards
from tasks.index_images import build_named_indexes
from tasks.models import SegmenterConfig
from tasks.models.fake import FakeSegmenter
from tasks.segment import segment, segment_shards
from tasks.shard_boxes import build_boxes

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

IMAGES = [f"{folder}/{i}.png" for folder in ("day", "night") for i in range(6)]
ALL = 2 * len(IMAGES)  # boxes: two an image


class Seeing(FakeSegmenter):
    """A fake whose masks depend on the pixels, and whose digest depends on all of its configuration, as real ones do.

    `asked` has the number of boxes of every call.
    """

    def __init__(self, config: SegmenterConfig, asked: list[int]) -> None:
        self._config = config
        self._asked = asked

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self._config).encode()).hexdigest()

    def segment(self, images, boxes, *, batch_size=1):
        self._asked.append(sum(map(len, boxes)))
        masks = super().segment(images, boxes, batch_size=batch_size)
        return [
            [mask and replace(mask, quality=float(pixels.mean()) / 255) for mask in of_image]
            for pixels, of_image in zip(images, masks, strict=True)
        ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the segmenter was asked, in every call."""
    calls: list[int] = []
    monkeypatch.setattr(mask_inputs, "segmenter_digest", lambda config: Seeing(config, calls).digest)
    monkeypatch.setattr(step, "load_segmenter", lambda config, device: Seeing(config, calls))
    return calls


@dataclass
class Data:
    """A folder of images, the boxes of each by its key, and keys of the spec."""

    images: Path
    boxes: dict[str, list[tuple[float, ...]]]
    spec: dict[str, Any] = field(default_factory=lambda: {"shard_size": 4})
    inference: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def data(paint_image, tmp_path) -> Data:
    for i, key in enumerate(IMAGES):
        paint_image(key, [("cat", 0.9, (10, 10, 20 + i, 40))])
    return Data(
        tmp_path / "images", {key: [(10.0 + i, 10, 40, 30), (5, 60 + i, 9.5, 20)] for i, key in enumerate(IMAGES)}
    )


@pytest.fixture
def run(data, write_boxes, make_mask_spec, results) -> Callable[..., tuple[int, MaskRecord, bytes]]:
    """Plans and makes the masks: the boxes planned, the record, and the bytes of the COCO file."""

    def made(**keys: Any) -> tuple[int, MaskRecord, bytes]:
        write_boxes(data.boxes)
        spec = make_mask_spec(data.inference, **(data.spec | keys))
        plan = plan_masks(spec, None)
        assert plan is not None
        record = segment_masks(spec)
        name = data.inference.get("label_dump_path", "masks.json")
        return plan.boxes_to_forward, record, (Path(spec.results_dir) / name).read_bytes()

    return made


@pytest.fixture
def prepared(data, write_boxes, make_mask_spec) -> Callable[[], tuple[MaskInputs, list[BoxedShard]]]:
    """Makes what the segment step of a run is given."""

    def made() -> tuple[MaskInputs, list[BoxedShard]]:
        write_boxes(data.boxes)
        inputs = mask_inputs_of(make_mask_spec(data.inference, **data.spec))
        dataset = build_boxes(inputs.store, inputs.boxes, inputs.spec.shard_size)
        indexes = build_named_indexes(inputs.indexer, dataset.shards)
        return inputs, [BoxedShard(rows, index) for rows, (index, _) in zip(dataset.shards, indexes, strict=True)]

    return made


@pytest.fixture
def fill_cache(prepared) -> Callable[[], None]:
    """Makes the masks without a flow, which takes Prefect a second."""

    def filled() -> None:
        inputs, shards = prepared()
        segment_shards(inputs.store, shards, inputs.question, inputs.place, inputs.recall)

    return filled


# --- the edits


def nothing(data: Data) -> None:
    """The same again."""


def new_image(data: Data) -> None:
    Image.new("RGB", (64, 48), (9, 9, 9)).save(data.images / "day" / "new.png")
    data.boxes["day/new.png"] = [(1, 1, 30, 30), (5, 5, 20, 20), (0, 0, 64, 48)]


def new_image_without_boxes(data: Data) -> None:
    new_image(data)
    data.boxes["day/new.png"] = []


def removed_image(data: Data) -> None:
    (data.images / "day" / "3.png").unlink()
    del data.boxes["day/3.png"]


def renamed_image(data: Data) -> None:
    (data.images / "day" / "3.png").rename(data.images / "a.png")
    data.boxes["a.png"] = data.boxes.pop("day/3.png")


def renamed_folder(data: Data) -> None:
    (data.images / "night").rename(data.images / "dusk")
    data.boxes = {key.replace("night", "dusk"): boxes for key, boxes in data.boxes.items()}


def exchanged_images(data: Data) -> None:
    """Each has the other's name, and keeps its own boxes."""
    one, other, between = (data.images / name for name in ("day/3.png", "night/2.png", "between"))
    one.rename(between)
    other.rename(one)
    between.rename(other)
    data.boxes["day/3.png"], data.boxes["night/2.png"] = data.boxes["night/2.png"], data.boxes["day/3.png"]


def changed_bytes(data: Data) -> None:
    path = data.images / "day" / "3.png"
    ImageOps.invert(Image.open(path)).save(path)


def same_bytes_under_a_second_name(data: Data) -> None:
    shutil.copy(data.images / "day" / "3.png", data.images / "copy.png")
    data.boxes["copy.png"] = data.boxes["day/3.png"]


def second_name_with_a_box_more(data: Data) -> None:
    same_bytes_under_a_second_name(data)
    data.boxes["copy.png"] = [*data.boxes["day/3.png"], (50, 50, 9, 9)]


def moved_box(data: Data) -> None:
    left, *rest = data.boxes["day/3.png"][0]
    data.boxes["day/3.png"][0] = (left + 1e-9, *rest)


def added_box(data: Data) -> None:
    data.boxes["day/3.png"].insert(1, (7, 7, 70, 70))


def new_box_twice(data: Data) -> None:
    data.boxes["day/3.png"] += [(7, 7, 70, 70), (7, 7, 70, 70)]


def removed_box(data: Data) -> None:
    del data.boxes["day/3.png"][0]


def boxes_in_another_order(data: Data) -> None:
    data.boxes["day/3.png"].reverse()


def of_spec(**keys: Any) -> Callable[[Data], None]:
    return lambda data: data.spec.update(keys)


def of_inference(**keys: Any) -> Callable[[Data], None]:
    return lambda data: data.inference.update(keys)


EDITS: dict[str, tuple[Callable[[Data], None], int]] = {
    "nothing": (nothing, 0),
    "a new image": (new_image, 3),
    "a new image without boxes": (new_image_without_boxes, 0),
    "a removed image": (removed_image, 0),
    "a renamed image": (renamed_image, 0),
    "a renamed folder": (renamed_folder, 0),
    "two images that exchange their names": (exchanged_images, 0),
    "changed bytes of an image": (changed_bytes, 2),
    "the same bytes under a second name": (same_bytes_under_a_second_name, 0),
    "a second name with a box more": (second_name_with_a_box_more, 1),
    "a moved box": (moved_box, 1),
    "an added box": (added_box, 1),
    "a new box twice": (new_box_twice, 1),
    "a removed box": (removed_box, 0),
    "boxes in another order": (boxes_in_another_order, 0),
    "smaller shards": (of_spec(shard_size=1), 0),
    "larger shards": (of_spec(shard_size=100), 0),
    "batches and readers": (of_spec(batch_size=7, num_workers=9), 0),
    "pictures": (of_spec(mal={"visualize": True}), 0),
    "the name of the output": (of_inference(label_dump_path="other.json"), 0),
    "a comparison with what was there": (of_inference(load_mask=True), 0),
    "thresholds of the segmenter": (of_spec(mal={"train": {"mask_thres": [0.3]}}), ALL),
    "weights of the segmenter": (of_spec(mal={"weights": "teacher"}), ALL),
    "precision of the segmenter": (of_spec(mal={"precision": "fp16"}), ALL),
    "another segmenter": (of_spec(mal={"segmenter": "sam"}), ALL),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_costs_the_boxes_never_asked_about_and_the_labels_are_those_of_a_fresh_run(
    data, fill_cache, run, asked, tmp_path, edit
):
    change, expected = EDITS[edit]
    fill_cache()
    assert sum(asked) == ALL
    asked.clear()
    change(data)
    planned, record, labels = run()
    assert (planned, record.masks.boxes_forwarded, sum(asked)) == (expected,) * 3
    _, _, fresh = run(results_dir=str(tmp_path / "fresh"))
    assert labels == fresh


def test_the_device_is_no_question(run, asked, monkeypatch):
    run()
    monkeypatch.setenv("AUTOLABEL_DEVICE", "cuda:7")
    planned, record, _ = run()
    assert (planned, record.masks.boxes_forwarded, record.device) == (0, 0, "cuda:7")


def test_edits_one_after_the_other_cost_what_they_cost_alone(data, run, asked, tmp_path):
    run()
    for change, expected in (
        EDITS[name] for name in ("a renamed folder", "an added box", "smaller shards", "pictures")
    ):
        change(data)
        planned, record, labels = run()
        assert (planned, record.masks.boxes_forwarded) == (expected, expected)
    nothing(data)
    _, _, fresh = run(results_dir=str(tmp_path / "fresh"))
    assert labels == fresh


def test_what_was_undone_is_known(data, run, asked):
    _, _, before = run()
    kept = dict(data.boxes)
    data.boxes = {key: boxes[:1] for key, boxes in list(kept.items())[:7]}
    run()
    data.boxes = kept
    planned, record, after = run()
    assert (planned, record.masks.boxes_forwarded) == (0, 0)
    assert after == before


def test_masks_that_are_lost_from_the_cache_are_made_again_as_planned(run, asked, results, caplog):
    run()
    damaged, *_ = sorted((results / "cache" / "masks").glob("*/*[!t].json"))
    lost = sum(len(image["boxes"]) for image in json.loads(damaged.read_text())["images"])
    damaged.write_bytes(damaged.read_bytes()[:-9])
    planned, record, _ = run()
    assert (planned, record.masks.boxes_forwarded) == (lost, lost)
    assert "it is made again" in caplog.text
    assert run()[0] == 0


def test_a_lower_threshold_of_the_detection_costs_the_boxes_that_it_adds(paint_image, make_spec, asked, results):
    for i in range(9):
        paint_image(f"{i}.png", [("cat", 0.9, (10, 10, 60, 50 + i)), ("dog", 0.4, (10, 80, 60, 140))][: 1 + i % 2])

    def both(threshold: float, folder: Path) -> tuple[int, int, bytes]:
        spec: ExperimentSpec = make_spec(
            {"class_names": ["cat", "dog"]},
            thresholds=[threshold],
            autolabel_type="grounding_dino+mal",
            mal={"checkpoint": "fake"},
            results_dir=str(folder),
            shard_size=3,
        )
        labels = auto_label(spec).labels
        plan = plan_masks(spec, load_label_shards(mask_inputs_of(spec).store.read(labels)).shards)
        assert plan is not None
        record = segment_masks(spec, labels)
        return plan.boxes_to_forward, record.masks.boxes_forwarded, (folder / "annotations.json").read_bytes()

    assert both(0.5, results)[:2] == (9, 9)
    planned, made, labels = both(0.3, results)
    assert (planned, made) == (4, 4)
    assert labels == both(0.3, results.parent / "fresh")[2]
    assert both(0.5, results)[:2] == (0, 0)


def test_the_task_says_what_was_reused_and_what_was_made(data, run, prepared, asked):
    run()
    added_box(data)

    @flow
    def messages() -> list[tuple[str, str | None]]:
        inputs, shards = prepared()
        given = inputs.store, shards, inputs.question, inputs.place, inputs.recall, "shards 1-9 of 9"
        states = [segment(*given, return_state=True) for _ in range(2)]
        return [(state.name, state.message) for state in states]

    made, cached = messages()
    assert made == ("Completed", "shards 1-9 of 9: 1 reused, 1 made, 1 boxes forwarded")
    assert cached == ("Cached", "shards 1-9 of 9: all 2 reused")
