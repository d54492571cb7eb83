"""What a run leaves in results_dir, under the names that people and trainers look for."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tasks.domain.addresses import without_password
from tasks.domain.annotations import LabelledImage
from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import Failure
from tasks.domain.masks import DrawnImage
from tasks.formats.coco import CocoShards, join_coco, joined_categories, load_coco
from tasks.formats.failures import dump_failures
from tasks.formats.labelmap import dump_labelmap
from tasks.formats.odvg import dump_odvg, dump_remaining, odvg_entries
from tasks.pictures import draw_annotations, encode_picture, picture_name
from tasks.storage.folder import Folder, UnusableNameError

ITERATION_FOLDER = re.compile(r"auto_label(\d+)")


def write_labels(folder: Folder, shards: CocoShards, class_names: Sequence[str], failures: Iterable[Failure]) -> None:
    """Write the delivered labels: annotations.json, final_annotation.jsonl, labelmap.json and failures.jsonl.

    `class_names` is empty in grounding mode, which has no label map: that of an earlier run is deleted.
    """
    _write_coco(folder, "annotations.json", shards, class_names)
    _write_odvg(folder, "final_annotation.jsonl", images_of(shards), class_names)
    folder.write("failures.jsonl", dump_failures(failures))
    if class_names:
        folder.write("labelmap.json", dump_labelmap(class_names))
    else:
        folder.delete_tree("labelmap.json")


def write_iteration(folder: Folder, iteration: int, shards: CocoShards, class_names: Sequence[str]) -> None:
    """Write the folder of an iteration, auto_label0 and so on, from the labels after it.

    annotations.json holds all labels so far, autolabelled.jsonl those that this iteration added (an image that got
    none has an empty list), remaining.jsonl the phrases without a label.
    """
    into = f"auto_label{iteration}"
    added = (_added_by(iteration, image) for image in images_of(shards))
    _write_coco(folder, f"{into}/annotations.json", shards, class_names)
    _write_odvg(folder, f"{into}/autolabelled.jsonl", added, class_names)
    folder.write_stream(f"{into}/remaining.jsonl", dump_remaining(images_of(shards)))


def images_of(shards: CocoShards) -> Iterator[LabelledImage]:
    """The images of all shards with their labels, one shard at a time in memory."""
    for data in shards():
        yield from load_coco(data)[0]


def _write_coco(folder: Folder, path: str, shards: CocoShards, class_names: Sequence[str]) -> None:
    folder.write_stream(path, join_coco(shards, class_names or joined_categories(shards)))


def _write_odvg(folder: Folder, path: str, images: Iterable[LabelledImage], class_names: Sequence[str]) -> None:
    folder.write_stream(path, dump_odvg(odvg_entries(images, class_names)))


def _added_by(iteration: int, image: LabelledImage) -> LabelledImage:
    records = (
        replace(record, annotations=tuple(a for a in record.annotations if a.iteration == iteration))
        for record in image.records
    )
    return replace(image, records=tuple(records))


def refuse_foreign_results(folder: Folder) -> None:
    """Raise SpecError where folders that a run would delete are there, and no run has left its record beside them."""
    names = folder.names()
    ours = [name for name in names if name == "images_annotated" or ITERATION_FOLDER.fullmatch(name)]
    if ours and not {"run.json", "status.json"} & set(names):
        raise SpecError(
            f"results_dir {without_password(folder.uri)} holds {', '.join(ours)}, which no run has made and a run would"
            " delete; choose another results_dir, or move them away"
        )


def delete_stale_iterations(folder: Folder, iterations: int) -> None:
    """Delete the folders of iterations that an earlier, longer run left: this one has `iterations` of them."""
    for name in folder.names():
        match = ITERATION_FOLDER.fullmatch(name)
        if match and int(match[1]) >= iterations:
            folder.delete_tree(name)


def delete_pictures(folder: Folder, iteration: int | None = None) -> None:
    """Delete the pictures that an earlier run left, of an iteration or (None) of the delivered labels."""
    folder.delete_tree(_pictures_folder(iteration))


def write_pictures(
    folder: Folder,
    images: Iterable[LabelledImage | DrawnImage],
    decode: Callable[[str], NDArray[np.uint8]],
    iteration: int | None = None,
) -> tuple[Failure, ...]:
    """Write a picture of every image into images_annotated, under the image's own path (see `picture_name`).

    Args:
        folder: results_dir.
        images: The images with the labels to draw.
        decode: Gives the upright pixels (H, W, 3) of an image key; ImageError where it cannot.
        iteration: Into the folder of this iteration; None stands for results_dir itself.

    Returns:
        The images of which there is no picture: they could not be read again, or no file can have the picture's name.
    """
    failures: list[Failure] = []
    taken: set[str] = set()
    for labelled in images:
        key = labelled.image.key
        name = _free_name(key, taken)
        try:
            picture = draw_annotations(decode(key), labelled.annotations)
            folder.write(f"{_pictures_folder(iteration)}/{name}", encode_picture(picture, name))
        except (ImageError, UnusableNameError) as error:
            failures.append(Failure(key, "export", str(error)))
    return tuple(failures)


def _free_name(key: str, taken: set[str]) -> str:
    """The picture's name: `a.bmp` becomes `a.bmp.png`, and an image of that name `a.bmp.png.png`."""
    name = picture_name(key)
    while name in taken:
        name += ".png"
    if name != key:
        taken.add(name)
    return name


def _pictures_folder(iteration: int | None) -> str:
    return "images_annotated" if iteration is None else f"auto_label{iteration}/images_annotated"
