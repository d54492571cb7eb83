"""The labels artifact: which shards hold the labels that a run delivered, and what their categories are.

`{"shards": [{"kind", "key", "sha256"}, ...], "categories": ["person", ...], "images": 128}`, the shards sorted by their
image keys.
"""

import json
from dataclasses import dataclass

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import FormatError


@dataclass(frozen=True)
class LabelShards:
    """The delivered labels: their shards, the class names (in grounding mode the distinct phrases), and the images."""

    shards: tuple[ArtifactRef, ...]
    categories: tuple[str, ...]
    images: int


def dump_label_shards(labels: LabelShards) -> bytes:
    """The bytes of the artifact."""
    document = {
        "shards": [vars(ref) for ref in labels.shards],
        "categories": list(labels.categories),
        "images": labels.images,
    }
    return json.dumps(document, indent=1).encode()


def load_label_shards(data: bytes) -> LabelShards:
    """The labels that `dump_label_shards` wrote.

    Raises:
        FormatError: It is anything else.
    """
    try:
        document = json.loads(data)
        shards = tuple(ArtifactRef(**entry) for entry in document["shards"])
        return LabelShards(shards, tuple(document["categories"]), document["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"not the labels of a run: {type(error).__name__} {error}; label the images again") from error
