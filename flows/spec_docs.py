"""Writes what is made from the models of the specs: JSON schemas for editors, and pages for readers.

`python -m flows.spec_docs` writes `specs/schema.json` and `docs/spec.md` (labelling), `specs/schema_train_mal.json` and
`docs/spec_train_mal.md` (training) in a checkout; with `--check` it writes nothing and exits 1 where one is stale.
"""

import json
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticUndefined

from tasks.domain.spec import ExperimentSpec
from tasks.domain.spec_fields import Origin, SpecBlock, blocks_in, is_unused
from tasks.domain.spec_train_mal import TrainMalSpec

_CHECKOUT = Path(__file__).parents[1]
SCHEMA_FILE = _CHECKOUT / "specs" / "schema.json"
PAGE_FILE = _CHECKOUT / "docs" / "spec.md"
TRAINING_SCHEMA_FILE = _CHECKOUT / "specs" / "schema_train_mal.json"
TRAINING_PAGE_FILE = _CHECKOUT / "docs" / "spec_train_mal.md"

_INTRODUCTION = """\
<!-- Made by `python -m flows.spec_docs` from tasks/domain/spec*.py; do not edit. -->

# The experiment spec

A YAML file, or the name of one that ships (`-e demo`). A spec of TAO Auto-Label runs as it is: keys marked *TAO* have
the name, the place and the meaning that they have there. Keys without the mark are this project's own. Keys of TAO that
nothing here reads are accepted, checked for their type, and named in one line when a run starts.

Any key can be set on the command line: `grounding_dino.dataset.class_names=["traffic light", "fire truck"]`. The value
is YAML; a number in the key is an index into a list, as in `grounding_dino.iteration_scheduler.0.conf_threshold=0.4`.
Unknown keys are refused, all problems of a spec are told at once, and `???` stands for a value that is to be filled in.

`specs/schema.json` is the same as a JSON schema: editors complete and check a spec that begins with
`# yaml-language-server: $schema=schema.json`.
"""

_TRAINING_INTRODUCTION = """\
<!-- Made by `python -m flows.spec_docs` from tasks/domain/spec*.py; do not edit. -->

# The spec of a training

What `autolabel train-mal -e SPEC` reads; [training_mal.md](training_mal.md) tells how to use it. A YAML file, or
`train_mal`, which ships. A train spec of TAO's `mal` runs as it is: keys marked *TAO* have the name, the place, the
meaning and the default that they have there. Keys without the mark are this project's own. Keys of TAO that nothing
here reads are accepted, checked for their type, and named in one line when a training starts.

Any key can be set on the command line: `train.num_epochs=5`. The value is YAML. Unknown keys are refused, all problems
of a spec are told at once, and `???` stands for a value that is to be filled in.

`specs/schema_train_mal.json` is the same as a JSON schema: editors complete and check a spec that begins with
`# yaml-language-server: $schema=schema_train_mal.json`.
"""

