"""Where a checkpoint's files are, and their digests: from a hub id, a folder, or one original file."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.domain.errors import CheckpointError

_ORIGINAL_SUFFIXES = (".pth", ".pt", ".safetensors")
_ENCRYPTED_SUFFIXES = (".tlt", ".etlt", ".hdf5")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SETTINGS_FILES = ("*.json", "*.txt")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint.

    `folder` is one in transformers' layout and `weights` its shards by name, or `folder` is None and `weights` is the
    one original file.
    """

    name: str
    folder: Path | None
    weights: tuple[Path, ...]


def locate_checkpoint(checkpoint: str | Path) -> CheckpointFiles:
    """The files of a hub id (downloaded if need be), a folder in transformers' layout, or an original file.

    Raises:
        CheckpointError: there is nothing of that name, or not what it should hold.
    """
    name, path = str(checkpoint), Path(checkpoint)
    if path.is_dir():
        return _in_folder(name, path)
    if path.suffix in _ENCRYPTED_SUFFIXES:
        raise CheckpointError(
            f"checkpoint {name} is an encrypted or exported TAO file, which only TAO can read; "
            "use the .pth that TAO trained without an encryption key"
        )
    if path.is_file() or path.suffix in _ORIGINAL_SUFFIXES:
        return _original(name, path)
    if not isinstance(checkpoint, str) or not _HUB_ID.fullmatch(checkpoint):
        raise CheckpointError(f"checkpoint {name} is neither a file, nor a folder, nor a hub id; check the path")
    return _in_folder(name, _from_hub(checkpoint))


def locate_tokenizer(tokenizer: str) -> Path:
    """The folder with the tokenizer's files: itself, or the hub's without weights. Raises CheckpointError."""
    if Path(tokenizer).is_dir():
        return Path(tokenizer)
    if not _HUB_ID.fullmatch(tokenizer):
        raise CheckpointError(f"tokenizer {tokenizer} is neither a folder nor a hub id; check the path")
    return _download(tokenizer, _SETTINGS_FILES)


def file_sha256(path: Path) -> str:
    """The SHA-256 (64 hexadecimal digits) of a file's bytes; read once per process while size and time stay."""
    stat = path.stat()
    return _file_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file beside the weights. Raises CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected a JSON object; fetch it again")
    return content


@lru_cache(maxsize=64)
def _file_sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _original(name: str, path: Path) -> CheckpointFiles:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {name} does not exist; check the path")
    if path.suffix not in _ORIGINAL_SUFFIXES:
        raise CheckpointError(
            f"checkpoint {name} is a {path.suffix or 'file without suffix'}; expected {', '.join(_ORIGINAL_SUFFIXES)}"
        )
    return CheckpointFiles(name, None, (path,))


def _in_folder(name: str, folder: Path) -> CheckpointFiles:
    weights = _weights(folder)
    if not (folder / "config.json").is_file() or not weights:
        originals = sorted(path.name for path in folder.iterdir() if path.suffix in _ORIGINAL_SUFFIXES)
        hint = f"; for an original checkpoint, give the file: {', '.join(originals)}" if originals else ""
        raise CheckpointError(f"checkpoint {name} ({folder}) lacks config.json or *.safetensors{hint}")
    return CheckpointFiles(name, folder, weights)


def _weights(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")))


def _from_hub(hub_id: str) -> Path:
    folder = _download(hub_id, (*_SETTINGS_FILES, "*.safetensors"))
    return folder if _weights(folder) else _download(hub_id, (*_SETTINGS_FILES, "pytorch_model*.bin"))


def _download(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder with the hub's files of these patterns; without a network, those downloaded before."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{hub_id} is no local file or folder, and could not be had from the Hugging Face hub ({reason}); "
            "check the name, or download it where there is a network and give the folder"
        ) from error
