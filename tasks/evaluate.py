"""Compare labels with ground truth: boxes, or masks, from files of a run or of any other tool."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path

from tasks.domain.addresses import without_password
from tasks.domain.errors import FormatError
from tasks.evaluation.average_precision import STATS
from tasks.evaluation.box_report import BoxReport, Scores, compare_boxes, evaluate_boxes
from tasks.evaluation.mask_report import MaskReport, evaluate_masks
from tasks.formats.foreign_coco import load_coco_file, load_scored_coco
from tasks.storage.folder import Folder, MissingFileError, folder_and_name

__all__ = [
    "STATS",
    "BoxReport",
    "MaskReport",
    "Scores",
    "evaluate",
    "evaluate_boxes",
    "evaluate_mask_files",
    "evaluate_masks",
]

_LABELS = "annotations.json"  # in a results_dir, and in the folder of each of its iterations
_RECORD = "run.json"  # in a results_dir, with the spec and the iterations of the run


def evaluate(
    labels: str, truth: str, *, class_agnostic: bool = False, storage_options: Mapping[str, object] | None = None
) -> BoxReport:
    """`evaluate_boxes` on files: `labels` and `truth` are each a JSON file or a results_dir, local or an fsspec URL.

    Of a results_dir that holds the labels after each iteration (`auto_label0/annotations.json` and so on), these files
    are evaluated as the iterations; of a lone file, its labels up to each iteration. Where a results_dir has no
    `annotations.json`, its labels are in the file that a run of `autolabel_type: mal` wrote.

    Raises:
        ArtifactError: A file is missing or cannot be read.
        FormatError: As `evaluate_boxes`; names the file.
    """
    options = storage_options or {}
    ours = load_scored_coco(*_read(*_file(labels, options), "labels"))
    theirs = load_coco_file(*_read(*_file(truth, options), "ground truth"))
    results = Folder(labels, options)
    paths = () if labels.endswith(".json") else _iterations_in(results)
    after = [load_scored_coco(*_read(results, path, "labels")) for path in paths]
    return compare_boxes(ours, theirs, after, class_agnostic=class_agnostic)


def evaluate_mask_files(
    labels: str, truth: str, *, class_agnostic: bool = False, storage_options: Mapping[str, object] | None = None
) -> MaskReport:
    """`evaluate_masks` on files: `labels` and `truth` are each a JSON file or a results_dir, as of `evaluate`.

    Raises:
        ArtifactError: A file is missing or cannot be read.
        FormatError: As `evaluate_masks`; names the file.
    """
    options = storage_options or {}
    ours, labels_are = _read(*_file(labels, options), "labels")
    theirs, truth_is = _read(*_file(truth, options), "ground truth")
    return evaluate_masks(ours, theirs, class_agnostic=class_agnostic, labels_are=labels_are, truth_is=truth_is)


def _file(location: str, storage_options: Mapping[str, object]) -> tuple[Folder, str]:
    """The folder and the name of the file that `location` means, which is there in a results_dir."""
    folder, name = _place(location, storage_options)
    if location.endswith(".json") or folder.exists(name):
        return folder, name
    if (masks := _masks_written(folder)) is None:
        raise MissingFileError(
            f"{without_password(location)} holds no {_LABELS}, and no {_RECORD} of a run of autolabel_type 'mal' that "
            "names its labels; name the COCO file itself"
        )
    # Path.expanduser raises where no such user is known.
    is_whole = "://" in masks or Path(os.path.expanduser(masks)).is_absolute()  # noqa: PTH111
    return folder_and_name(masks if is_whole else f"{location.rstrip('/')}/{masks}", storage_options)


def _masks_written(results: Folder) -> str | None:
    """The label_dump_path of the run of `autolabel_type: mal` that left its record; None where none did."""
    with suppress(MissingFileError, ValueError, RecursionError, LookupError, TypeError):
        spec = json.loads(results.read(_RECORD))["spec"]
        path = spec["mal"]["inference"]["label_dump_path"]
        return path if spec["autolabel_type"] == "mal" and isinstance(path, str) else None
    return None


def _place(location: str, storage_options: Mapping[str, object]) -> tuple[Folder, str]:
    """The folder of a JSON file and its name; for a results_dir, that of its labels."""
    if not location.endswith(".json"):
        return Folder(location, storage_options), _LABELS
    return folder_and_name(location, storage_options)


def _read(folder: Folder, path: str, what: str) -> tuple[bytes, str]:
    """The bytes of a file, and what it is with its address, for messages."""
    return folder.read(path), f"{what} {_address(folder, path)}"


def _address(folder: Folder, path: str) -> str:
    return path if folder.uri == "." else without_password(f"{folder.uri.rstrip('/')}/{path}")


def _iterations_in(results: Folder) -> tuple[str, ...]:
    """The files with the labels after iteration 0, 1, ...: of as many iterations as the run's record lists.

    Without a record, as after a run that was interrupted, of all that are there.
    """
    listed = _listed_iterations(results)
    numbers = count() if listed is None else range(listed)
    return tuple(takewhile(results.exists, (f"auto_label{k}/{_LABELS}" for k in numbers)))


def _listed_iterations(results: Folder) -> int | None:
    if not results.exists(_RECORD):
        return None
    try:
        record = json.loads(results.read(_RECORD))
        # A run over a COCO file has masks to tell of, and no iterations.
        return len(record["iterations"]) if "iterations" in record or "masks" not in record else 0
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise FormatError(
            f"{_address(results, _RECORD)}: found no list of iterations, expected the record of a run; delete the "
            "file, and every iteration that has a folder is evaluated"
        ) from error
