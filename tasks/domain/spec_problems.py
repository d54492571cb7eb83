"""Every problem of a spec at once: where, what was found, what is expected."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Json
from tasks.domain.errors import SpecError
from tasks.domain.spec_fields import PLACEHOLDER, REFUSAL, REQUIREMENT, SpecBlock, blocks_in

Block = TypeVar("Block", bound=SpecBlock)
Path = tuple[str | int, ...]

SECRET_KEYS = ("storage_options",)  # top-level keys whose values are shown nowhere
MASK = "***"  # stands for a secret in what is written down

_LONGEST_SHOWN = 80  # characters of a value in a message
_MOST_LISTED = 12  # known keys in a message: a block with more is looked up in docs/spec.md

_EXPECTED = {
    "missing": "a value (required)",
    "string_type": "text (in quotes where YAML would read a number, a date or true/false)",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "union_tag_not_found": "a key {discriminator} in it",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    REFUSAL: "{expected}",
    REQUIREMENT: "{expected}",
}


@dataclass(frozen=True)
class Problem:
    """One thing to mend: the dotted path of the key (empty for the whole spec), and the statement about it."""

    path: str
    statement: str

    def __str__(self) -> str:
        return f"{self.path}: {self.statement}" if self.path else self.statement


def spec_error(source: str, problems: Sequence[Problem]) -> SpecError:
    """The error that lists `problems` of the spec from `source`, one a line."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return SpecError("\n  ".join([f"{source} has {count}:", *map(str, problems)]))


def examine(block: type[Block], data: Mapping[str, Any]) -> tuple[Block | None, tuple[Problem, ...]]:
    """The spec that `data` makes and no problem, or None and every problem.

    Pydantic looks at how keys fit together only once each is well-formed. So what is wrong is left out and the rest
    looked at again, until nothing new is found; what follows from a problem that is told already is not told again.
    """
    problems: dict[Path, Problem] = {}
    rest: Mapping[Any, Any] = data
    while True:
        try:
            spec = block.model_validate(rest)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (None, tuple(problems.values())) if problems else (spec, ())
        located = [_locate(block, detail) for detail in details]
        problems |= _news(block, located, tuple(problems))
        smaller = reduce(_without, [_nearest(rest, at.path) for at in located], rest)
        if smaller == rest or any(detail["type"] == REQUIREMENT for detail in details):
            return None, tuple(problems.values())
        rest = smaller


def shown(path: Path, value: object) -> str:
    """How a message shows a value: shortened, blocks and lists by name only, secrets and passwords in URLs never."""
    if path and path[0] in SECRET_KEYS:
        return "a value that is not shown"
    if isinstance(value, Mapping):
        return "a block of keys"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    value = without_passwords(value)
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def masked(value: Any) -> Json:
    """What may be shown of secrets: blocks and lists with their keys, and `MASK` in place of every value in them."""
    if isinstance(value, Mapping):
        return {str(key): masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else MASK


def without_passwords(value: Any) -> Any:
    """`value`, a block, a list or a single value, with `MASK` in place of the password of every URL in it."""
    if isinstance(value, Mapping):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_passwords(item) for item in value]
    return without_password(value) if isinstance(value, str) else value


class _Located(NamedTuple):
    """An error of pydantic, its path in the user's words, and the blocks that the last key was looked up in."""

    path: Path
    parents: tuple[type[SpecBlock], ...]
    detail: ErrorDetails


def _news(root: type[SpecBlock], located: Sequence[_Located], told: Sequence[Path]) -> dict[Path, Problem]:
    news: dict[Path, Problem] = {}
    for at in located:
        follows = any(_overlap(at.path, cause) for cause in told)
        is_about_a_part = any(_is_inside(other.path, at.path) for other in located)
        if not follows and not is_about_a_part:
            news.setdefault(at.path, _problem(root, at))
    return news


def _problem(root: type[SpecBlock], at: _Located) -> Problem:
    dotted = ".".join(map(str, at.path))
    kind, found = at.detail["type"], at.detail["input"]
    if kind == "extra_forbidden":
        return Problem(dotted, f"unknown key; {_suggestion(dotted, at.parents, root)}")
    if kind == "invalid_key":
        return Problem(dotted, f"found the key {at.path[-1]!r}, expected text")
    expected = _EXPECTED.get(kind, at.detail["msg"]).format(**at.detail.get("ctx", {}))
    if found == PLACEHOLDER:
        return Problem(dotted, f"fill in: found {PLACEHOLDER}, expected {expected}")
    return Problem(dotted, f"found {shown(at.path, None if kind == 'missing' else found)}, expected {expected}")


def _suggestion(dotted: str, parents: tuple[type[SpecBlock], ...], root: type[SpecBlock]) -> str:
    key = dotted.rpartition(".")[2]
    known = sorted({name for parent in parents for name in parent.model_fields})
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {close[0]}?"
    if elsewhere := [name for name in _dotted_keys(root) if name.rpartition(".")[2] == key and name != dotted]:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(known)}" if len(known) <= _MOST_LISTED else "docs/spec.md lists the known ones"


def _dotted_keys(block: type[SpecBlock], prefix: str = "") -> list[str]:
    keys = []
    for name, field in block.model_fields.items():
        keys.append(prefix + name)
        for inner in blocks_in(field.annotation):
            keys += _dotted_keys(inner, f"{prefix}{name}.")
    return keys


def _locate(root: type[SpecBlock], detail: ErrorDetails) -> _Located:
    """Where an error is, without the member of a union that pydantic tried: the user has written that nowhere."""
    path: list[str | int] = []
    inside: tuple[type[SpecBlock], ...] = (root,)
    looked_up_in = inside
    for part in detail["loc"]:
        fields = [block.model_fields[part].annotation for block in inside if part in block.model_fields]
        if not fields and isinstance(part, str) and len(inside) > 1:
            inside = tuple(block for block in inside if _is_chosen_by(part, block))
        elif fields or inside or isinstance(part, int):
            path.append(part)
            looked_up_in = inside
            inside = blocks_in(fields[0]) if fields else inside
    return _Located(tuple(path), looked_up_in, detail)


def _is_chosen_by(tag: str, block: type[SpecBlock]) -> bool:
    return any(tag in get_args(field.annotation) for field in block.model_fields.values())


def _overlap(path: Path, other: Path) -> bool:
    return path == other or _is_inside(path, other) or _is_inside(other, path)


def _is_inside(path: Path, outer: Path) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _nearest(data: Mapping[Any, Any], path: Path) -> Path:
    """As much of `path` as leads to something in `data`; a list is not entered."""
    nearest: list[str | int] = []
    inside: object = data
    for key in path:
        if not isinstance(inside, Mapping) or key not in inside:
            break
        nearest.append(key)
        inside = inside[key]
    return tuple(nearest)


def _without(data: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    """`data` without the value at `path`, or as it is if there is none."""
    if not path or path[0] not in data:
        return data
    if len(path) > 1:
        return {**data, path[0]: _without(data[path[0]], path[1:])}
    return {key: value for key, value in data.items() if key != path[0]}
