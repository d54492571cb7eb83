"""JSON lines: one object a line, written as ASCII, read with the number of every bad line."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tasks.domain.errors import FormatError

Parsed = TypeVar("Parsed")

PROBLEMS_SHOWN = 20  # a file of another kind is bad in every line; more lines than these tell nothing new


def dump_line(value: Mapping[str, Any]) -> bytes:
    """One object and a newline, keys in their order.

    ASCII, because readers open such files in their platform's encoding, and because the escapes also carry file names
    that are no valid Unicode.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse_lines(data: bytes, parse: Callable[[Mapping[str, Any]], Parsed], source: str) -> list[Parsed]:
    """What `parse` makes of the object of every line; blank lines are skipped.

    Args:
        data: The file: UTF-8, with or without a byte order mark.
        parse: Raises ValueError with a reason that starts with the field ("'caption' is 7, expected a string").
        source: The name of the file, for the message.

    Raises:
        FormatError: Lists the bad lines with their numbers, from 1.
    """
    parsed: list[Parsed] = []
    problems: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                parsed.append(parse(_object(line)))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        raise FormatError(_summary(problems, source))
    return parsed


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line.decode())
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"is {_short(value)}, expected an object in braces")
    return value


def _summary(problems: list[str], source: str) -> str:
    hidden = len(problems) - PROBLEMS_SHOWN
    more = [f"and {hidden} more bad lines"] if hidden > 0 else []
    return "\n  ".join([f"{source} cannot be read:", *problems[:PROBLEMS_SHOWN], *more])


_WORDS = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object in braces"}


def field(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    """The value under `name`, which has to be of this kind (str, int, float, list or dict).

    Raises:
        ValueError: The field is missing or of another kind; the message is a reason for `parse_lines`.
    """
    if name not in entry:
        raise ValueError(f"has no {name!r}, expected {_WORDS[kind]} there")
    value = entry[name]
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name!r} is {_short(value)}, expected {_WORDS[kind]}")
    return value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