_TYPES = {str: "text", int: "integer", float: "number", bool: "boolean"}


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the key."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002  the signature is pydantic's
        return False


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with `--check` compare them: the exit status, 1 where a file is stale."""
    wanted = {
        SCHEMA_FILE: spec_schema(),
        PAGE_FILE: spec_page(),
        TRAINING_SCHEMA_FILE: training_schema(),
        TRAINING_PAGE_FILE: training_page(),
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path} is stale; run `python -m flows.spec_docs`")
        else:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


def spec_schema() -> str:
    """The JSON schema (draft 2020-12) of the spec, as the text of `specs/schema.json`."""
    return _schema(ExperimentSpec)


def spec_page() -> str:
    """The page `docs/spec.md`: a table for each block, then the keys that are accepted and not read."""
    return _page(ExperimentSpec, _INTRODUCTION)


def training_schema() -> str:
    """The JSON schema of the spec of a training, as the text of `specs/schema_train_mal.json`."""
    return _schema(TrainMalSpec)


def training_page() -> str:
    """The page `docs/spec_train_mal.md`, like that of the other spec."""
    return _page(TrainMalSpec, _TRAINING_INTRODUCTION)


def _schema(root: type[SpecBlock]) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root.model_json_schema(schema_generator=_Untitled),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _page(root: type[SpecBlock], introduction: str) -> str:
    blocks = list(_blocks(root, ""))
    tables = [text for path, block in blocks if (text := _block_section(path, block))]
    return "\n".join([introduction, *tables, _unused_section(blocks)])


def _blocks(block: type[SpecBlock], path: str) -> Iterator[tuple[str, type[SpecBlock]]]:
    """The block and those in it, each with its dotted path, in the order of the keys."""
    yield path, block
    for name, field in block.model_fields.items():
        for inner in blocks_in(field.annotation):
            yield from _blocks(inner, f"{path}.{name}" if path else name)


def _block_section(path: str, block: type[SpecBlock]) -> str:
    used = {name: field for name, field in block.model_fields.items() if not is_unused(field)}
    rows = [
        f"{_row(name, field)} {_origin(field)} |" for name, field in used.items() if not blocks_in(field.annotation)
    ]
    if not rows:
        return ""
    title = f"`{path}`" if path else "Top level"
    chosen = _chosen_by(block)
    lines = [f"## {title}{f' with `{chosen}`' if chosen else ''}", "", _one_line(block.__doc__), ""]
    return "\n".join(
        [*lines, "| key | type | range | default | meaning | from |", "|---|---|---|---|---|---|", *rows, ""]
    )


def _unused_section(blocks: Sequence[tuple[str, type[SpecBlock]]]) -> str:
    lines = ["## Accepted, not read", "", "Keys of TAO that have no effect here, with TAO's defaults.", ""]
    lines += ["| key | type | range | default | meaning |", "|---|---|---|---|---|"]
    for path, block in blocks:
        for name, field in block.model_fields.items():
            if is_unused(field) and not blocks_in(field.annotation):
                dotted = f"{path}.{name}" if path else name
                lines.append(_row(dotted, field))
    return "\n".join(lines) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{name}`", _type(field.annotation), _range(field), _default(field), _one_line(field.description)]
    return f"| {' | '.join(cells)} |"


def _origin(field: FieldInfo) -> str:
    return Origin.TAO.value if Origin.TAO in field.metadata else ""


def _chosen_by(block: type[SpecBlock]) -> str:
    """The key and value that choose this block among several for the same place, as in "method: nms"; else nothing."""
    for name in ("method", "schedule"):
        if field := block.model_fields.get(name):
            return f"{name}: {get_args(field.annotation)[0]}"
    return ""


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not types.NoneType)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {count}{_type(arguments[0])}"
    if origin is dict:
        return "block of keys"
    return _TYPES[annotation]


def _range(field: FieldInfo) -> str:
    """The bounds of a field's numbers: "[0, 1]", "(0, 1]", ">= 1"."""
    bounds = dict(_bounds([*field.metadata, field.annotation]))
    low = f"[{bounds['ge']:g}" if "ge" in bounds else f"({bounds['gt']:g}" if "gt" in bounds else ""
    high = f"{bounds['le']:g}]" if "le" in bounds else f"{bounds['lt']:g})" if "lt" in bounds else ""
    return f"{low}, {high}" if high else low.replace("[", ">= ")


def _bounds(parts: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """The bounds among types and their metadata, at any depth: ("ge", 0), ("lt", 1)."""
    for part in parts:
        if isinstance(part, FieldInfo):
            yield from _bounds(part.metadata)
        elif get_origin(part) is not None and get_origin(part) is not Literal:
            yield from _bounds(get_args(part))
        else:
            yield from ((name, getattr(part, name)) for name in ("ge", "gt", "le", "lt") if hasattr(part, name))


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default in (None, ""):
        return ""
    return "required" if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
