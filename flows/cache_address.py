"""Which cache a command means."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.spec_files import read_spec
from tasks.cache_contents import Contents
from tasks.domain.addresses import without_password
from tasks.domain.errors import ArtifactError, SpecError
from tasks.domain.spec_root import SpecRoot
from tasks.formats.spec_yaml import parse_root
from tasks.registered_runs import RUNS, RunRegister
from tasks.storage.folder import Folder, MissingFileError
from tasks.store import ArtifactStore

OWN_CACHE = "cache"  # in results_dir, where the spec names no cache_dir


def cache_of_spec(path_or_name: str, overrides: Sequence[str]) -> ArtifactStore:
    """The cache of the runs of a spec. Raises SpecError for a spec that cannot be used."""
    spec = read_spec(path_or_name, overrides)
    return ArtifactStore(spec.cache_dir or _inside(spec.results_dir, OWN_CACHE), spec.storage_options)


def cache_of_address(address: str, overrides: Sequence[str]) -> ArtifactStore:
    """The cache at a path or URL, or that of the results_dir there.

    `overrides` are `storage_options.key=value`. A results_dir has the cache that its run.json names, or its own.

    Raises:
        SpecError: the address is empty, or an override is wrong.
        ArtifactError: the address cannot be read.
    """
    if not address:
        raise SpecError("found an empty ADDRESS, expected a results_dir or a cache_dir")
    options = parse_root(SpecRoot, "", overrides, source="The command line").storage_options
    folder = Folder(address, options)
    names = folder.names()
    if RUNS in names and RunRegister(ArtifactStore(address, options)).files():
        return ArtifactStore(address, options)
    if (named := _named_in_record(folder)) is not None:
        store = ArtifactStore(named, options)
        if "://" not in named and not Path(named).expanduser().is_absolute():
            _refuse_one_of_others(store, address)
        return store
    return ArtifactStore(_inside(address, OWN_CACHE) if OWN_CACHE in names else address, options)


def refuse_no_cache(store: ArtifactStore, contents: Contents) -> None:
    """Raise ArtifactError where nothing in a folder is of a cache, and it is not an emptied one either."""
    if contents.artifacts or contents.left_behind or contents.register:
        return
    if contents.foreign or not Folder(store.uri, store.storage_options).names():
        found = f"{contents.foreign} files that are none of a cache" if contents.foreign else "nothing"
        raise ArtifactError(
            f"there is no cache at {without_password(store.uri)}: found {found}, expected the results_dir of a run, or "
            "its cache_dir"
        )


def _refuse_one_of_others(store: ArtifactStore, results_dir: str) -> None:
    """Raise ArtifactError where a relative cache_dir leads to another cache from here than from where the run was."""
    register, results = RunRegister(store), without_password(results_dir)
    if not any(register.is_over(results_dir, entry) for entry in register.entries()):
        raise ArtifactError(
            f"run.json in {results} names the cache_dir {store.uri!r}, relative to where that run was started, and no "
            f"run over {results} is registered in {Path(store.uri).absolute()}; go to that folder, or give the "
            "cache_dir itself"
        )


def _named_in_record(results: Folder) -> str | None:
    """The cache_dir in the run.json of a run; None where there is none, or no such file."""
    try:
        record = json.loads(results.read("run.json"))
    except (MissingFileError, ValueError, RecursionError):
        return None
    spec = record.get("spec") if isinstance(record, Mapping) else None
    named = spec.get("cache_dir") if isinstance(spec, Mapping) else None
    return named if isinstance(named, str) else None


def _inside(address: str, name: str) -> str:
    return f"{address}{name}" if address.endswith("/") else f"{address}/{name}"
