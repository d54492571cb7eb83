"""What making masks would take now: images, boxes, and those that the segmenter has to see, without a forward pass."""

from collections import Counter
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
    `boxes_to_forward` are those that the segmenter has not answered yet, for an image of these bytes; equal boxes of an
    image count once.
    """

    images: int = 0
    boxes: int = 0
    boxes_without: int = 0
    boxes_to_forward: int = 0
    shards: int = 0
    reused_shards: int = 0


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
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(_foreseen(look_ahead_at_masks(run.store, shard, run.question, run.recall)))
    return MaskPlan(**counts)


def _foreseen(outlook: MaskOutlook) -> dict[str, int]:
    """What a shard adds to the plan."""
    return {
        "images": outlook.images,
        "boxes": outlook.boxes,
        "boxes_without": outlook.boxes - sum(len(asked.boxes) for asked in outlook.asked),
        "boxes_to_forward": sum(len(asked.boxes) for asked in outlook.todo),
        "shards": 1,
        "reused_shards": int(outlook.masks is not None),
    }


def _shards_of_file(run: MaskInputs) -> list[BoxedShard]:
    dataset = build_boxes(run.store, run.boxes, run.spec.shard_size)
    indexes = build_named_indexes(run.indexer, dataset.shards)
    return [BoxedShard(ref, index) for ref, (index, _) in zip(dataset.shards, indexes, strict=True)]
