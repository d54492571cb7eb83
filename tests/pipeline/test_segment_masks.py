"""Masks for the boxes of a COCO file under Prefect, with the fake segmenter: what each box ends in, and its price."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from flows import segment_masks as flow_module
from flows.mask_plan import plan_masks
from flows.segment_masks import segment_masks
from tasks import segment as step
from tasks.domain.errors import ArtifactError, CheckpointError, FormatError, SpecError
from tasks.domain.summary import ImageStates
from tasks.models.fake import FakeSegmenter

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server")]

BOX = (20, 10, 60, 40)


def labels_in(results: Path, name: str = "masks.json") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((results / name).read_text())["annotations"]
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- which GPU (M-1, M-2)


@pytest.mark.parametrize("top", [[0], [1], [0, 1], [2, 3]])
@pytest.mark.parametrize("inner", [[0], [5]])
def test_m1_m1b_m2_whichever_gpus_are_named_all_masks_are_in_the_one_file(
    paint_image, write_boxes, make_mask_spec, results, top, inner
):
    """M-1, M-1b, M-2, MAL-17: every GPU of TAO writes a file of its own, and not all are read again."""
    for i in range(6):
        paint_image(f"{i}.png", [])
    write_boxes({f"{i}.png": [BOX] for i in range(6)})
    record = segment_masks(make_mask_spec({"gpu_ids": inner}, gpu_ids=top, shard_size=2))
    assert record.masks.counts.masks == 6
    assert [row["id"] for row in labels_in(results) if row["area"] > 0] == list(range(100, 106))
    assert [path.name for path in results.iterdir() if "part" in path.name] == []


# --- what every box ends in (M-3, M-4)


def test_m3_every_record_stays_with_a_mask_or_with_the_reason(paint_image, write_boxes, make_mask_spec, results):
    """M-3, MAL-14: boxes that are thin or cross the border vanish from TAO's output, and its warning counts none."""
    paint_image("a.png", [])
    boxes = {
        "inside": BOX,
        "across the border": (-10, -10, 40, 40),
        "beyond it": (300, 0, 10, 10),
        "thin": (5, 5, 1, 1),
        "without area": (5, 5, 0, 9),
        "not finite": (math.nan, 0, 9, 9),
        "of the whole image and more": (-1e9, -1e9, 3e9, 3e9),
    }
    before = write_boxes({"a.png": list(boxes.values())})
    record = segment_masks(make_mask_spec())
    after = dict(zip(boxes, labels_in(results), strict=True))
    assert [str(row["bbox"]) for row in after.values()] == [str(row["bbox"]) for row in before["annotations"]]
    assert {name: row.get("mask_failure") for name, row in after.items()} == {
        "inside": None,
        "across the border": None,
        "beyond it": "the box lies outside the image of 200 x 150 pixels",
        "thin": "no pixel scored above the threshold",
        "without area": "the box has no area",
        "not finite": "the box has a coordinate that is no finite number",
        "of the whole image and more": None,
    }
    assert record.masks.counts.without_mask == {"not_finite": 1, "no_area": 1, "outside": 1, "no_pixel": 1}
    assert (record.masks.counts.boxes, record.masks.counts.masks) == (7, 3)


def test_m4_every_field_stays_and_the_area_is_that_of_the_mask(paint_image, write_boxes, make_mask_spec, results):
    """M-4, MAL-14: the published output has the box's area, and no field but those it writes itself."""
    paint_image("a.png", [])
    row = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [20, 10, 60, 40], "area": 1}
    row |= {"score": 0.25, "iscrowd": 0, "attributes": {"occluded": True}, "track_id": 3, "segmentation": [[1, 2] * 3]}
    write_boxes({"a.png": []}, annotations=[row], info={"year": 2026}, licenses=[{"id": 1}], extra=[{"ü": None}])
    segment_masks(make_mask_spec())
    document = json.loads((results / "masks.json").read_text())
    (out,) = document["annotations"]
    made = ("segmentation", "area", "mask_quality")
    assert {name: value for name, value in out.items() if name not in made} == {
        name: value for name, value in row.items() if name not in made
    }
    coco = COCO(results / "masks.json")
    assert out["area"] == coco_mask.area(coco.annToRLE(coco.anns[5])) == pytest.approx(math.pi / 4 * 60 * 40, rel=0.01)
    assert [document[name] for name in ("info", "licenses", "extra")] == [{"year": 2026}, [{"id": 1}], [{"ü": None}]]


