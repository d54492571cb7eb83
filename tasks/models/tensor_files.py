"""Tensors by name out of the files that people have them in: pickles of PyTorch and Lightning, and safetensors."""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.domain.errors import CheckpointError

Tensors: TypeAlias = dict[str, Tensor]

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
_ENCRYPTED_SUFFIXES = (".tlt", ".etlt", ".hdf5")
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+)")  # in torch's message
_LISTED = 8  # names that an error message has room for
# What reading a damaged or foreign file raises, over torch and safetensors.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, struct.error, SafetensorError)


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file: those under `state_dict`, else under `model`, else those at its top.

    Nothing but tensors and plain values is unpickled: a checkpoint cannot run code. Tensors of a recent PyTorch file
    are mapped, not read, until they are used.

    Raises:
        CheckpointError: there is no such file, or it is damaged, encrypted, or holds objects of other kinds.
    """
    _refuse_place(path)
    content = load_safetensors(path) if path.suffix == ".safetensors" else unpickle(path)
    tensors = content.get("state_dict", content.get("model", content))
    if content.get("state_dict_encrypted") or isinstance(tensors, bytes):
        raise CheckpointError(f"checkpoint {path} is encrypted; save it in TAO without an encryption key")
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"checkpoint {path} holds {type(tensors).__name__}; expected tensors by name")
    found = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        raise CheckpointError(f"checkpoint {path} holds no tensors, but {listed(map(str, tensors)) or 'nothing'}")
    if sparse := [name for name, tensor in found.items() if tensor.layout != torch.strided]:
        raise CheckpointError(
            f"checkpoint {path} holds sparse tensors ({listed(sparse)}); save them dense: .to_dense()"
        )
    return found


def listed(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(ordered[:_LISTED]) + more


def _refuse_place(path: Path) -> None:
    if path.suffix in _ENCRYPTED_SUFFIXES:
        raise CheckpointError(
            f"checkpoint {path} is an encrypted or exported TAO file, which only TAO can read; "
            "use the .pth that TAO trained without an encryption key"
        )
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    if path.suffix not in SUFFIXES:
        found = path.suffix or "file without suffix"
        raise CheckpointError(f"checkpoint {path} is a {found}; expected {', '.join(SUFFIXES)}, or a folder")


def load_safetensors(path: Path) -> Mapping[str, Any]:
    """What a safetensors file holds; raises CheckpointError where it cannot be read."""
    try:
        tensors: Tensors = load_file(path)
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error}); fetch it again") from error
    return tensors


def unpickle(path: Path) -> Mapping[str, Any]:
    """What a pickle of tensors and plain values holds; raises CheckpointError for anything else."""
    try:
        content = load_plain(path, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_why_not_opened(path, error)) from error
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_first_line(error)}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds {type(content).__name__}; expected tensors by name")
    return content


def load_plain(source: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """What a pickle of tensors and plain values holds, on the CPU; raises UnpicklingError or one of `UNREADABLE`."""
    with warnings.catch_warnings():
        # Torch warns of what it takes for another pickle protocol; where that matters, an error follows.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _why_not_opened(path: Path, error: pickle.UnpicklingError) -> str:
    refused = _NOT_ALLOWED.search(str(error))
    reason = f"an object of {refused[1]}" if refused else f"or is damaged: {_first_line(error)}"
    return (
        f"checkpoint {path} holds more than tensors ({reason}), and is not opened because a pickle can run code; "
        "if you trust it, save its tensors alone: "
        "torch.save({'state_dict': torch.load(old, weights_only=False)['state_dict']}, new); else fetch it again"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
