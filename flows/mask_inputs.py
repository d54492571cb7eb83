"""What a run that makes masks works with, made from its spec; everything that can be refused early is refused here."""

import os
from dataclasses import dataclass
from pathlib import Path

from flows.run_inputs import in_results, refuse_inputs_that_go, source_of, store_of
from flows.settings import settings_for
from tasks.domain.addresses import without_password
from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec
from tasks.export_masks import MaskExport
from tasks.forwarding import Place
from tasks.index_images import Indexer
from tasks.models import SegmenterConfig, refuse_segmenter_device, segmenter_digest
from tasks.recall import Recall
from tasks.segment import MaskQuestion
from tasks.shard_boxes import CocoFile
from tasks.storage.folder import Folder, folder_and_name
from tasks.store import ArtifactStore

# What a run writes into results_dir under names of its own.
RESERVED = ("cache", "failures.jsonl", "images_annotated", "run.json", "status.json")


@dataclass(frozen=True)
class MaskInputs:
    """Everything that the flow hands to its steps."""

    spec: ExperimentSpec
    store: ArtifactStore
    recall: Recall
    question: MaskQuestion
    place: Place
    export: MaskExport

    @property
    def indexer(self) -> Indexer:
        """What looks at the images that a COCO file names."""
        return Indexer(self.place.source, self.store, self.recall)

    @property
    def boxes(self) -> CocoFile:
        """The COCO file with the boxes, of `autolabel_type: mal`."""
        return CocoFile(self.spec.mal.inference.ann_path, self.spec.storage_options)


def mask_inputs_of(spec: ExperimentSpec) -> MaskInputs:
    """The inputs of a run that makes masks.

    Raises:
        SpecError: the spec asks for no masks, for a device or precision that cannot be had, or to write the masks over
            a file that is needed or to a place that the run deletes, or would delete what it reads.
        CheckpointError: the segmenter's files cannot be used.
    """
    if not spec.makes_masks:
        raise SpecError(
            f"autolabel_type: found {spec.autolabel_type!r}, expected 'mal' or 'grounding_dino+mal', which make masks"
        )
    refuse_inputs_that_go(spec)
    settings = settings_for(spec)
    export = _export(spec)
    segmenter = segmenter_of(spec)
    refuse_segmenter_device(segmenter, settings.device)
    return MaskInputs(
        spec=spec,
        store=export.store,
        recall=Recall(export.store),
        question=MaskQuestion(segmenter, segmenter_digest(segmenter)),
        place=Place(export.source, settings.device, settings.batch_size, settings.read_ahead),
        export=export,
    )


def segmenter_of(spec: ExperimentSpec) -> SegmenterConfig:
    """Which segmenter the spec asks for, and everything that changes its masks."""
    asked = spec.mal
    thresholds = asked.train.mask_thres
    small, medium, large = thresholds if len(thresholds) == 3 else 3 * thresholds
    return SegmenterConfig(
        segmenter=asked.segmenter,
        checkpoint=str(asked.checkpoint),
        precision=asked.precision,
        clip_to_box=asked.clip_to_box,
        thresholds=(small, medium, large),
        crop_size=asked.dataset.crop_size,
        margin=0.5 * asked.train.test_margin_rate[0],
        weights=asked.weights,
        flip=asked.flip_test,
        arch=asked.model.arch,
        adjusts_scale=None if asked.model.not_adjust_scale is None else not asked.model.not_adjust_scale,
        scale_before=asked.model.mask_scale_ratio_pre,
        scale=asked.model.mask_scale_ratio,
    )


def _export(spec: ExperimentSpec) -> MaskExport:
    results = Folder(spec.results_dir, spec.storage_options)
    store = store_of(spec)
    if spec.makes_boxes:
        document, name = results, "annotations.json"
        visualize = spec.mal.visualize or spec.grounding_dino.visualize
    else:
        document, name = _document(spec)
        visualize = spec.mal.visualize
    return MaskExport(
        store=store,
        results=results,
        document=document,
        name=name,
        source=source_of(spec, store),
        adds_to_labels=spec.makes_boxes,
        visualize=visualize,
        compare=spec.mal.inference.load_mask and not spec.makes_boxes,
    )


def _document(spec: ExperimentSpec) -> tuple[Folder, str]:
    """The folder and the name of the file that the masks go to."""
    path = masks_path(spec)
    refused = f"mal.inference.label_dump_path: found {without_password(spec.mal.inference.label_dump_path)}"
    folder, name = folder_and_name(path, spec.storage_options)
    if name in ("", ".", "..") or "\0" in name:
        raise SpecError(f"{refused}, expected the name of a file")
    place = _place(spec, path)
    if place == _place(spec, spec.mal.inference.ann_path):
        raise SpecError(f"{refused}, which is ann_path: the boxes would be written over; choose another file")
    for kept in RESERVED:
        its_place = _place(spec, in_results(spec, kept))
        if place[: len(its_place)] == its_place:
            raise SpecError(f"{refused}; the run keeps {kept} of results_dir for itself; choose another place")
    return folder, name


def masks_path(spec: ExperimentSpec) -> str:
    """The path or URL of the COCO file with the masks."""
    if spec.makes_boxes:
        return in_results(spec, "annotations.json")
    path = spec.mal.inference.label_dump_path
    is_whole = "://" in path or Path(os.path.expanduser(path)).is_absolute()  # noqa: PTH111 (as in tasks.store)
    return path if is_whole else in_results(spec, path)


def _place(spec: ExperimentSpec, address: str) -> tuple[str, ...]:
    return Folder(address, spec.storage_options).place
