"""Experiment specs as YAML text, and the `key.sub=value` overrides of their keys."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from tasks.domain.addresses import without_password
from tasks.domain.artifacts import Json
from tasks.domain.spec import ExperimentSpec
from tasks.domain.spec_fields import SpecBlock, is_unused
from tasks.domain.spec_problems import SECRET_KEYS, Problem, examine, masked, shown, spec_error, without_passwords

Spec = TypeVar("Spec", bound=SpecBlock)

# YAML 1.1, which PyYAML reads, takes 2e-4 for text; YAML 1.2 (section 10.3.2) and OmegaConf, which reads TAO's specs,
# take it for a number.
_FLOAT_WITHOUT_POINT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def parse_spec(text: str, overrides: Sequence[str] = (), *, source: str) -> ExperimentSpec:
    """The experiment spec in the YAML `text` after the `overrides`; see `parse_root`."""
    return parse_root(ExperimentSpec, text, overrides, source=source)


def parse_root(kind: type[Spec], text: str, overrides: Sequence[str] = (), *, source: str) -> Spec:
    """The spec in the YAML `text` after the `overrides`. Raises SpecError with every problem; `source` names the text.

    `kind` is the outermost block of such specs. An override is `key.sub=value`: the value is YAML (types, quotes, lists
    and spaces as there), and a number in the key is an index, counted from 0, into a list that is in the text. A later
    override goes before an earlier one.
    """
    problems: list[Problem] = []
    data = _read_yaml(text, problems)
    for override in overrides:
        data = _overridden(data, override, problems)
    spec, more = (None, ()) if data is None else _examined(kind, data)
    if spec is None or problems:
        raise spec_error(source, [*problems, *more])
    return spec


def _examined(kind: type[Spec], data: object) -> tuple[Spec | None, tuple[Problem, ...]]:
    if not isinstance(data, Mapping):
        return None, (Problem("", f"found {shown((), data)}, expected a block of keys"),)
    return examine(kind, data)


def spec_as_dict(spec: SpecBlock) -> dict[str, Json]:
    """`spec` as JSON-able values, with the values of `storage_options` and the passwords in URLs masked.

    It holds every key that something here reads, defaults too, and of the others those that the user has set.
    """
    plain = _plain_block(spec)
    return {key: masked(value) if key in SECRET_KEYS else without_passwords(value) for key, value in plain.items()}


class _SpecLoader(yaml.SafeLoader):
    """PyYAML's safe loader that notes keys standing twice, of which YAML would silently take the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[Problem] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Not when the block is constructed: what it merges with `<<`, and may override, stands among its keys by then.
        node = super().compose_mapping_node(anchor)
        self.repeated += _repeated_keys(node)
        return node


def _repeated_keys(node: yaml.MappingNode) -> Iterator[Problem]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                place = f"line {lines[key.value]}" if lines[key.value] != line else "the same line"
                yield Problem(f"line {line}", f"the key {key.value} is already in {place}; remove one of the two")
            lines.setdefault(key.value, line)


_SpecLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+0123456789"))


def _read_yaml(text: str, problems: list[Problem]) -> Any:
    """The value of the text, an empty block for no text, or None (and a problem) where the text is not YAML."""
    try:
        data, repeated = _load(text)
    except yaml.YAMLError as error:
        problems.append(_syntax_problem(error))
        return None
    problems += repeated
    return {} if data is None else data


def _load(text: str) -> tuple[Any, list[Problem]]:
    loader = _SpecLoader(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    # Not the snippet that PyYAML would show as well: the line may hold a secret.
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return Problem(f"line {mark.line + 1}, column {mark.column + 1}", f"this is not YAML: {error.problem}")
    return Problem("", f"this is not YAML: {error}")


def _overridden(data: Any, override: str, problems: list[Problem]) -> Any:
    """`data` after the override, or unchanged where the override is not one (and a problem)."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        shown = path if equals or keys[0] not in SECRET_KEYS else keys[0]
        problems.append(Problem(without_password(shown), "found an override that is not of the form key.sub=value"))
        return data
    try:
        value, repeated = _load(text)
        problems += (Problem(path, problem.statement) for problem in repeated)
        return _replaced(data, keys, value) if isinstance(data, dict) else data
    except yaml.YAMLError:
        problems.append(
            Problem(path, "the value of this override is not YAML; text with special characters in it needs quotes")
        )
    except LookupError as error:
        problems.append(Problem(path, str(error.args[0])))
    return data


def _replaced(node: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy of `node` with `value` at `keys`: in place, an anchor of YAML would change wherever it is used."""
    if not keys:
        return value
    key, below = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise LookupError(f"found {key}, expected an index into a list of {len(node)}, counted from 0")
        index = int(key)
        return [*node[:index], _replaced(node[index], below, value), *node[index + 1 :]]
    if node is not None and not isinstance(node, dict):
        raise LookupError(f"found {key} below a value that is not a block of keys")
    block = node or {}
    return {**block, key: _replaced(block.get(key), below, value)}


def _plain_block(block: SpecBlock) -> dict[str, Json]:
    return {
        name: _plain(getattr(block, name))
        for name, field in type(block).model_fields.items()
        if name in block.model_fields_set or not is_unused(field)
    }


def _plain(value: Any) -> Json:
    if isinstance(value, SpecBlock):
        return _plain_block(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value  # type: ignore[no-any-return]
