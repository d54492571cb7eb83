"""Step: the index and the phrases, cut into shards of records without labels, where the loop begins."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef, Json, content_key
from tasks.domain.errors import SpecError
from tasks.domain.images import Failure, Image, ImageIndex, into_shards
from tasks.formats.coco import dump_coco
from tasks.formats.image_index import read_image_index
from tasks.progress import stop_if_abandoned
from tasks.store import ArtifactStore

VERSION = 1
EXAMPLES = 3  # keys that a message shows of many

Records: TypeAlias = Mapping[str, tuple[Record, ...]]  # by the key of the image


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
    index: Sequence[ArtifactRef],
    records: Records,
    classes: tuple[str, ...],
    shard_size: int,
) -> Dataset:
    """The data set of an index: every image under `classes`, else those that `records` names by key."""
    return build_dataset(store, index, records, classes, shard_size)


def build_dataset(
    store: ArtifactStore, index: Sequence[ArtifactRef], records: Records, classes: tuple[str, ...], shard_size: int
) -> Dataset:
    """Cut the images into shards and publish each one without labels; one shard at a time is in memory.

    Raises SpecError when `records` are of other images than those of the index.
    """
    survey = _Survey(records, every_image=bool(classes))
    asked = chain.from_iterable(survey.asked(read_image_index(store.read(ref))) for ref in index)
    everything = (Record(0, None, classes),)
    shards = []
    for images in into_shards(asked, shard_size):
        shard = [LabelledImage(image, records.get(image.key, everything)) for image in images]
        shards.append(UnlabelledShard(len(shard), publish_shard(store, shard, classes)))
    survey.refuse_strangers()
    missing = _told_missing(store, index, survey.missing)
    return Dataset(tuple(shards), tuple(sorted([*survey.failures, *missing])), survey.without_prompt)


class _Survey:
    """Walks over the index once, and keeps account of what is not asked about, cannot be read, or is not there."""

    def __init__(self, records: Records, *, every_image: bool) -> None:
        self.failures: list[Failure] = []
        self.without_prompt = 0
        self.missing = set(records)
        self._records = records
        self._every_image = every_image
        self._found: list[str] = []  # the first keys, for the message
        self._count = 0

    def asked(self, index: ImageIndex) -> Iterator[Image]:
        """The images of a part of the index that are asked about."""
        self._meet([image.key for image in index.images] + [failure.image for failure in index.failures])
        self.failures += [lost for lost in index.failures if not self._records or lost.image in self._records]
        for image in index.images:
            if self._every_image or image.key in self._records:
                yield image
            else:
                self.without_prompt += 1

    def _meet(self, keys: Sequence[str]) -> None:
        self.missing.difference_update(keys)
        self._count += len(keys)
        self._found = sorted([*self._found, *keys])[:EXAMPLES]

    def refuse_strangers(self) -> None:
        """Raise SpecError where nothing that is asked about was met."""
        if self._records and len(self.missing) == len(self._records):
            raise SpecError(
                "no line of the prompt file names an image that was found: its file_name are "
                f"{_examples(sorted(self._records), len(self._records))}, and in image_dir there are "
                f"{_examples(self._found, self._count)}; expected paths relative to image_dir"
            )


def _examples(keys: Sequence[str], count: int) -> str:
    more = count - EXAMPLES
    return ", ".join(map(repr, keys[:EXAMPLES])) + (f" and {more} more" if more > 0 else "")


def _told_missing(store: ArtifactStore, index: Sequence[ArtifactRef], missing: Collection[str]) -> list[Failure]:
    """What is asked about and not in the index, with what may have been meant."""
    meant: dict[str, list[str]] = {}
    for ref in index if missing else ():
        part = read_image_index(store.read(ref))
        for key in sorted([image.key for image in part.images] + [failure.image for failure in part.failures]):
            for end in _ends(key):
                if end in missing:
                    meant.setdefault(end, []).append(key)
    reason = "is named in the prompt file, and not there"
    hints = {key: f"; did you mean {' or '.join(longer[:EXAMPLES])}" for key, longer in meant.items()}
    return [Failure(key, "index", reason + hints.get(key, "")) for key in sorted(missing)]


def _ends(key: str) -> Iterator[str]:
    """The key without its first folder, the first two, ...: with several image roots the root's name is forgotten."""
    folders = key.split("/")
    return ("/".join(folders[start:]) for start in range(1, len(folders)))


def publish_shard(store: ArtifactStore, images: Sequence[LabelledImage], classes: Sequence[str]) -> ArtifactRef:
    """The reference to a shard without labels; a shard that is there already is not written again."""
    stop_if_abandoned()
    key = content_key("shard", VERSION, {"images": [_identity(image) for image in images]})
    return store.lookup("annotations", key) or store.publish("annotations", key, dump_coco(images, classes))


def _identity(labelled: LabelledImage) -> Json:
    image = labelled.image
    asked = [[record.caption_id, record.caption, list(record.phrases)] for record in labelled.records]
    return [image.key, image.sha256, image.width, image.height, asked]
