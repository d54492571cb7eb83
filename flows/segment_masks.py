"""Boxes to masks: from a COCO file of any tool, or from the labels of a detection."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from itertools import chain
from typing import Any

from prefect import flow

from flows.mask_inputs import MaskInputs, mask_inputs_of
from flows.run_inputs import store_of, versions
from flows.sole_run import sole_run
from flows.task_runs import ONE_AT_A_TIME, in_batches
from tasks.boxed_shards import BoxedShard
from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import ArtifactError, SpecError
from tasks.domain.spec import ExperimentSpec
from tasks.domain.summary import MaskRecord, MaskSummary
from tasks.export_masks import MaskedShard, export_masks
from tasks.formats.spec_yaml import spec_as_dict
from tasks.index_images import index_named_images
from tasks.progress import begin
from tasks.results import refuse_foreign_results
from tasks.segment import SegmentedShard, segment
from tasks.shard_boxes import BoxesDataset, shard_boxes, shard_labels
from tasks.storage.folder import Folder, MissingFileError
from tasks.store import DamagedArtifactError

RUN_FILE = "run.json"
_REF = {field.name for field in fields(ArtifactRef)}


@flow(name="segment-masks", task_runner=ONE_AT_A_TIME, persist_result=False)
def segment_masks(spec: ExperimentSpec, labels: ArtifactRef | None = None) -> MaskRecord:
    """Give every box a mask, and leave labels, pictures and the run record in the `results_dir` of the spec.

    With `autolabel_type: mal` the boxes are those of `mal.inference.ann_path`. Otherwise they are the `labels` of a
    detection, by default of the one that left its `run.json` in `results_dir`.
    """
    results = Folder(spec.results_dir, spec.storage_options)
    refusals = (refuse_foreign_results, partial(_refuse_detection, spec))
    with sole_run(results, store_of(spec), *refusals) as sole, _telling_of_lost_labels(spec):
        run = mask_inputs_of(spec)
        sole.register()
        before = _detection(spec, results, labels)
        dataset, shards = boxed_shards(run, before)
        sole.needs([dataset.head])
        started = time.perf_counter()
        begin("segment", dataset.images)
        made = segment_all(run, shards)
        seconds = round(time.perf_counter() - started, 3)
        masked = [MaskedShard(boxes, done.masks) for boxes, done in zip(shards, made, strict=True)]
        sole.needs(ref for shard in masked for ref in (shard.boxes.rows, shard.boxes.index, shard.masks) if ref)
        sole.refuse_if_lost()
        delivered = export_masks.submit(run.export, dataset.head, masked).result()
        record = MaskRecord(
            spec=spec_as_dict(spec),
            digests={"segmenter": run.question.digest},
            versions=versions(),
            device=run.place.device,
            masks=MaskSummary(
                counts=delivered.counts,
                boxes_forwarded=sum(shard.forwarded for shard in made),
                shards=len(made),
                reused_shards=sum(shard.reused for shard in made),
                seconds=seconds,
            ),
            images=delivered.images,
            undrawn=delivered.undrawn,
        )
        sole.refuse_if_lost()
        results.write(RUN_FILE, json.dumps(record.added_to(before), indent=2).encode())
        return record


@contextmanager
def _telling_of_lost_labels(spec: ExperimentSpec) -> Iterator[None]:
    """Of what is gone from the store, say how it comes back: this flow makes the labels of a detection not anew."""
    try:
        yield
    except DamagedArtifactError as damage:
        if not spec.makes_boxes:
            raise
        raise ArtifactError(
            f"{damage.args[0]}; check cache_dir, or run `autolabel generate`, which makes the boxes first"
        ) from damage


def boxed_shards(run: MaskInputs, detection: dict[str, Any]) -> tuple[BoxesDataset, list[BoxedShard]]:
    """The data set and its shards: the labels of a detection, or the COCO file with an index of the images it names."""
    if detection:
        dataset = shard_labels.submit(run.store, ArtifactRef(**detection["labels"])).result()
        return dataset, [BoxedShard(ref) for ref in dataset.shards]
    dataset = shard_boxes.submit(run.store, run.boxes, run.spec.shard_size).result()
    indexes = index_named_images.submit(run.indexer, dataset.shards).result()
    return dataset, [BoxedShard(ref, index) for ref, index in zip(dataset.shards, indexes, strict=True)]


def segment_all(run: MaskInputs, shards: Sequence[BoxedShard]) -> list[SegmentedShard]:
    """The masks of all shards."""
    making = [
        segment.submit(run.store, batch, run.question, run.place, run.recall, name)
        for name, batch in in_batches(shards)
    ]
    return list(chain.from_iterable(future.result() for future in making))


def _refuse_detection(spec: ExperimentSpec, results: Folder) -> None:
    """Raise SpecError where a run over a COCO file would replace what a detection left in `results`."""
    if not spec.makes_boxes and "labels" in _run_record(results):
        raise SpecError(
            f"results_dir {without_password(spec.results_dir)} holds the labels of a detection, whose {RUN_FILE} and "
            "pictures a run of 'mal' would replace; choose another results_dir, or set autolabel_type to "
            "'grounding_dino+mal', which keeps them"
        )


def _detection(spec: ExperimentSpec, results: Folder, labels: ArtifactRef | None) -> dict[str, Any]:
    """What is in the `run.json` of the detection whose boxes get masks; nothing where a COCO file holds them."""
    if not spec.makes_boxes:
        if labels is not None:
            raise SpecError(
                "labels: found the labels of a detection, expected none with autolabel_type 'mal', whose boxes are in "
                "mal.inference.ann_path; set autolabel_type to 'grounding_dino+mal'"
            )
        return {}
    found = _run_record(results)
    if labels is None and "labels" not in found:
        raise SpecError(
            f"results_dir {without_password(spec.results_dir)} holds no {RUN_FILE} of a detection, whose boxes would "
            "get masks; run `autolabel generate`, which makes the boxes first, or the flow auto-label"
        )
    if labels is None or found.get("labels") == asdict(labels):
        return found
    return {"labels": asdict(labels)}


def _run_record(results: Folder) -> dict[str, Any]:
    """What is in `run.json`; nothing where there is none, or one that no run has written so."""
    try:
        record = json.loads(results.read(RUN_FILE))
    except (MissingFileError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and _is_sound(record) else {}


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether what is read of the record is well-formed where it is there: its labels, and its digests."""
    labels, digests = record.get("labels", dict.fromkeys(_REF, "")), record.get("digests", {})
    return (
        isinstance(labels, dict)
        and set(labels) == _REF
        and all(isinstance(value, str) for value in labels.values())
        and isinstance(digests, dict)
    )
