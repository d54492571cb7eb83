"""failures.jsonl: the images that could not be labelled, and why."""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.domain.images import Failure
from tasks.formats.json_lines import dump_line, field, parse_lines


def dump_failures(failures: Iterable[Failure]) -> bytes:
    """One line per failure, `{"image": key, "stage": ..., "reason": ...}`, sorted; no failure makes an empty file."""
    return b"".join(dump_line(failure_entry(failure)) for failure in sorted(failures))


def load_failures(data: bytes) -> tuple[Failure, ...]:
    """The failures in the order of their lines.

    Raises:
        FormatError: Lists the bad lines.
    """
    return tuple(parse_lines(data, parse_failure, "failures.jsonl"))


def failure_entry(failure: Failure) -> dict[str, str]:
    """A failure as a JSON object."""
    return {"image": failure.image, "stage": failure.stage, "reason": failure.reason}


def parse_failure(entry: Mapping[str, Any]) -> Failure:
    """The failure of a JSON object; ValueError when a field is missing."""
    return Failure(field(entry, "image", str), field(entry, "stage", str), field(entry, "reason", str))
