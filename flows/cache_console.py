"""What a person at a terminal sees of a cache: the runs that use it, what is in it, and what goes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from flows.console import errors, output
from tasks.cache_contents import Contents, Holding, RunNeeds, by_kind, holding_of, total_bytes
from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Json
from tasks.housekeeping import Pruning, Verification
from tasks.progress import listening
from tasks.registered_runs import DamagedEntry, RunEntry
from tasks.storage.folder import StoredFile
from tasks.store import ArtifactStore

SHOWN = 20  # damaged files that are named: enough to see what happened; the others are counted
RESULTS = {True: "there", False: "gone", None: "unknown"}  # whether a results_dir has anything in it
UNFINISHED = "not finished"


@contextmanager
def artifact_bars() -> Iterator[None]:
    """Show a bar for every stage that reports progress meanwhile; nothing where the output is not a terminal."""
    if not errors.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress, listening(_Bars(progress)):
        yield


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def begin(self, stage: str, total: int | None) -> None:
        self._bars[stage] = self._progress.add_task(stage, total=total)

    def advance(self, stage: str, number: int) -> None:
        self._progress.advance(self._bars[stage], number)


def print_contents(store: ArtifactStore, contents: Contents, results: Sequence[bool | None]) -> None:
    """The registered runs, what there is of each kind, and what else lies there.

    `results` says of each run whether anything is in its results_dir, None where that is not known.
    """
    output.print(f"cache: {without_password(store.uri)}, {decimal(contents.bytes)}", soft_wrap=True)
    if contents.runs:
        table = _table("results_dir", "flow", "state", "needs", "size", "results")
        for run, there in zip(contents.runs, results, strict=True):
            _add_row(table, *_run_cells(run), RESULTS[there])
        output.print(table)
    if contents.artifacts:
        output.print(_kinds_table(contents))
    _print_rest(contents)


def _run_cells(run: RunNeeds) -> Sequence[str]:
    entry = run.entry
    where = entry.results_dir if entry.machine is None else f"{entry.results_dir} on {entry.machine}"
    missing = run.needed - run.there
    needs = f"{run.needed} ({missing} missing)" if missing else f"{run.needed}"
    return where, entry.flow, "finished" if entry.state == "finished" else UNFINISHED, needs, decimal(run.bytes)


def _kinds_table(contents: Contents) -> Table:
    table = _table("kind", "artifacts", "size", "unreferenced", "oldest", "newest")
    everything, free = by_kind(contents.artifacts), by_kind(contents.unreferenced)
    none = holding_of(())
    for kind, holding in everything.items():
        _add_row(table, kind, *_holding_cells(holding, free.get(kind, none)))
    table.add_section()
    _add_row(table, "all", *_holding_cells(holding_of(contents.artifacts), holding_of(contents.unreferenced)))
    return table


def _holding_cells(holding: Holding, free: Holding) -> Sequence[str]:
    unreferenced = f"{free.artifacts}, {decimal(free.bytes)}" if free.artifacts else "0"
    times = (_date(holding.oldest), _date(holding.newest))
    return str(holding.artifacts), decimal(holding.bytes), unreferenced, *times


def _print_rest(contents: Contents) -> None:
    """What is no artifact, and what cannot be read."""
    if not contents.runs and not contents.damaged:
        output.print("no run is registered here: nothing in this cache is known to be needed")
    for files, what in (
        (contents.orphans, "data without a manifest"),
        (contents.temporaries, "temporary files that killed runs left"),
    ):
        if files:
            output.print(f"{what}: {_counted(files)}; prune deletes them")
    _print_damaged_entries(contents)
    if contents.foreign:
        output.print(f"files of other kinds: {contents.foreign}; they are left alone")


def _print_damaged_entries(contents: Contents) -> None:
    for entry in contents.damaged:
        output.print(
            f"cut or changed: {entry.path}; what its run needs is not known, and nothing can be pruned until that run "
            "is repeated",
            soft_wrap=True,
        )


def contents_as_json(store: ArtifactStore, contents: Contents, results: Sequence[bool | None]) -> Mapping[str, Json]:
    """What `print_contents` prints: sizes in bytes, times in POSIX seconds, null for what is not known."""
    free = by_kind(contents.unreferenced)
    return {
        "cache": without_password(store.uri),
        "bytes": contents.bytes,
        "runs": [_run_as_json(run, there) for run, there in zip(contents.runs, results, strict=True)],
        "damaged_runs": [entry.path for entry in contents.damaged],
        "kinds": {
            kind: _kind_as_json(holding, free.get(kind)) for kind, holding in by_kind(contents.artifacts).items()
        },
        "orphans": {"files": len(contents.orphans), "bytes": total_bytes(contents.orphans)},
        "temporaries": {"files": len(contents.temporaries), "bytes": total_bytes(contents.temporaries)},
        "other_files": contents.foreign,
    }


def _run_as_json(run: RunNeeds, there: bool | None) -> Json:
    entry = run.entry
    return {
        "results_dir": entry.results_dir,
        "machine": entry.machine,
        "flow": entry.flow,
        "finished": entry.state == "finished",
        "needs": run.needed,
        "missing": run.needed - run.there,
        "bytes": run.bytes,
        "results_there": there,
    }


def _kind_as_json(holding: Holding, free: Holding | None) -> Json:
    return {
        "artifacts": holding.artifacts,
        "bytes": holding.bytes,
        "unreferenced": free.artifacts if free else 0,
        "unreferenced_bytes": free.bytes if free else 0,
        "oldest": holding.oldest or None,
        "newest": holding.newest or None,
    }


def print_verification(found: Verification) -> None:
    """What was read, every file that is not sound, and what becomes of it."""
    contents = found.contents
    output.print(f"artifacts read: {len(contents.artifacts)}; damaged: {len(found.damaged)}")
    for line in found.damaged[:SHOWN]:
        output.print(f"  {line}", soft_wrap=True)
    if len(found.damaged) > SHOWN:
        output.print(f"  and {len(found.damaged) - SHOWN} more")
    if contents.missing:
        output.print(f"missing: {len(contents.missing)} artifacts that registered runs need")
    if contents.orphans:
        output.print(f"data without a manifest: {_counted(contents.orphans)}; they harm no run, and prune deletes them")
    _print_damaged_entries(contents)
    if found.damaged or contents.missing:
        output.print("what is damaged or missing is noticed and made again by the next run that needs it")


def print_pruning(store: ArtifactStore, pruning: Pruning, *, is_done: bool, most_bytes: int | None) -> None:
    """What goes and what stays of each kind, and why no more goes; `most_bytes` is the size that was asked for."""
    output.print(f"cache: {without_password(store.uri)}", soft_wrap=True)
    for entry in pruning.forgotten:
        output.print(f"forgotten: {_run_name(entry)}", soft_wrap=True)
    if pruning.contents.artifacts:
        output.print(_pruning_table(pruning, "deleted" if is_done else "would go"))
    if pruning.contents.left_behind:
        output.print(f"left behind by runs, goes too: {_counted(pruning.contents.left_behind)}")
    _print_why_it_stays(pruning, most_bytes)
    freed, stays = decimal(pruning.freed), decimal(pruning.stays)
    if is_done:
        output.print(f"deleted: {freed}; the cache takes {stays}")
    else:
        output.print(
            f"nothing was deleted; the same command with --yes deletes {freed}, and {stays} stay", soft_wrap=True
        )


def _pruning_table(pruning: Pruning, goes: str) -> Table:
    table = _table("kind", goes, "size", "stays", "size")
    going = {(artifact.kind, artifact.key) for artifact in pruning.artifacts}
    staying = [one for one in pruning.contents.artifacts if (one.kind, one.key) not in going]
    gone, kept, none = by_kind(pruning.artifacts), by_kind(staying), holding_of(())
    for kind in by_kind(pruning.contents.artifacts):
        _add_row(table, kind, *_two_holdings(gone.get(kind, none), kept.get(kind, none)))
    table.add_section()
    _add_row(table, "all", *_two_holdings(holding_of(pruning.artifacts), holding_of(staying)))
    return table


def _two_holdings(goes: Holding, stays: Holding) -> Sequence[str]:
    return str(goes.artifacts), decimal(goes.bytes), str(stays.artifacts), decimal(stays.bytes)


def _print_why_it_stays(pruning: Pruning, most_bytes: int | None) -> None:
    contents = pruning.contents
    if not contents.runs and not pruning.forgotten:
        output.print("no run is registered here: nothing in this cache is known to be needed")
    if recent := contents.recent:
        unfinished = ", ".join(_run_name(run.entry) for run in contents.runs if run.entry.since is not None)
        output.print(
            f"kept for runs that did not finish: {len(recent)} artifacts, {decimal(holding_of(recent).bytes)}, which "
            f"they may have made; repeat or --forget: {unfinished}",
            soft_wrap=True,
        )
    if most_bytes is not None and pruning.stays > most_bytes:
        output.print(
            f"the cache stays larger than {decimal(most_bytes)}: registered runs need the rest; --forget those that "
            "you will not repeat",
            soft_wrap=True,
        )


def _run_name(entry: RunEntry | DamagedEntry) -> str:
    return f"{entry.results_dir} ({entry.flow})" if isinstance(entry, RunEntry) else entry.path


def _counted(files: Sequence[StoredFile]) -> str:
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}, {decimal(total_bytes(files))}"


def _date(posix_seconds: float) -> str:
    return f"{datetime.fromtimestamp(posix_seconds).astimezone():%Y-%m-%d}" if posix_seconds else "-"


def _table(*head: str) -> Table:
    return Table(*(Column(title, overflow="fold") for title in head))


def _add_row(table: Table, *cells: str) -> None:
    """Add the cells as they read: rich would take text in brackets for markup in a plain string."""
    table.add_row(*(Text(cell) for cell in cells))
