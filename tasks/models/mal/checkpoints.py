"""Checkpoints of Mask Auto-Labeler: those of NVlabs and of TAO, and folders of our own.

A folder of ours holds `model.safetensors`, whose tensors have the names of the original files, and `config.json`, which
also says what no tensor can tell.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from tasks.domain.errors import CheckpointError, SpecError
from tasks.models.checkpoint_files import read_settings
from tasks.models.mal.architecture import ARCHITECTURES, MalArchitecture
from tasks.models.mal.layouts import Role, infer, refuse_misfits, split_by_role
from tasks.models.mal.network import MalNetwork
from tasks.models.tensor_files import SUFFIXES, Tensors, listed, read_tensors

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"

_ORIGINAL_CROP_SIZE = 512  # of every published network, which no tensor tells


@dataclass(frozen=True)
class Overrides:
    """What is said about a checkpoint beside its files; None where nothing is.

    Attributes:
        arch: a name in `ARCHITECTURES`, that of the only network which is then accepted.
        adjusts_scale: as in `MalArchitecture`, like the next two; original checkpoints cannot tell, and count as
            published: True, 1 and 2.
        scale_before: see there.
        scale: see there.
    """

    arch: str | None = None
    adjusts_scale: bool | None = None
    scale_before: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class MalDescription:
    """What a checkpoint holds, without its tensors.

    Attributes:
        weights: the file with the tensors.
        architecture: of its networks.
        crop_size: side in pixels of the crops that they were trained on.
    """

    weights: Path
    architecture: MalArchitecture
    crop_size: int


def load_network(path: str | Path, weights: Role = "student", *, overrides: Overrides | None = None) -> MalNetwork:
    """One network of a checkpoint, in fp32 on the CPU and in evaluation mode, every weight of it from the file.

    Args:
        path: a `.ckpt`, `.pth` or `.pt` of NVlabs or TAO, their `.safetensors`, or a folder of `save_checkpoint`.
        weights: the network that was trained, or the moving average of it.
        overrides: what the files of NVlabs and TAO cannot tell, where it is not as published.

    Raises:
        CheckpointError: it is missing, encrypted, damaged, incomplete, or of an architecture that is not supported; or
            the network is not the `arch` that the overrides expect.
        SpecError: `arch` is not known, or the overrides make no network.
    """
    return load_mal(path, (weights,), overrides)[1][0]


def load_mal(
    path: str | Path, roles: Sequence[Role], overrides: Overrides | None = None
) -> tuple[MalDescription, list[MalNetwork]]:
    """What a checkpoint holds, and the networks for `roles`, as `load_network` gives them.

    Raises:
        CheckpointError: as `load_network`; or the network is not the `arch` that the overrides expect.
        SpecError: `arch` is not known, or the overrides make no network.
    """
    description, tensors = _read(Path(path), roles, overrides or Overrides())
    return description, [_network(description.architecture, tensors[role]) for role in roles]


def describe_mal(path: str | Path, roles: Sequence[Role], overrides: Overrides | None = None) -> MalDescription:
    """What `load_mal` would load, checked as far as names and shapes go. Raises what it raises."""
    return _read(Path(path), roles, overrides or Overrides())[0]


def save_checkpoint(
    folder: str | Path,
    networks: Mapping[Role, MalNetwork],
    crop_size: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write networks of one architecture to a folder that `load_network` reads.

    Args:
        folder: made if there is none; a checkpoint in it is replaced.
        networks: the student, the teacher, or both.
        crop_size: side in pixels of the crops that they were trained on.
        dtype: torch.float32, or torch.float16 for half of the bytes.

    Raises:
        CheckpointError: there is no network, they differ in architecture, or hold values that `dtype` has not.
        SpecError: the crop does not fit the architecture.
    """
    architectures = {network.architecture for network in networks.values()}
    if len(architectures) != 1:
        raise CheckpointError(f"found networks of {len(architectures)} architectures to save; expected one")
    (architecture,) = architectures
    architecture.refuse_crop(crop_size)
    tensors = {
        f"{role}.{name}": tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for role, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(
            f"found values that are not finite in {dtype}, in {listed(broken)}; the training has diverged, or needs "
            "torch.float32"
        )
    _write(Path(folder), tensors, _Settings(architecture=architecture, crop_size=crop_size))


class _Settings(BaseModel):
    """`config.json` of a folder of ours."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model_type: Literal["mal"] = "mal"
    format: Literal[1] = 1
    architecture: MalArchitecture
    crop_size: PositiveInt


def _write(folder: Path, tensors: Tensors, settings: _Settings) -> None:
    """The two files; the config comes last, so that its existence means that the weights are there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).unlink(missing_ok=True)
    save_file(tensors, folder / _WEIGHTS)
    content = settings.model_dump() | {"architecture": asdict(settings.architecture)}
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _read(path: Path, roles: Sequence[Role], overrides: Overrides) -> tuple[MalDescription, dict[Role, Tensors]]:
    """What there is, and the tensors of each network, of those for `roles` at least, under its own names."""
    settings = _read_folder(path) if path.is_dir() else None
    weights = path if settings is None else path / _WEIGHTS
    tensors = split_by_role(read_tensors(weights), weights)
    if absent := [role for role in roles if role not in tensors]:
        raise CheckpointError(
            f"checkpoint {path} holds no {' and no '.join(absent)}; use weights {' or '.join(tensors)}"
        )
    found = infer(tensors, weights) if settings is None else settings.architecture
    architecture = _overridden(found, overrides, path)
    for role, own in tensors.items():
        refuse_misfits(own, architecture, weights, f"{role}.")
    crop_size = _ORIGINAL_CROP_SIZE if settings is None else settings.crop_size
    return MalDescription(weights, architecture, crop_size), tensors


