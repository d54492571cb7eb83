"""What the blocks of the spec are made of: the base of every block, where a key comes from, and the checked types."""

import os
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Final, LiteralString, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

# OmegaConf's mark of a value that the user has to fill in; TAO's spec files are full of them.
PLACEHOLDER = "???"


class Origin(Enum):
    """Where a key comes from; a key without this mark is one of ours."""

    TAO = "TAO"
    TAO_UNUSED = "TAO, not used"


T = TypeVar("T")
Tao = Annotated[T, Origin.TAO]  # a key of TAO Auto-Label that means the same here
Unused = Annotated[T, Origin.TAO_UNUSED]  # a key of TAO Auto-Label that is accepted, and that nothing here reads

# Strict: YAML reads yes, on and 1 as values that pydantic would otherwise take for one another.
Text = Annotated[StrictStr, Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
NonNegativeInt = Annotated[StrictInt, Field(ge=0)]
NonNegative = Annotated[StrictFloat, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]  # a score, a threshold or an IoU, both ends included
PositiveShare = Annotated[StrictFloat, Field(gt=0, le=1)]
ShareWithin = Annotated[StrictFloat, Field(gt=0, lt=1)]  # neither end included


def _expanded(path: str) -> str:
    """`path` with the home folder in place of a `~` at its start; as it is where no such user is known."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser raises where no such user is known)


PathOrName = Annotated[StrictStr, AfterValidator(_expanded)]  # a file or folder of this machine, or a hub id


class SpecBlock(BaseModel):
    """A block of keys: unknown ones are refused, and a key left empty counts as not given.

    Empty is a key without a value; for a key that is empty by default, TAO's `""` as well.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if not cls._is_empty(key, value)}

    @classmethod
    def _is_empty(cls, key: object, value: object) -> bool:
        field = cls.model_fields.get(key) if isinstance(key, str) else None
        return field is not None and (value is None or (value == "" and field.default is None))


REFUSAL: Final = "refusal"  # a block's own keys do not fit together
REQUIREMENT: Final = "requirement"  # the blocks do not fit together: looked at last, when each is well-formed


class Refusal(NamedTuple):
    """A value that is well-formed and still cannot be meant: where it is, what it is, and what is expected."""

    loc: tuple[str | int, ...]
    found: object
    expected: str


def refuse(refusals: Iterable[Refusal], kind: LiteralString = REFUSAL) -> None:
    """Raise one ValidationError with every refusal, located below the block that is being checked; none is fine."""
    errors = [
        InitErrorDetails(
            type=PydanticCustomError(kind, "{expected}", {"expected": refusal.expected}),
            loc=refusal.loc,
            input=refusal.found,
        )
        for refusal in refusals
    ]
    if errors:
        raise ValidationError.from_exception_data("spec", errors, hide_input=True)


def is_unused(field: FieldInfo) -> bool:
    """Whether nothing here reads the key."""
    return Origin.TAO_UNUSED in field.metadata


def blocks_in(annotation: object) -> tuple[type[SpecBlock], ...]:
    """The blocks that a field of this type may hold: none for a value, several where a key chooses between them."""
    if isinstance(annotation, type) and issubclass(annotation, SpecBlock):
        return (annotation,)
    return tuple(block for part in get_args(annotation) for block in blocks_in(part))
