"""Images as the flow knows them: keys, digests, upright sizes, and why one could not be read."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import Protocol, TypeVar

from tasks.domain.errors import SpecError


@dataclass(frozen=True, order=True)
class Image:
    """One readable image of the data set.

    `key` is the POSIX path relative to the image root; `sha256` the digest of the file's bytes; `width` and `height`
    are the pixels of the upright image, after the EXIF orientation was applied.
    """

    key: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, order=True)
class Failure:
    """An image that left the flow: its key, the step ("index", "infer", ...) and the reason in words."""

    image: str
    stage: str
    reason: str


@dataclass(frozen=True)
class ImageIndex:
    """Everything found under the image roots, sorted by key: each file is either readable or a failure."""

    images: tuple[Image, ...]
    failures: tuple[Failure, ...]


WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\")  # C:\, C:/ and \\server, which leave a folder on Windows


def is_inner_path(path: str) -> bool:
    """Whether `path` is a POSIX path, relative and with nothing to resolve, that cannot leave a folder it is put to.

    Backslashes are letters of a name, except where Windows would leave the folder through them.
    """
    forbidden = {".", ".."}.intersection(re.split(r"[\\/]", path)) or "\0" in path
    return all(path.split("/")) and not forbidden and not WINDOWS_ROOT.match(path)


def key_prefixes(roots: Sequence[tuple[str, ...]]) -> list[str]:
    """What the keys under each of several image roots begin with, so that no two images share a key.

    A root is given as the folders that lead to it. The prefix is its last folder and a slash, with as many folders
    above it as it takes for no prefix to begin another; a single root has none. Raises SpecError when their names
    cannot be told apart.
    """
    if len(roots) == 1:
        return [""]
    prefixes = [root[-1:] for root in roots]
    while clashes := _beginning_another(prefixes):
        clashing = set(chain.from_iterable(clashes))
        longer = [root[-len(prefixes[i]) - (i in clashing) :] for i, root in enumerate(roots)]
        if longer == prefixes:
            names = ", ".join("/".join(root) for root in roots)
            raise SpecError(f"the image roots {names} cannot be told apart by the ends of their paths; rename one")
        prefixes = longer
    return ["/".join((*prefix, "")) for prefix in prefixes]


def refuse_nested_roots(names: Sequence[str], places: Sequence[tuple[str, ...]]) -> None:
    """Raise SpecError when an image root is or lies in another.

    `places` are the folders that really lead to each root, with no link among them; the message says `names`.
    """
    if nested := _beginning_another(places):
        i, j = nested[0]
        where = f"is the same folder as {names[i]}" if places[i] == places[j] else f"lies in image root {names[i]}"
        raise SpecError(f"image root {names[j]} {where}: its images would be labelled twice; drop one")


def _beginning_another(paths: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    pairs = permutations(range(len(paths)), 2)
    return [(i, j) for i, j in pairs if paths[i] == paths[j][: len(paths[i])]]


# What a run makes in its results_dir: the pictures, the folder of each iteration, and the cache.
MADE_BY_RUNS = re.compile(r"images_annotated|auto_label\d+|cache")


def folders_at_or_below(root: tuple[str, ...], places: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """Those of the folders `places` that are `root` or lie below it, relative to it; "" stands for the root itself."""
    return frozenset("/".join(place[len(root) :]) for place in places if place[: len(root)] == root)


def is_left_out(folder: str, excluded: frozenset[str]) -> bool:
    """Whether a folder is not searched for images: one that is hidden, excluded, or made by runs in an excluded root.

    `folder` and `excluded` are relative to the image root. The folders above `folder` are not looked at.
    """
    name = folder.rpartition("/")[2]
    is_hidden = name.startswith(".") and name not in {".", ".."}
    return is_hidden or folder in excluded or ("" in excluded and MADE_BY_RUNS.fullmatch(folder) is not None)


class Keyed(Protocol):
    """Whatever goes by the key of an image."""

    @property
    def key(self) -> str:
        """POSIX path relative to the image root."""
        ...


KeyedT = TypeVar("KeyedT", bound=Keyed)

LONGEST_SHARD = 4  # times the aimed size: a cut is forced there, which 1 shard in e**4 = 55 meets


def into_shards(images: Iterable[KeyedT], shard_size: int) -> Iterator[tuple[KeyedT, ...]]:
    """Split images, which come sorted by key, into shards of `shard_size` on average, so that a new one touches one.

    A shard ends behind an image whose key hashes to 0 modulo `shard_size` (content-defined chunking): membership
    follows from the keys around an image and not from its position in the list. No shard is empty, and no more than
    one is in memory.
    """
    shard: list[KeyedT] = []
    for image in images:
        shard.append(image)
        if _ends_shard(image.key, shard_size) or len(shard) == LONGEST_SHARD * shard_size:
            yield tuple(shard)
            shard = []
    if shard:
        yield tuple(shard)


def _ends_shard(key: str, shard_size: int) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % shard_size == 0
