"""What making masks would take now: images, boxes, and those that the segmenter has to see, without a forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.mask_inputs import MaskInputs, mask_inputs_of
from tasks.boxed_shards import BoxedShard
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.spec import ExperimentSpec
from tasks.index_images import build_named_indexes
from tasks.segment import MaskOutlook, look_ahead_at_masks
from tasks.shard_boxes import build_boxes


@dataclass(frozen=True)
class MaskPlan:
    """What a run would do now for masks.

    `boxes_without` can get no mask: crowd regions, boxes outside their image, and those of images that cannot be used.
    `boxes_to_forward` are those that the segmenter has not answered yet.
    """

    images: int
    boxes: int
    boxes_without: int
    boxes_to_forward: int
    shards: int
    reused_shards: int


def plan_masks(spec: ExperimentSpec, labels: Sequence[ArtifactRef] | None) -> MaskPlan | None:
    """The plan over the shards that a detection would deliver, or over a COCO file with `autolabel_type: mal`.

    None where the boxes are those of a detection and not known yet. It reads the images and fills the cache with the
    index; it asks no segmenter.
    """
    run = mask_inputs_of(spec)
    if not spec.makes_boxes:
        shards = _shards_of_file(run)
    elif labels is not None:
        shards = [BoxedShard(ref) for ref in labels]
    else:
        return None
    outlooks = [look_ahead_at_masks(run.store, shard, run.question) for shard in shards]
    return MaskPlan(
        images=sum(outlook.images for outlook in outlooks),
        boxes=sum(outlook.boxes for outlook in outlooks),
        boxes_without=sum(outlook.boxes - _asked(outlook) for outlook in outlooks),
        boxes_to_forward=sum(len(asked.boxes) for outlook in outlooks for asked in outlook.todo),
        shards=len(outlooks),
        reused_shards=sum(outlook.masks is not None for outlook in outlooks),
    )


def _asked(outlook: MaskOutlook) -> int:
    return sum(len(asked.boxes) for asked in outlook.asked)


def _shards_of_file(run: MaskInputs) -> list[BoxedShard]:
    dataset = build_boxes(run.store, run.boxes, run.spec.shard_size)
    indexes = build_named_indexes(run.place.source, run.store, dataset.shards)
    return [BoxedShard(ref, index) for ref, (index, _) in zip(dataset.shards, indexes, strict=True)]
