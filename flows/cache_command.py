"""The commands `autolabel cache ls | verify | prune`."""

import argparse
import json
import re
import time

from flows.cache_address import cache_of_address, cache_of_spec, refuse_no_cache
from flows.commands import DONE, SOME_FAILED, Commands, add_command
from tasks.cache_contents import survey
from tasks.domain.errors import SpecError
from tasks.housekeeping import Choice, beyond_size, older_than, plan_pruning, prune, unreferenced, verify
from tasks.registered_runs import RunRegister
from tasks.store import ArtifactStore

STATUS_HELP = "exit status: 0 done, 1 a fault of ours, 2 something to mend"
VERIFY_STATUS_HELP = f"{STATUS_HELP}, 3 something is damaged or missing; the next run makes it again"
AGES = {"d": 86_400, "h": 3_600}  # seconds
SIZES = {
    **{f"{prefix}b": 1000**power for power, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), start=1)},
}  # bytes


def add_cache(commands: Commands) -> None:
    """Add `autolabel cache` with its commands."""
    purpose = "look into the cache of runs, check it, and delete what no run needs"
    parser = commands.add_parser(
        "cache",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}. docs/cache.md says what is in a cache, and what a run needs.",
        epilog=f"example:\n  autolabel cache ls out\n\n{STATUS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_ls(actions)
    _add_verify(actions)
    _add_prune(actions)


def _add_ls(actions: Commands) -> None:
    purpose = "say which runs use a cache, and what is in it: how many artifacts of each kind, how large, how old"
    parser = add_command(actions, "ls", _ls, purpose, "autolabel cache ls out", STATUS_HELP)
    _add_address(parser)
    parser.add_argument(
        "--json", action="store_true", help="print JSON in place of tables: sizes in bytes, times in seconds since 1970"
    )


def _add_verify(actions: Commands) -> None:
    purpose = "read every artifact of a cache and compare it with its digest"
    parser = add_command(actions, "verify", _verify, purpose, "autolabel cache verify out", VERIFY_STATUS_HELP)
    _add_address(parser)


def _add_prune(actions: Commands) -> None:
    purpose = "delete artifacts that no run over a registered results_dir needs, and what killed runs have left behind"
    example = "autolabel cache prune out --older-than 30d --yes"
    parser = add_command(actions, "prune", _prune, purpose, example, STATUS_HELP)
    _add_address(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--unreferenced", action="store_true", help="all that no registered run needs (the default)")
    which.add_argument(
        "--older-than",
        type=_age,
        metavar="AGE",
        help="of those, only what was written longer ago: days or hours, such as 30d or 12h",
    )
    which.add_argument(
        "--to-size",
        type=_size,
        metavar="SIZE",
        help="of those, the oldest, until the cache takes no more than this: a number with its unit, kB, MB, GB or TB "
        "(powers of 1000), KiB, MiB, GiB or TiB (powers of 1024), such as 20GB",
    )
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="RESULTS_DIR",
        help="keep nothing on behalf of the runs over this results_dir any more; may be given several times",
    )
    parser.add_argument("--yes", action="store_true", help="delete; without it nothing is, and what would go is told")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="a results_dir, for the cache of its runs, or a cache_dir: path or fsspec URL",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="storage_options.key=value, for a URL that needs them; secrets are better kept in a spec",
    )
    parser.add_argument(
        "-e",
        "--experiment-spec",
        metavar="SPEC",
        help="in place of ADDRESS: the cache of the runs of this spec, with its storage_options; key=value changes it",
    )


def _age(text: str) -> float:
    return _quantity(text, AGES, "a number of days or hours, such as 30d or 12h")


def _size(text: str) -> int:
    return int(_quantity(text, SIZES, "a number of bytes with its unit, such as 500MB, 20GB or 1.5TiB"))


def _quantity(text: str, units: dict[str, int], expected: str) -> float:
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([a-z]+)", text.strip().lower())
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return float(match[1]) * units[match[2]]


def _store(options: argparse.Namespace) -> ArtifactStore:
    if options.experiment_spec is not None:
        return cache_of_spec(options.experiment_spec, [*filter(None, [options.address]), *options.overrides])
    if options.address is None:
        raise SpecError("found neither ADDRESS nor -e SPEC, expected one of them, which says what cache is meant")
    return cache_of_address(options.address, options.overrides)


def _ls(options: argparse.Namespace) -> int:
    from flows.cache_console import contents_as_json, print_contents

    store = _store(options)
    contents = survey(store)
    refuse_no_cache(store, contents)
    results = [RunRegister(store).has_results(run.entry) for run in contents.runs]
    if options.json:
        print(json.dumps(contents_as_json(store, contents, results), indent=2))
    else:
        print_contents(store, contents, results)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from flows.cache_console import artifact_bars, print_verification

    store = _store(options)
    with artifact_bars():
        found = verify(store)
    refuse_no_cache(store, found.contents)
    print_verification(found)
    return DONE if found.is_sound else SOME_FAILED


def _prune(options: argparse.Namespace) -> int:
    from flows.cache_console import artifact_bars, print_pruning

    store = _store(options)
    with artifact_bars():
        pruning = (prune if options.yes else plan_pruning)(store, _choice(options), options.forget)
    refuse_no_cache(store, pruning.contents)
    print_pruning(store, pruning, is_done=options.yes, most_bytes=options.to_size)
    return DONE


def _choice(options: argparse.Namespace) -> Choice:
    if options.older_than is not None:
        return older_than(time.time() - options.older_than)
    if options.to_size is not None:
        return beyond_size(options.to_size)
    return unreferenced
