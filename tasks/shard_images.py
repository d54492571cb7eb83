"""Step: the index and the phrases, cut into shards of records without labels, where the loop begins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef, Json, content_key
from tasks.domain.errors import SpecError
from tasks.domain.images import Failure, ImageIndex, into_shards
from tasks.formats.coco import dump_coco
from tasks.formats.image_index import read_image_index
from tasks.store import ArtifactStore

VERSION = 1
EXAMPLES = 3  # keys that a message shows of many


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
    """Cut the images into shards and publish each one without labels.

    Raises SpecError when `records` are of other images than those of the index.
    """
    _refuse_strangers(index, records)
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


def _refuse_strangers(index: ImageIndex, records: Mapping[str, tuple[Record, ...]]) -> None:
    found = _found(index)
    if records and found.isdisjoint(records):
        raise SpecError(
            f"no line of the prompt file names an image that was found: its file_name are {_examples(records)}, and "
            f"in image_dir there are {_examples(found)}; expected paths relative to image_dir"
        )


def _found(index: ImageIndex) -> set[str]:
    return {image.key for image in index.images} | {failure.image for failure in index.failures}


def _examples(keys: Iterable[str]) -> str:
    first, more = sorted(keys)[:EXAMPLES], len(set(keys)) - EXAMPLES
    return ", ".join(map(repr, first)) + (f" and {more} more" if more > 0 else "")


def _failures(index: ImageIndex, records: Mapping[str, tuple[Record, ...]]) -> tuple[Failure, ...]:
    """What the index could not read, as far as it is asked about, and what is asked about and not in the index."""
    unreadable = [failure for failure in index.failures if not records or failure.image in records]
    found = _found(index)
    missing = set(records) - found
    meant = _longer_keys(missing, found)
    reasons = {key: "is named in the prompt file, and not there" + meant.get(key, "") for key in missing}
    return tuple(sorted([*unreadable, *(Failure(key, "index", reason) for key, reason in reasons.items())]))


def _longer_keys(missing: set[str], found: set[str]) -> dict[str, str]:
    """For missing keys the found ones that end with them: with several image roots the root's name is forgotten."""
    meant: dict[str, list[str]] = {}
    for key in sorted(found) if missing else ():
        folders = key.split("/")
        for end in ("/".join(folders[start:]) for start in range(1, len(folders))):
            if end in missing:
                meant.setdefault(end, []).append(key)
    return {key: f"; did you mean {' or '.join(longer[:EXAMPLES])}" for key, longer in meant.items()}


def publish_shard(store: ArtifactStore, images: Sequence[LabelledImage], classes: Sequence[str]) -> ArtifactRef:
    """The reference to a shard without labels; a shard that is there already is not written again."""
    key = content_key("shard", VERSION, {"images": [_identity(image) for image in images]})
    return store.lookup("annotations", key) or store.publish("annotations", key, dump_coco(images, classes))


def _identity(labelled: LabelledImage) -> Json:
    image = labelled.image
    asked = [[record.caption_id, record.caption, list(record.phrases)] for record in labelled.records]
    return [image.key, image.sha256, image.width, image.height, asked]
