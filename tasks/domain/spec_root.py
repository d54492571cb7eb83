"""What the outermost block of every spec can do: say what is still to be filled in, and which keys nothing reads."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, model_serializer, model_validator

from tasks.domain.spec_fields import PLACEHOLDER, REQUIREMENT, Refusal, SpecBlock, is_unused, refuse
from tasks.domain.spec_problems import masked, without_passwords


class SpecRoot(SpecBlock):
    """A whole spec: its secrets stay out of everything that is written down."""

    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Passed to fsspec for every URL: credentials, endpoints. Its values are secrets and shown nowhere."""

    def unused_keys(self) -> list[str]:
        """The keys that the user has set and that nothing here reads, dotted and sorted.

        A block of which nothing is read stands for all of its keys.
        """
        return sorted(_unused(self, ""))

    def requirements(self) -> Iterator[Refusal]:
        """What is missing, and what does not fit together, over all blocks."""
        yield from ()

    def blocks_not_read(self) -> frozenset[str]:
        """The blocks that may hold anything well-formed, placeholders too, since this spec asks for nothing in them."""
        return frozenset()

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        refuse([*self._placeholders(), *self.requirements()], REQUIREMENT)
        return self

    def _placeholders(self) -> Iterator[Refusal]:
        for loc in _placeholders_in(self, ()):
            if loc[0] not in self.blocks_not_read():
                yield Refusal(loc, PLACEHOLDER, "your own value")

    @field_serializer("storage_options", when_used="json")
    def _without_secrets(self, options: Mapping[str, Any]) -> Any:
        # Prefect keeps the JSON of a flow's parameters in its database and shows it in its UI.
        return masked(options)

    @model_serializer(mode="wrap", when_used="json")
    def _without_passwords(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return without_passwords(serialize(self))


def _unused(block: SpecBlock, prefix: str) -> Iterator[str]:
    for name in block.model_fields_set:
        value = getattr(block, name)
        if is_unused(type(block).model_fields[name]):
            yield prefix + name
        elif isinstance(value, SpecBlock):
            yield from _unused(value, f"{prefix}{name}.")


def _placeholders_in(value: object, loc: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if value == PLACEHOLDER:
        yield loc
    elif isinstance(value, SpecBlock):
        for name, field in type(value).model_fields.items():
            if not is_unused(field):
                yield from _placeholders_in(getattr(value, name), (*loc, name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _placeholders_in(item, (*loc, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _placeholders_in(item, (*loc, key))