def test_m4_a_crowd_region_keeps_what_it_has(paint_image, write_boxes, make_mask_spec, results):
    """M-4, MAL-14: the published output clears `iscrowd`, and crowd regions get a mask like any instance."""
    paint_image("a.png", [])
    segmentation = {"size": [150, 200], "counts": [0, 30_000]}
    row = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [0, 0, 200, 150], "iscrowd": 1, "area": 30_000}
    write_boxes({"a.png": []}, annotations=[row | {"segmentation": segmentation}])
    segment_masks(make_mask_spec())
    (out,) = labels_in(results)
    assert (out["iscrowd"], out["segmentation"], out["area"]) == (1, segmentation, 30_000)
    assert out["mask_failure"] == "a crowd region has no instance mask"


def test_duplicate_annotation_ids_keep_every_record_with_its_own_mask(
    paint_image, write_boxes, make_mask_spec, results, caplog
):
    """MAL-17: to undo what its sampler doubles, the published merge keeps one record of an id."""
    paint_image("a.png", [])
    rows = [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [0, 0, 20 * i, 20]} for i in (1, 2, 3)]
    write_boxes({"a.png": []}, annotations=rows)
    with caplog.at_level(logging.WARNING, "tasks"):
        segment_masks(make_mask_spec())
    areas = [row["area"] for row in labels_in(results)]
    assert areas == sorted(set(areas))
    assert caplog.text.count("share the id 5") == 1


# --- nothing to do, nowhere to put it (M-5)


@pytest.mark.parametrize("boxes", [{}, {"a.png": []}])
def test_m5_no_box_at_all_is_a_complete_output(paint_image, write_boxes, make_mask_spec, results, boxes):
    """M-5: TAO ends with an IndexError after the run."""
    paint_image("a.png", [])
    write_boxes(boxes)
    record = segment_masks(make_mask_spec())
    document = json.loads((results / "masks.json").read_text())
    assert (document["annotations"], len(document["images"])) == ([], len(boxes))
    assert record.images == ImageStates(labelled=0, empty=len(boxes), failed=0)
    COCO(results / "masks.json")


@pytest.mark.parametrize("place", ["new/folder/masks.json", "ABSOLUTE/new/masks.json", "memory://masks-of-m5/a/b.json"])
def test_m5_the_folders_of_the_output_are_made(paint_image, write_boxes, make_mask_spec, tmp_path, place):
    """M-5: TAO notices a missing folder when all masks are made, and they are lost."""
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    path = place.replace("ABSOLUTE", str(tmp_path))
    segment_masks(make_mask_spec({"label_dump_path": path}))
    where = path if "ABSOLUTE" in place or "://" in place else f"{tmp_path}/results/{path}"
    with fsspec.open(where) as file:
        assert len(json.load(file)["annotations"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "../boxes.json",
        "local://ROOT/boxes.json",
        "file://ROOT/results/../boxes.json",
        "simplecache::file://ROOT/boxes.json",
        "run.json",
        "./status.json",
        "cache",
        "cache/masks.json",
        "images_annotated/masks.json",
        "x/../images_annotated/deep/masks.json",
        "file://ROOT/results/images_annotated/masks.json",
        "sub/..",
        "a\0b.json",
    ],
)
def test_m5_an_output_over_a_file_that_is_needed_is_refused_early(
    paint_image, write_boxes, make_mask_spec, results, tmp_path, name
):
    """M-5: TAO looks at the place of its output at the end of the run."""
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    before = (tmp_path / "boxes.json").read_bytes()
    with pytest.raises(SpecError, match=r"mal\.inference\.label_dump_path: found"):
        segment_masks(make_mask_spec({"label_dump_path": name.replace("ROOT", str(tmp_path))}))
    assert (tmp_path / "boxes.json").read_bytes() == before
    assert not (results / "cache").exists()


