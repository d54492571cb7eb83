"""Step: a COCO file of boxes, read once and cut into shards, where making masks begins."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.images import into_shards
from tasks.formats.coco import dump_coco
from tasks.formats.coco_boxes import dump_head, dump_image_rows, read_boxes_file
from tasks.formats.label_shards import load_label_shards
from tasks.storage.folder import folder_and_name
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 1
IDS_SHOWN = 5  # of ids that several annotations share, in the warning


@dataclass(frozen=True)
class CocoFile:
    """A file that the user names: its path or URL."""

    address: str
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)

    def read(self) -> bytes:
        """Its bytes; raises ArtifactError where it cannot be read."""
        folder, name = folder_and_name(self.address, self.storage_options)
        return folder.read(name)


@dataclass(frozen=True)
class BoxesDataset:
    """A COCO file in the store: all but images and annotations as `head`, those in shards, and how many images."""

    head: ArtifactRef
    shards: tuple[ArtifactRef, ...]
    images: int


@task(name="shard boxes", cache_policy=NO_CACHE, persist_result=False)
def shard_boxes(store: ArtifactStore, file: CocoFile, shard_size: int) -> BoxesDataset:
    """The data set of a COCO file."""
    return build_boxes(store, file, shard_size)


@task(name="shard labels", cache_policy=NO_CACHE, persist_result=False)
def shard_labels(store: ArtifactStore, labels: ArtifactRef) -> BoxesDataset:
    """The labels of a detection as a data set: its shards are the detection's own."""
    return labels_as_boxes(store, labels)


def labels_as_boxes(store: ArtifactStore, labels: ArtifactRef) -> BoxesDataset:
    """The shards of a detection, and the head that its `annotations.json` has."""
    found = load_label_shards(store.read(labels))
    empty = json.loads(dump_coco((), found.categories))
    head = {name: value for name, value in empty.items() if name not in ("images", "annotations")}
    return BoxesDataset(_publish(store, dump_head(head)), found.shards, found.images)


def build_boxes(store: ArtifactStore, file: CocoFile, shard_size: int) -> BoxesDataset:
    """Cut the images that a COCO file names into shards, and publish each with its boxes.

    Raises FormatError for a file that is not COCO, or names an image twice.
    """
    name = without_password(file.address)
    document = read_boxes_file(file.read(), f"COCO file {name}")
    if document.repeated_ids:
        _warn_of_repeated(name, document.repeated_ids)
    images = sorted(document.images, key=lambda image: image.key)
    return BoxesDataset(
        head=_publish(store, dump_head(document.head)),
        shards=tuple(_publish(store, dump_image_rows(shard)) for shard in into_shards(images, shard_size)),
        images=len(images),
    )


def _warn_of_repeated(name: str, ids: Sequence[Any]) -> None:
    shown = ", ".join(map(repr, ids[:IDS_SHOWN])) + (", ..." if len(ids) > IDS_SHOWN else "")
    logger.warning("%s: several annotations share the id %s; each keeps its record and gets its own mask", name, shown)


def _publish(store: ArtifactStore, payload: bytes) -> ArtifactRef:
    """The reference to rows as they are; what is there already is not written again."""
    key = content_key("shard boxes", VERSION, {"sha256": hashlib.sha256(payload).hexdigest()})
    return store.lookup("boxes", key) or store.publish("boxes", key, payload)
