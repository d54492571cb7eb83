"""Shards of boxes in the store: what stands for one between steps, and what it holds."""

from dataclasses import dataclass

from tasks.domain.artifacts import ArtifactRef
from tasks.formats.coco_boxes import load_image_rows
from tasks.formats.image_index import read_image_index
from tasks.formats.masked_coco import BoxedImage, identified
from tasks.store import ArtifactStore


@dataclass(frozen=True)
class BoxedShard:
    """The rows of a shard, and the index of their images; None for our own labels, whose rows tell of their images."""

    rows: ArtifactRef
    index: ArtifactRef | None = None


def read_boxed(store: ArtifactStore, shard: BoxedShard) -> tuple[BoxedImage, ...]:
    """The images of a shard with their boxes; raises ArtifactError where they are gone."""
    index = read_image_index(store.read(shard.index)) if shard.index else None
    return identified(load_image_rows(store.read(shard.rows)), index)