@pytest.mark.parametrize(
    "name", ["memory://mine/boxes.json", "memory:///mine//boxes.json", "memory://mine/b/../boxes.json"]
)
def test_an_output_over_the_boxes_is_refused_however_the_url_is_spelled(make_mask_spec, name):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/mine/boxes.json", b"{}")
    spec = make_mask_spec({"ann_path": "memory://mine/boxes.json", "label_dump_path": name})
    with pytest.raises(SpecError, match="which is ann_path"):
        segment_masks(spec)
    assert memory.cat_file("/mine/boxes.json") == b"{}"


@pytest.mark.parametrize("moved", ["images", "boxes.json"])
@pytest.mark.parametrize("linked", [False, True])
def test_inputs_among_the_pictures_that_a_run_deletes_are_refused(
    paint_image, write_boxes, make_mask_spec, results, tmp_path, moved, linked
):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    (results / "images_annotated").mkdir(parents=True)
    (results / "run.json").write_text("{}")
    inside = results / "images_annotated" / moved
    (tmp_path / moved).rename(inside)
    if linked:
        (tmp_path / moved).symlink_to(inside)
    key = {"images": "img_dir", "boxes.json": "ann_path"}[moved]
    spec = make_mask_spec({key: str(tmp_path / moved if linked else inside)})
    with pytest.raises(SpecError, match=rf"{key}: found .*lies in images_annotated of results_dir"):
        segment_masks(spec)
    assert inside.exists()


