"""What images there are in a local folder."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tasks.domain.errors import ImageError, SpecError
from tasks.domain.images import is_inner_path, is_left_out
from tasks.image_sources.image_roots import (
    IS_FOLDER,
    NO_KEY,
    NO_UTF8,
    NOT_INSIDE,
    NOT_THERE,
    ImageRoot,
    ListedFile,
    Survey,
    has_suffix,
    readable,
    told,
    walk,
)


def list_local(root: ImageRoot, survey: Survey) -> Iterator[ListedFile]:
    """All files with the suffix of an image, sorted by key, without the prefix; SpecError for a root of no folder."""
    return walk(partial(_scan, root, survey))


def named_locally(root: ImageRoot, keys: Sequence[str]) -> list[ListedFile]:
    """The files of these keys, with the prefix, in their order; raises SpecError where the root is no folder."""
    if not Path(root.path).is_dir():
        raise SpecError(f"{root.name} is not a folder; check img_dir")
    return [_named(root, key) for key in keys]


def _scan(root: ImageRoot, survey: Survey, folder: str) -> Iterator[ListedFile | str]:
    try:
        names = _names(root, survey, folder)
    except OSError as error:
        if not folder:
            raise SpecError(f"{root.name} cannot be searched: {told(error)}; check image_dir") from error
        yield ListedFile(readable(folder), "", f"is a folder that cannot be searched: {told(error)}")
        return
    for name in sorted(names, key=readable):
        yield folder + name if name.endswith("/") else _look(root, folder + name)


def _names(root: ImageRoot, survey: Survey, folder: str) -> list[str]:
    """The names of the images in a folder, and with a slash behind them those of the folders to search."""
    names = []
    with os.scandir(os.path.join(root.path, folder)) as scan:  # noqa: PTH118 - a Path would resolve a "//" that is there
        for entry in scan:
            path = folder + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and is_left_out(path, root.excluded):
                survey.left_out.add(path)
                continue
            if is_folder:
                names.append(f"{entry.name}/")
            elif _links_to_folder(entry):
                survey.links.add(path)
            if has_suffix(entry.name):
                names.append(entry.name)
    return names


def _look(root: ImageRoot, relative: str) -> ListedFile:
    path = os.path.join(root.path, relative)  # noqa: PTH118 - five times as fast as a Path
    try:
        status = os.stat(path)  # noqa: PTH116 - as above
    except OSError as error:
        kind = "is a link that cannot be followed" if os.path.islink(path) else "cannot be looked at"  # noqa: PTH114
        return ListedFile(readable(relative), "", f"{kind}: {told(error)}")
    return ListedFile(readable(relative), _version(status), _why_no_image_file(relative, status.st_mode))


def _named(root: ImageRoot, key: str) -> ListedFile:
    relative = key.removeprefix(root.prefix)
    if not is_inner_path(relative):
        return ListedFile(key, "", NOT_INSIDE)
    try:
        status = Path(root.path_of(key)).stat()
    except FileNotFoundError:
        return ListedFile(key, "", NOT_THERE)
    except ImageError as error:
        return ListedFile(key, "", str(error))
    except (OSError, ValueError) as error:  # ValueError: a name that this file system cannot have
        return ListedFile(key, "", f"cannot be looked at: {told(error)}")
    return ListedFile(key, _version(status), _why_no_image_file(relative, status.st_mode))


def _version(status: os.stat_result) -> str:
    # The time of the last status change is in it because no program can set it; archives restore that of modification.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _why_no_image_file(relative: str, mode: int) -> str | None:
    if stat.S_ISDIR(mode):
        return IS_FOLDER
    if not stat.S_ISREG(mode):
        return "is a pipe, socket or device, not an image; it was not opened"
    if readable(relative) != relative:
        return NO_UTF8
    return None if is_inner_path(relative) else NO_KEY


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_symlink() and entry.is_dir()
    return False
