"""The prompt file of grounding mode: TAO's JSON lines of captions and their noun chunks.

`{"file_name": "sub/img1.jpg", "caption": "a man walks a brown dog", "noun_chunks": ["a man", "a brown dog"]}`
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from tasks.domain.annotations import Record
from tasks.domain.errors import FormatError
from tasks.formats.json_lines import field, parse_lines

_Prompt: TypeAlias = tuple[str, str, tuple[str, ...]]  # image key, caption, phrases


def load_noun_chunks(data: bytes, source: str) -> dict[str, tuple[Record, ...]]:
    """The records of every image key, without annotations; keys in the order of the file.

    Several captions of an image are several records, numbered from 0 in the order of the file. Chunks are stripped,
    and a chunk that comes twice in a caption is asked once. A caption may be empty, and may have no chunk.

    Args:
        data: The file.
        source: Its name, for the message.

    Raises:
        FormatError: Lists the bad lines with their numbers, or says that there is no line.
    """
    records: dict[str, list[Record]] = {}
    for key, caption, phrases in parse_lines(data, _parse, source):
        of_image = records.setdefault(key, [])
        of_image.append(Record(caption_id=len(of_image), caption=caption, phrases=phrases))
    if not records:
        raise FormatError(
            f"{source} has no line; expected one for each image, with 'file_name', 'caption' and 'noun_chunks'; check "
            "noun_chunk_path"
        )
    return {key: tuple(of_image) for key, of_image in records.items()}


def _parse(entry: Mapping[str, Any]) -> _Prompt:
    chunks = field(entry, "noun_chunks", list)
    bad = [chunk for chunk in chunks if not isinstance(chunk, str) or not chunk.strip()]
    if bad:
        raise ValueError(f"'noun_chunks' holds {bad[0]!r}, expected strings that are not blank")
    phrases = dict.fromkeys(chunk.strip() for chunk in chunks)
    return _image_key(field(entry, "file_name", str)), field(entry, "caption", str), tuple(phrases)


def _image_key(file_name: str) -> str:
    """The file name as an image key: `./a.jpg` and `a.jpg` are one image."""
    path = PurePosixPath(file_name)
    if not path.name or path.is_absolute() or "://" in file_name or ".." in path.parts:
        raise ValueError(f"'file_name' is {file_name!r}, expected a path below the image folder, as in 'sub/img1.jpg'")
    return str(path)
