"""Step: the index and the phrases, cut into shards of records without labels, where the loop begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef, Json, content_key
from tasks.domain.images import Failure, ImageIndex, into_shards
from tasks.formats.coco import dump_coco
from tasks.formats.image_index import read_image_index
from tasks.store import ArtifactStore

VERSION = 1


@dataclass(frozen=True)
class UnlabelledShard:
    """A shard before the first iteration: how many images it has, and the annotations artifact without labels."""

    images: int
    annotations: ArtifactRef


@dataclass(frozen=True)
class Dataset:
    """The shards of the images to label, and the images that are not in them.

    `failures` could not be read, or are asked about and were not found; `without_prompt` counts images that no line of
    the prompt file names, which are no part of the data set.
    """

    shards: tuple[UnlabelledShard, ...]
    failures: tuple[Failure, ...]
    without_prompt: int


@task(name="shard images", cache_policy=NO_CACHE, persist_result=False)
def shard_images(
    store: ArtifactStore,
    index: ArtifactRef,
    records: Mapping[str, tuple[Record, ...]],
    classes: tuple[str, ...],
    shard_size: int,
) -> Dataset:
    """The data set of an index: every image under `classes`, else those that `records` names by key."""
    return build_dataset(store, read_image_index(store.read(index)), records, classes, shard_size)


def build_dataset(
    store: ArtifactStore,
    index: ImageIndex,
    records: Mapping[str, tuple[Record, ...]],
    classes: tuple[str, ...],
    shard_size: int,
) -> Dataset:
    """Cut the images into shards and publish each one without labels."""
    asked = [image for image in index.images if classes or image.key in records]
    everything = (Record(0, None, classes),)
    shards = (
        [LabelledImage(image, records.get(image.key, everything)) for image in shard]
        for shard in into_shards(asked, shard_size)
    )
    return Dataset(
        shards=tuple(UnlabelledShard(len(shard), publish_shard(store, shard, classes)) for shard in shards),
        failures=_failures(index, records),
        without_prompt=len(index.images) - len(asked),
    )


def _failures(index: ImageIndex, records: Mapping[str, tuple[Record, ...]]) -> tuple[Failure, ...]:
    """What the index could not read, as far as it is asked about, and what is asked about and not in the index."""
    unreadable = [failure for failure in index.failures if not records or failure.image in records]
    there = {image.key for image in index.images} | {failure.image for failure in unreadable}
    missing = [
        Failure(key, "index", "is named in the prompt file, and not there") for key in records if key not in there
    ]
    return tuple(sorted([*unreadable, *missing]))


def publish_shard(store: ArtifactStore, images: Sequence[LabelledImage], classes: Sequence[str]) -> ArtifactRef:
    """The reference to a shard without labels; a shard that is there already is not written again."""
    key = content_key("shard", VERSION, {"images": [_identity(image) for image in images]})
    return store.lookup("annotations", key) or store.publish("annotations", key, dump_coco(images, classes))


def _identity(labelled: LabelledImage) -> Json:
    image = labelled.image
    asked = [[record.caption_id, record.caption, list(record.phrases)] for record in labelled.records]
    return [image.key, image.sha256, image.width, image.height, asked]