def test_boxes_and_masks_directly_below_a_protocol_are_read_and_written_there(
    paint_image, write_boxes, make_mask_spec, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paint_image("a.png", [])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/boxes.json", json.dumps(write_boxes({"a.png": [BOX]})).encode())
    segment_masks(make_mask_spec({"ann_path": "memory://boxes.json", "label_dump_path": "memory://dumped.json"}))
    assert len(json.loads(memory.cat_file("/dumped.json"))["annotations"]) == 1
    assert not (tmp_path / "memory:").exists()


@pytest.mark.parametrize(("key", "error"), [("ann_path", ArtifactError), ("img_dir", SpecError)])
@pytest.mark.parametrize("path", ["~nobodyx/there", "a\0b", "file:///a\0b"])
def test_a_path_that_no_system_knows_is_an_error_of_the_spec_or_of_its_file(
    paint_image, write_boxes, make_mask_spec, key, error, path
):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    with pytest.raises(error, match=r"nobodyx|a.*b"):
        segment_masks(make_mask_spec({key: path}))


def test_masks_for_an_unknown_home_folder_go_below_results_dir(paint_image, write_boxes, make_mask_spec, results):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    segment_masks(make_mask_spec({"label_dump_path": "~nobodyx/masks.json"}))
    assert len(labels_in(results, "~nobodyx/masks.json")) == 1


# --- which pixels, and how often (M-6)


def test_m6_an_image_is_decoded_once_for_all_of_its_boxes(paint_image, write_boxes, make_mask_spec, monkeypatch):
    """M-6, MAL-14: the published code reads the image once for each box."""
    paint_image("a.png", [])
    write_boxes({"a.png": [(i, i, 20, 20) for i in range(30)]})
    decoded: list[str] = []
    decode = step.decode_unchanged
    monkeypatch.setattr(step, "decode_unchanged", lambda data, image: decoded.append(image.key) or decode(data, image))
    record = segment_masks(make_mask_spec(batch_size=2))
    assert (decoded, record.masks.boxes_forwarded) == (["a.png"], 30)


def turned(tmp_path: Path) -> None:
    """An image of 200 x 150 pixels that is stored as 150 x 200 and turned when it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((200, 150, 3), np.uint8)).save(tmp_path / "images" / "a.png", exif=exif)


def test_m6_boxes_are_those_of_the_upright_image(write_boxes, make_mask_spec, results, tmp_path):
    """M-6: TAO does not look at EXIF."""
    turned(tmp_path)
    write_boxes({"a.png": [(150, 100, 50, 50)]}, images=[{"id": 1, "file_name": "a.png", "width": 200, "height": 150}])
    segment_masks(make_mask_spec())
    assert labels_in(results)[0]["segmentation"]["size"] == [150, 200]


def test_m6_a_file_of_the_stored_frame_gets_no_masks_and_the_reason_names_both_sizes(
    write_boxes, make_mask_spec, results, tmp_path
):
    """M-6: TAO ends with an error of shapes."""
    turned(tmp_path)
    write_boxes({"a.png": [BOX]}, images=[{"id": 1, "file_name": "a.png", "width": 150, "height": 200}])
    record = segment_masks(make_mask_spec())
    (failure,) = lines(results / "failures.jsonl")
    assert "200 x 150 pixels when upright, and 150 x 200 in the COCO file" in failure["reason"]
    assert labels_in(results)[0]["mask_failure"] == f"the image {failure['reason']}"
    assert (record.images.failed, failure["stage"]) == (1, "index")


def test_m6_a_file_without_sizes_gets_the_real_ones(paint_image, write_boxes, make_mask_spec, results):
    """M-6: TAO takes the size from the file alone."""
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    segment_masks(make_mask_spec())
    (row,) = json.loads((results / "masks.json").read_text())["images"]
    assert (row["width"], row["height"]) == (200, 150)


def test_an_image_that_cannot_be_had_keeps_its_records_and_has_a_line(
    paint_image, write_boxes, make_mask_spec, results, tmp_path
):
    """MAL-14: the published code replaces a missing image by a random one, and its objects vanish; TAO ends."""
    paint_image("good.png", [])
    (tmp_path / "images" / "broken.png").write_bytes(b"broken")
    (tmp_path / "secret.png").write_bytes((tmp_path / "images" / "good.png").read_bytes())
    names = ["good.png", "missing.png", "broken.png", "../secret.png"]
    write_boxes({name: [BOX, BOX] for name in names})
    record = segment_masks(make_mask_spec())
    assert len(labels_in(results)) == 8
    assert record.images == ImageStates(labelled=1, empty=0, failed=3)
    assert record.masks.counts.without_mask == {"image_failed": 6}
    told = {line["image"]: line["reason"] for line in lines(results / "failures.jsonl")}
    assert sorted(told) == ["../secret.png", "broken.png", "missing.png"]
    assert told["missing.png"] == "is not there"
    assert "leaves the image folder" in told["../secret.png"]
    COCO(results / "masks.json")


def test_an_image_that_failed_is_tried_again_in_the_next_run(
    paint_image, write_boxes, make_mask_spec, results, monkeypatch
):
    path = paint_image("a.png", [])
    paint_image("b.png", [("cat", 0.9, (1, 1, 9, 9))])  # equal pictures would be one to the store
    write_boxes({"a.png": [BOX], "b.png": [BOX]})
    kept = path.read_bytes()
    index = flow_module.index_named_images

    def index_and_lose(*given: Any) -> Any:
        future = index.submit(*given)
        future.wait()
        path.unlink()
        return future

    monkeypatch.setattr(flow_module, "index_named_images", type("Losing", (), {"submit": staticmethod(index_and_lose)}))
    first = segment_masks(make_mask_spec())
    monkeypatch.undo()
    assert (first.images.failed, first.masks.counts.masks) == (1, 1)
    assert [line["stage"] for line in lines(results / "failures.jsonl")] == ["segment"]
    path.write_bytes(kept)
    second = segment_masks(make_mask_spec())
    assert (second.images.failed, second.masks.counts.masks, second.masks.boxes_forwarded) == (0, 2, 1)
    assert (results / "failures.jsonl").read_bytes() == b""


# --- once, and the same


def test_a_second_run_forwards_nothing_and_writes_the_same_bytes(paint_image, write_boxes, make_mask_spec, results):
    for i in range(9):
        paint_image(f"{i}.png", [])
    write_boxes({f"{i}.png": [BOX, (1, 1, 5 + i, 9)] for i in range(9)})
    spec = make_mask_spec(shard_size=2)
    plan = plan_masks(spec, None)
    first = segment_masks(spec)
    before = (results / "masks.json").read_bytes()
    second = segment_masks(spec)
    assert plan is not None
    assert (plan.boxes, plan.boxes_to_forward, plan.reused_shards) == (18, first.masks.boxes_forwarded, 0)
    assert (first.masks.boxes_forwarded, second.masks.boxes_forwarded) == (18, 0)
    assert second.masks.reused_shards == second.masks.shards > 2
    assert (results / "masks.json").read_bytes() == before
    again = plan_masks(spec, None)
    assert again is not None
    assert (again.boxes_to_forward, again.reused_shards) == (0, again.shards)


def test_a_changed_score_costs_no_forward_pass_and_is_delivered(paint_image, write_boxes, make_mask_spec, results):
    paint_image("a.png", [])
    document = write_boxes({"a.png": [BOX]})
    segment_masks(make_mask_spec())
    document["annotations"][0]["score"] = 0.25
    write_boxes({"a.png": []}, **document)
    record = segment_masks(make_mask_spec())
    assert record.masks.boxes_forwarded == 0
    assert labels_in(results)[0]["score"] == 0.25


class Killed(BaseException):
    """As a kill does: nothing catches it."""


def test_shards_that_a_killed_run_had_made_are_reused(paint_image, write_boxes, make_mask_spec, monkeypatch):
    for i in range(20):
        paint_image(f"{i:02}.png", [(f"thing {i}", 0.5, (1, 1, 9, 9))])  # equal pictures would be one to the store
    write_boxes({f"{i:02}.png": [BOX] for i in range(20)})
    spec = make_mask_spec(shard_size=3)
    calls: list[int] = []

    class Dying(FakeSegmenter):
        def segment(self, images, boxes, *, batch_size=1):
            if len(calls) == 2:
                raise Killed
            calls.append(sum(map(len, boxes)))
            return super().segment(images, boxes, batch_size=batch_size)

    monkeypatch.setattr(step, "load_segmenter", lambda config, device: Dying())
    with pytest.raises(Killed):
        segment_masks(spec)
    monkeypatch.undo()
    record = segment_masks(spec)
    # A shard is one call here; what was made before the kill is whole, and the rest is made now.
    assert record.masks.boxes_forwarded == 20 - sum(calls)
    assert record.masks.reused_shards == 2


def test_shards_and_batches_change_no_byte(paint_image, write_boxes, make_mask_spec, results):
    for i in range(12):
        paint_image(f"{'ab'[i % 2]}/{i}.png", [], (200 - i, 150 + i))
    write_boxes({f"{'ab'[i % 2]}/{i}.png": [BOX] * (i % 3) for i in range(12)})
    written = []
    for where in ({}, {"shard_size": 1, "batch_size": 7, "num_workers": 0}, {"shard_size": 4, "batch_size": 1}):
        shutil.rmtree(results, ignore_errors=True)
        segment_masks(make_mask_spec(**where))
        written.append((results / "masks.json").read_bytes())
    assert written[1:] == written[:-1]


# --- what else a run leaves, and refuses


def test_everything_may_lie_behind_urls(write_boxes, make_mask_spec, tmp_path, paint_image):
    memory = fsspec.filesystem("memory")
    path = paint_image("a b ü.png", [])
    document = write_boxes({"sub/a b ü.png": [BOX]})
    memory.pipe_file("/far/images/sub/a b ü.png", path.read_bytes())
    memory.pipe_file("/far/boxes.json", json.dumps(document).encode())
    spec = make_mask_spec(
        {"ann_path": "memory://far/boxes.json", "img_dir": "memory://far/images"}, results_dir="memory://far/results"
    )
    first, second = segment_masks(spec), segment_masks(spec)
    assert (first.masks.counts.masks, second.masks.boxes_forwarded) == (1, 0)
    names = {Path(name).name for name in memory.ls("/far/results", detail=False)}
    assert {"masks.json", "failures.jsonl", "run.json", "status.json"} <= names
    (tmp_path / "here.json").write_bytes(memory.cat_file("/far/results/masks.json"))
    assert len(COCO(tmp_path / "here.json").anns) == 1


def test_masks_are_drawn_where_asked(paint_image, write_boxes, make_mask_spec, results):
    paint_image("sub/a.png", [])
    paint_image("b.png", [])
    write_boxes({"sub/a.png": [BOX, (-5, -5, 9, 9), (500, 500, 1, 1)], "b.png": [], "missing.png": [BOX]})
    record = segment_masks(make_mask_spec(mal={"visualize": True}))
    drawn = sorted(p.relative_to(results).as_posix() for p in (results / "images_annotated").rglob("*.png"))
    assert (drawn, record.undrawn) == (["images_annotated/b.png", "images_annotated/sub/a.png"], 0)
    segment_masks(make_mask_spec())
    assert not (results / "images_annotated").exists()


def test_masks_are_compared_with_those_of_the_file_where_asked(paint_image, write_boxes, make_mask_spec, results):
    paint_image("a.png", [])
    square = [[20, 10, 80, 10, 80, 50, 20, 50]]
    rows = [{"id": i, "image_id": 1, "category_id": 7, "bbox": list(BOX)} for i in (1, 2)]
    write_boxes({"a.png": []}, annotations=[rows[0] | {"segmentation": square}, rows[1]])
    segment_masks(make_mask_spec({"load_mask": True}))
    first, second = labels_in(results)
    assert first["iou"] == pytest.approx(math.pi / 4, abs=0.01)
    assert "iou" not in second


def test_the_run_record_says_what_was_asked_and_what_came_of_it(paint_image, write_boxes, make_mask_spec, results):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX, (500, 0, 1, 1)]})
    segment_masks(make_mask_spec())
    record = json.loads((results / "run.json").read_text())
    assert record["digests"] == {"segmenter": FakeSegmenter().digest}
    seconds = record["masks"].pop("seconds")
    assert seconds >= 0
    assert record["masks"] == {
        "boxes": 2,
        "masks": 1,
        "without_mask": {"outside": 1},
        "boxes_forwarded": 1,
        "shards": 1,
        "reused_shards": 0,
    }
    assert record["images"] == {"labelled": 1, "empty": 0, "failed": 0}
    assert [line["status"] for line in lines(results / "status.json")] == ["STARTED", "SUCCESS"]


def test_a_checkpoint_that_is_not_there_is_refused_before_any_image_is_read(
    paint_image, write_boxes, make_mask_spec, results, tmp_path
):
    paint_image("a.png", [])
    write_boxes({"a.png": [BOX]})
    with pytest.raises(CheckpointError, match=r"mal\.pth"):
        segment_masks(make_mask_spec(mal={"checkpoint": str(tmp_path / "mal.pth")}))
    assert not (results / "cache").exists()
    assert lines(results / "status.json")[-1]["status"] == "FAILURE"


def test_two_images_of_one_name_are_refused(paint_image, write_boxes, make_mask_spec):
    paint_image("a.png", [])
    write_boxes({}, images=[{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}])
    with pytest.raises(FormatError, match=r'entry 1 has the file_name "a\.png" of entry 0'):
        segment_masks(make_mask_spec())


def test_a_folder_of_images_that_is_not_there_is_refused(write_boxes, make_mask_spec, tmp_path):
    write_boxes({"a.png": [BOX]})
    with pytest.raises(SpecError, match=r"nowhere is not a folder"):
        segment_masks(make_mask_spec({"img_dir": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("folder", ["val", "/data/images", "."])
def test_names_of_another_folder_are_told_in_one_warning(paint_image, write_boxes, make_mask_spec, caplog, folder):
    paint_image("a.png", [])
    write_boxes({f"{folder}/b.png": [BOX], f"{folder}/c.png": [BOX]})
    with caplog.at_level(logging.WARNING, "tasks"):
        record = segment_masks(make_mask_spec())
    assert record.images.failed == 2
    assert "none of the 2 images is in" in caplog.text


def test_only_the_images_that_the_file_names_are_looked_at(paint_image, write_boxes, make_mask_spec, results, tmp_path):
    paint_image("a.png", [])
    (tmp_path / "images" / "broken-but-not-named.png").write_bytes(b"broken")
    write_boxes({"a.png": [BOX]})
    assert segment_masks(make_mask_spec()).images == ImageStates(labelled=1, empty=0, failed=0)


def test_a_spec_that_asks_for_boxes_alone_makes_no_masks(make_spec):
    with pytest.raises(SpecError, match="which make masks"):
        segment_masks(make_spec({"class_names": ["cat"]}))
