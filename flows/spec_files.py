"""Spec files: the user's own by path, and those that ship by bare name."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from tasks.domain.errors import SpecError
from tasks.domain.spec import ExperimentSpec
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.formats.spec_yaml import parse_root, parse_spec

# In a wheel the specs lie inside this package, in a checkout beside it.
_FOLDERS = (Path(__file__).parent / "specs", Path(__file__).parents[1] / "specs")
_TRAINING = "train_"  # how the names of shipped specs begin that train; the others label


def read_spec(path_or_name: str, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """The spec in a YAML file, after the `key.sub=value` overrides.

    A path is relative to the current directory, and a file there always goes first. A bare name (no folder, no suffix)
    that is no file means the spec of that name that ships. Paths inside the spec are relative to the current directory.

    Raises SpecError for a file that cannot be read, and with every problem of the spec.
    """
    path, text = _read(path_or_name, shipped_specs())
    return parse_spec(text, overrides, source=str(path))


def read_train_mal_spec(path_or_name: str, overrides: Sequence[str] = ()) -> TrainMalSpec:
    """The spec of a training of Mask Auto-Labeler, found and read as by `read_spec`."""
    path, text = _read(path_or_name, shipped_training_specs())
    return parse_root(TrainMalSpec, text, overrides, source=str(path))


def shipped_specs() -> dict[str, Path]:
    """The specs of labelling that ship: name to file, sorted by name."""
    return {name: path for name, path in _shipped().items() if not name.startswith(_TRAINING)}


def shipped_training_specs() -> dict[str, Path]:
    """The specs of training that ship: name to file, sorted by name."""
    return {name: path for name, path in _shipped().items() if name.startswith(_TRAINING)}


def _shipped() -> dict[str, Path]:
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read(path_or_name: str, shipped: dict[str, Path]) -> tuple[Path, str]:
    path = _spec_path(path_or_name, shipped)
    try:
        return path, path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"The spec {path} cannot be read: {reason}.") from error


def _spec_path(path_or_name: str, shipped: dict[str, Path]) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    is_bare_name = path.name == path_or_name and not path.suffix
    if is_bare_name and path_or_name in shipped:
        return shipped[path_or_name]
    raise SpecError(_not_found(path, list(shipped)))


def _not_found(path: Path, names: Sequence[str]) -> str:
    found = "is a folder" if path.is_dir() else "does not exist"
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f" Did you mean `-e {close[0]}`, which ships?" if close else ""
    return f"The spec {path} {found} (looked from {Path.cwd()}).{hint} Specs that ship: {', '.join(names)}."
