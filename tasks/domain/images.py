"""Images as the flow knows them: keys, digests, upright sizes, and why one could not be read."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations

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
    above it as it takes for no prefix to begin another; a single root has none. Raises SpecError when a root is or
    lies in another, or when their names cannot be told apart.
    """
    if len(roots) == 1:
        return [""]
    if nested := _beginning_another(roots):
        outer, inner = ("/".join(roots[i]) for i in nested[0])
        raise SpecError(f"image root {inner} lies in image root {outer}: its images would be labelled twice; drop one")
    prefixes = [root[-1:] for root in roots]
    while clashes := _beginning_another(prefixes):
        clashing = set(chain.from_iterable(clashes))
        longer = [root[-len(prefixes[i]) - (i in clashing) :] for i, root in enumerate(roots)]
        if longer == prefixes:
            names = ", ".join("/".join(root) for root in roots)
            raise SpecError(f"the image roots {names} cannot be told apart by the ends of their paths; rename one")
        prefixes = longer
    return ["/".join((*prefix, "")) for prefix in prefixes]


def _beginning_another(paths: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    pairs = permutations(range(len(paths)), 2)
    return [(i, j) for i, j in pairs if paths[i] == paths[j][: len(paths[i])]]


LONGEST_SHARD = 4  # times the aimed size: a cut is forced there, which 1 shard in e**4 = 55 meets


def into_shards(images: Sequence[Image], shard_size: int) -> tuple[tuple[Image, ...], ...]:
    """Split images into shards of `shard_size` on average, so that one new image touches one shard.

    A shard ends behind an image whose key hashes to 0 modulo `shard_size` (content-defined chunking): membership
    follows from the keys around an image and not from its position in the list. Sorted by key; no shard is empty.
    """
    shards: list[tuple[Image, ...]] = []
    shard: list[Image] = []
    for image in sorted(images):
        shard.append(image)
        if _ends_shard(image.key, shard_size) or len(shard) == LONGEST_SHARD * shard_size:
            shards.append(tuple(shard))
            shard = []
    return (*shards, tuple(shard)) if shard else tuple(shards)


def _ends_shard(key: str, shard_size: int) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % shard_size == 0