def _network(architecture: MalArchitecture, tensors: Tensors) -> MalNetwork:
    with torch.device("meta"):  # no numbers are drawn that the file replaces
        network = MalNetwork(architecture)
    # Copies, since the tensors may be mapped to a file that changes.
    network.load_state_dict({name: _single(tensor) for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def _single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32, copy=True).contiguous()


def _overridden(found: MalArchitecture, overrides: Overrides, path: Path) -> MalArchitecture:
    _refuse_other_arch(found, overrides.arch, path)
    said: dict[str, Any] = {name: value for name, value in asdict(overrides).items() if name != "arch"}
    return replace(found, **{name: value for name, value in said.items() if value is not None})


def _refuse_other_arch(found: MalArchitecture, arch: str | None, path: Path) -> None:
    if arch is None:
        return
    if arch not in ARCHITECTURES:
        raise SpecError(f"arch {arch!r} is not supported; expected one of {', '.join(ARCHITECTURES)}")
    names = [name for name, known in ARCHITECTURES.items() if _sizes(known) == _sizes(found)]
    if arch not in names:
        raise CheckpointError(
            f"checkpoint {path} is a network with {found.dim} channels, {found.depth} blocks and {found.heads} heads "
            f"({' or '.join(names) or 'which has no published name'}), not {arch}; correct arch, or leave it out"
        )


def _sizes(architecture: MalArchitecture) -> tuple[int, int, int]:
    return architecture.dim, architecture.depth, architecture.heads


# Folders of our own


def _read_folder(folder: Path) -> _Settings:
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        originals = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
        hint = f"; for an original checkpoint, give the file: {', '.join(originals)}" if originals else ""
        raise CheckpointError(f"checkpoint {folder} lacks {_CONFIG} or {_WEIGHTS}{hint}")
    settings, path = read_settings(folder / _CONFIG), folder / _CONFIG
    if settings.get("model_type") != "mal":
        raise CheckpointError(
            f"{path} is of a {settings.get('model_type')!r}, expected 'mal'; for another model set segmenter"
        )
    if settings.get("format") != 1:
        raise CheckpointError(f"{path} is of format {settings.get('format')!r}, expected 1; update this package")
    try:
        return _Settings.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise CheckpointError(f"{path} cannot be used ({listed(problems)}); save the checkpoint again") from error
    except SpecError as error:
        raise CheckpointError(f"{path} cannot be used ({error}); save the checkpoint again") from error
