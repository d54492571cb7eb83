"""Step: which boxes of COCO files a training learns from, and which it measures with."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.cached import cached
from tasks.domain.artifacts import ArtifactRef, content_key
from tasks.domain.errors import FormatError, SpecError
from tasks.domain.images import Failure
from tasks.domain.training_boxes import LabelledBoxes, Limits
from tasks.formats.image_index import joined_index, read_image_index
from tasks.formats.training_boxes import dump_labelled_boxes, load_labelled_boxes, read_labelled_boxes
from tasks.storage.folder import Folder, folder_and_name
from tasks.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 1
KIND = "boxes"


@dataclass(frozen=True)
class Wanted:
    """A COCO file and what is wanted of it.

    `path` is local or a URL, `what` the name of its key in the spec, `index` the
    indices of the images that there are. `masks` says
    whether every box has to have one, and `learns` whether it is for learning, and not for measuring.
    """

    path: str
    what: str
    index: tuple[ArtifactRef, ...]
    limits: Limits
    masks: bool
    learns: bool


@dataclass(frozen=True)
class Chosen:
    """A reference to boxes, their number, that of the others by reason, and the images that cannot be read."""

    boxes: ArtifactRef
    count: int
    left_out: dict[str, int]
    failures: tuple[Failure, ...]


@task(name="choose boxes", cache_policy=NO_CACHE, persist_result=False)
def choose_boxes(store: ArtifactStore, place: Folder, wanted: Sequence[Wanted]) -> list[Chosen]:
    """The boxes of every file; `place` tells the storage options.

    Raises:
        SpecError: files cannot be trained with; lists the problems of all of them.
        ArtifactError: a file cannot be read.
    """
    made, problems = [], []
    for one in wanted:
        try:
            made.append(_choose(store, place, one))
        except (SpecError, FormatError) as error:
            problems.append(str(error))
    if problems:
        raise SpecError("\n".join(problems))
    for one, (chosen, _) in zip(wanted, made, strict=True):
        for reason, count in chosen.left_out.items():
            logger.warning("%s: left out are %d boxes %s; %d remain", one.what, count, reason, chosen.count)
    found = [chosen for chosen, _ in made]
    return cached(found, "chosen before") if all(reused for _, reused in made) else found


def _choose(store: ArtifactStore, place: Folder, wanted: Wanted) -> tuple[Chosen, bool]:
    folder, name = folder_and_name(wanted.path.replace("\\", "/"), place.storage_options)
    data = folder.read(name)
    key = content_key(
        "choose boxes",
        VERSION,
        {
            "file": hashlib.sha256(data).hexdigest(),
            "index": [part.sha256 for part in wanted.index],
            "limits": asdict(wanted.limits),
            "masks": wanted.masks,
            "learns": wanted.learns,
        },
    )
    if (ref := store.lookup(KIND, key)) is not None:
        return _told(ref, load_labelled_boxes(store.read(ref))), True
    index = joined_index(read_image_index(store.read(part)) for part in wanted.index)
    what = f"{wanted.what} {wanted.path}"
    boxes = read_labelled_boxes(data, index, wanted.limits, masks=wanted.masks, learns=wanted.learns, what=what)
    return _told(store.publish(KIND, key, dump_labelled_boxes(boxes), {"boxes": len(boxes)}), boxes), False


def _told(ref: ArtifactRef, boxes: LabelledBoxes) -> Chosen:
    return Chosen(ref, len(boxes), dict(boxes.left_out), boxes.failures)
