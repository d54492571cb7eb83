"""Content keys and references: how steps name what they made and pass it on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True)
class ArtifactRef:
    """A reference to an artifact in the store: what crosses task boundaries in place of the data.

    `kind` is the folder in the store ("index", "annotations", "candidates"), `key` the SHA-256 over the step, its
    VERSION and its inputs, `sha256` the digest of the artifact's own bytes; both are 64 hexadecimal digits.
    """

    kind: str
    key: str
    sha256: str


ANSWER_ID = 24  # hexadecimal digits
_SUBJECT = 16


@dataclass(frozen=True)
class Answers:
    """Which questions an artifact answers, so that a later run may take single answers over (see tasks/recall.py).

    `about` names who answered (the `digest_of` a detector and its keep floor, for example), `to` the questions, by
    their `answer_id`.
    """

    about: str
    to: tuple[str, ...]


def subject_id(subject: Json) -> str:
    """What names the subject of a question, an image by its content for example: the beginning of its `answer_id`."""
    return digest_of(subject)[:_SUBJECT]


def answer_id(subject: Json, asked: Json) -> str:
    """What names a question: its subject, and what is asked about it."""
    return subject_id(subject) + digest_of(asked)[: ANSWER_ID - _SUBJECT]


def digest_of(value: Json) -> str:
    """The SHA-256 (64 hexadecimal digits) of a value; equal values have equal ones."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Json) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes. Refuses NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_key(step: str, version: int, inputs: Mapping[str, Json]) -> str:
    """The SHA-256 (64 hexadecimal digits) that names what `step` at `version` makes of `inputs`."""
    return digest_of({"step": step, "version": version, "inputs": inputs})
