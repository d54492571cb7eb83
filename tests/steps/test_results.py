"""What a run leaves in results_dir."""

import errno
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from tasks.domain.annotations import Annotation, LabelledImage, Record
from tasks.domain.errors import ArtifactError, ImageError
from tasks.domain.images import Failure, Image
from tasks.formats.coco import dump_coco, load_coco
from tasks.formats.odvg import load_odvg
from tasks.results import (
    delete_pictures,
    delete_stale_iterations,
    refuse_foreign_results,
    write_iteration,
    write_labels,
    write_pictures,
)
from tasks.storage.folder import Folder

CLASSES = ("car", "truck")


def label(phrase, iteration=0):
    return Annotation(phrase, (1.0, 2.0, 30.0, 40.0), 0.75, iteration, 0.5, ())


def labelled(key, *annotations, caption=None, phrases=CLASSES):
    return LabelledImage(Image(key, "ab" * 32, 64, 48), (Record(0, caption, phrases, annotations),))


IMAGES = [labelled("a/1.jpg", label("car"), label("truck", 1)), labelled("b/1.jpg"), labelled("c.jpg", label("car", 1))]
GROUNDED = [labelled("a.jpg", label("a dog"), caption="a dog", phrases=("a dog",))]


def shards():
    return iter([dump_coco(IMAGES[:1], CLASSES), dump_coco(IMAGES[1:], CLASSES)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decode(key):
    return np.full((48, 64, 3), 128, dtype=np.uint8)


def test_the_delivered_labels_are_four_files(tmp_path):
    write_labels(Folder(str(tmp_path)), shards, CLASSES, [Failure("x.jpg", "index", "empty file")])
    assert sorted(files(tmp_path)) == ["annotations.json", "failures.jsonl", "final_annotation.jsonl", "labelmap.json"]


def test_shards_become_one_coco_file(tmp_path):
    write_labels(Folder(str(tmp_path)), shards, CLASSES, [])
    assert files(tmp_path)["annotations.json"] == dump_coco(IMAGES, CLASSES)


def test_every_image_looked_at_has_a_line(tmp_path):
    write_labels(Folder(str(tmp_path)), shards, CLASSES, [])
    entries = load_odvg(files(tmp_path)["final_annotation.jsonl"], "")
    assert [(entry.file_name, len(entry.regions)) for entry in entries] == [
        ("a/1.jpg", 2),
        ("b/1.jpg", 0),
        ("c.jpg", 1),
    ]


def test_the_categories_of_grounding_mode_are_the_phrases_of_all_shards(tmp_path):
    other = [labelled("b.jpg", caption="a cat", phrases=("a cat",))]
    write_labels(Folder(str(tmp_path)), lambda: [dump_coco(GROUNDED, ()), dump_coco(other, ())], (), [])
    assert load_coco(files(tmp_path)["annotations.json"])[1] == ("a cat", "a dog")


def test_grounding_mode_leaves_no_label_map_of_an_earlier_run(tmp_path):
    write_labels(Folder(str(tmp_path)), shards, CLASSES, [])
    write_labels(Folder(str(tmp_path)), lambda: [dump_coco(GROUNDED, ())], (), [])
    assert "labelmap.json" not in files(tmp_path)


def test_an_iteration_tells_all_labels_those_it_added_and_what_remains(tmp_path):
    write_iteration(Folder(str(tmp_path)), 1, shards, CLASSES)
    written = files(tmp_path)
    assert written["auto_label1/annotations.json"] == dump_coco(IMAGES, CLASSES)
    added = load_odvg(written["auto_label1/autolabelled.jsonl"], "")
    assert [[region.name for region in entry.regions] for entry in added] == [["truck"], [], ["car"]]
    remaining = [json.loads(line) for line in written["auto_label1/remaining.jsonl"].splitlines()]
    assert [(line["file_name"], line["noun_chunks"]) for line in remaining] == [
        ("b/1.jpg", ["car", "truck"]),
        ("c.jpg", ["truck"]),
    ]


def peak_of_an_export(folder: Path, shards: int) -> int:
    """Bytes that an export of so many shards holds at most; each takes 40 kB of every file."""
    payload = dump_coco([labelled(f"{i}/{'x' * 20_000}.jpg", label("car")) for i in range(2)], CLASSES)
    tracemalloc.start()
    try:
        write_labels(Folder(str(folder)), lambda: [payload] * shards, CLASSES, [])
        write_iteration(Folder(str(folder)), 0, lambda: [payload] * shards, CLASSES)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_of_an_export_does_not_grow_with_the_shards(tmp_path):
    few, many = (peak_of_an_export(tmp_path, shards) for shards in (100, 400))
    assert many < 1.1 * few


def test_d15_exporting_again_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        folder = Folder(str(tmp_path / name))
        write_labels(folder, shards, CLASSES, [])
        write_iteration(folder, 0, shards, CLASSES)
        write_pictures(folder, IMAGES, decode)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_d21_iterations_of_an_earlier_longer_run_are_deleted(tmp_path):
    folder = Folder(str(tmp_path))
    for k in range(12):
        write_iteration(folder, k, shards, CLASSES)
    folder.write("auto_labels/notes.txt", b"not ours")
    delete_stale_iterations(folder, 3)
    assert folder.names() == ["auto_label0", "auto_label1", "auto_label2", "auto_labels"]


def test_d21_pictures_of_an_earlier_run_are_deleted_where_asked(tmp_path):
    folder = Folder(str(tmp_path))
    write_pictures(folder, IMAGES, decode)
    write_pictures(folder, IMAGES, decode, iteration=0)
    delete_pictures(folder, iteration=0)
    assert {path.split("/")[0] for path in files(tmp_path)} == {"images_annotated"}


def test_pictures_keep_the_paths_of_their_images(tmp_path):
    write_pictures(Folder(str(tmp_path)), IMAGES, decode)
    write_pictures(Folder(str(tmp_path)), IMAGES[:1], decode, iteration=2)
    assert sorted(files(tmp_path)) == [
        "auto_label2/images_annotated/a/1.jpg",
        "images_annotated/a/1.jpg",
        "images_annotated/b/1.jpg",
        "images_annotated/c.jpg",
    ]


@pytest.mark.parametrize(
    ("key", "path", "kind"),
    [
        ("a.JPG", "a.JPG", "JPEG"),
        ("a.jpeg", "a.jpeg", "JPEG"),
        ("a.png", "a.png", "PNG"),
        ("a.webp", "a.webp", "WEBP"),
        ("a.bmp", "a.bmp.png", "PNG"),
        ("a.tiff", "a.tiff.png", "PNG"),
        ("a.gif", "a.gif.png", "PNG"),
    ],
)
def test_a_picture_is_of_the_format_that_its_name_says(tmp_path, key, path, kind):
    write_pictures(Folder(str(tmp_path)), [labelled(key)], decode)
    with Picture.open(tmp_path / "images_annotated" / path) as picture:
        assert picture.format == kind


def test_an_image_that_cannot_be_read_again_does_not_end_the_pictures(tmp_path):
    def decode_all_but_one(key):
        if key == "b/1.jpg":
            raise ImageError("gone")
        return decode(key)

    assert write_pictures(Folder(str(tmp_path)), IMAGES, decode_all_but_one) == (Failure("b/1.jpg", "export", "gone"),)
    assert sorted(files(tmp_path)) == ["images_annotated/a/1.jpg", "images_annotated/c.jpg"]


def test_two_images_never_share_a_picture(tmp_path):
    keys = ("a.bmp", "a.bmp.png")
    write_pictures(Folder(str(tmp_path)), [labelled(key) for key in keys], decode)
    assert sorted(p.name for p in (tmp_path / "images_annotated").iterdir()) == ["a.bmp.png", "a.bmp.png.png"]


def test_folders_of_an_earlier_run_are_ours(tmp_path):
    folder = Folder(str(tmp_path))
    write_pictures(folder, IMAGES, decode)
    folder.write("run.json", b"{}")
    refuse_foreign_results(folder)


def test_a_disk_that_is_full_ends_the_drawing_and_is_no_fault_of_one_picture(tmp_path, monkeypatch):
    def full(self: Path, payload: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    image = LabelledImage(Image("1.png", "0" * 64, 8, 6), (Record(0, None, ("cat",)),))
    with pytest.raises(ArtifactError, match="no space is left there"):
        write_pictures(Folder(str(tmp_path)), [image], lambda _: np.zeros((6, 8, 3), np.uint8))


def test_a_picture_that_would_lie_in_a_file_costs_that_picture_alone(tmp_path):
    keys = ("a.png", "a.png/1.png", "b.png")  # as a bucket may have them
    images = [LabelledImage(Image(key, "0" * 64, 8, 6), (Record(0, None, ("cat",)),)) for key in keys]
    lost = write_pictures(Folder(str(tmp_path)), images, lambda _: np.zeros((6, 8, 3), np.uint8))
    assert [failure.image for failure in lost] == ["a.png/1.png"]
    assert (tmp_path / "images_annotated" / "b.png").exists()
