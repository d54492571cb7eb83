"""The ground truth of drawn scenes as a COCO file: exact boxes, masks as compressed RLE, and what each object is."""

import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from tasks.domain.artifacts import Json
from tasks.domain.scenes import Scene, SceneObject
from tasks.formats.coco import box_xywh
from tasks.formats.labelmap import category_id, labels_of


def dump_scene_truth(
    scenes: Iterable[tuple[str, Scene]], categories: Sequence[str], name_of: Callable[[SceneObject], str]
) -> bytes:
    """The COCO file of (image key, scene) pairs; `name_of` says which of the `categories` an object is."""
    labels = labels_of(categories)
    images: list[Json] = []
    annotations: list[Json] = []
    for image_id, (key, scene) in enumerate(scenes, 1):
        height, width = scene.pixels.shape[:2]
        images.append({"id": image_id, "file_name": key, "width": width, "height": height})
        for drawn in scene.objects:
            place = {"image_id": image_id, "category_id": category_id(labels[name_of(drawn)])}
            annotations.append({"id": len(annotations) + 1, **place, **_outline(drawn)})
    names = [{"id": category_id(label), "name": name} for label, name in enumerate(categories)]
    return json.dumps({"images": images, "annotations": annotations, "categories": names}).encode()


def _outline(drawn: SceneObject) -> dict[str, Json]:
    rle = coco_mask.encode(np.asfortranarray(drawn.mask, dtype=np.uint8))
    return {
        "phrase": drawn.phrase,
        "bbox": box_xywh(drawn.box),
        "area": int(drawn.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }
