"""What the commands of the command line have in common: their help, and what their exit status says."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

# argparse has no public name for what `add_subparsers` returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

DONE, MENDABLE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130
STATUS_HELP = "exit status: 0 done, 1 a fault of ours, 2 something to mend, 3 done but some images failed"


def add_command(
    commands: Commands,
    name: str,
    command: Callable[[argparse.Namespace], int],
    purpose: str,
    example: str,
    status: str = STATUS_HELP,
) -> argparse.ArgumentParser:
    """The parser of a new command, which has no arguments yet.

    Args:
        commands: Where the command is added.
        name: What the command is called.
        command: Does it; gets the parsed arguments and returns the exit status.
        purpose: What it is for: part of a sentence, without a full stop.
        example: A whole command line.
        status: What the exit statuses mean.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  {example}\n\n{status}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser
