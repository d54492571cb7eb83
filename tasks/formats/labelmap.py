"""Class names and their numbers: the one rule, and labelmap.json, which writes it down.

A label counts from 0 in the order of the names; a COCO category id is the label plus 1. Nothing else numbers classes.
"""

import json
from collections.abc import Sequence

from tasks.domain.errors import FormatError


def labels_of(class_names: Sequence[str]) -> dict[str, int]:
    """The label of each class name: its position, from 0."""
    return {name: label for label, name in enumerate(class_names)}


def category_id(label: int) -> int:
    """The COCO category id of a label: from 1, since 0 is the background to many trainers."""
    return label + 1


def dump_labelmap(class_names: Sequence[str]) -> bytes:
    """labelmap.json as TAO reads it: `{"0": "person", "1": "car"}`."""
    return (json.dumps({str(label): name for label, name in enumerate(class_names)}, indent=1) + "\n").encode()


def load_labelmap(data: bytes) -> tuple[str, ...]:
    """The class names in the order of their labels.

    Raises:
        FormatError: The labels are not the whole numbers from 0 on, or a name is not a string.
    """
    try:
        names = {int(label): name for label, name in json.loads(data).items()}
    except (ValueError, AttributeError) as error:
        raise FormatError(f'a label map is not JSON of the form {{"0": "person", "1": "car"}}: {error}') from error
    if sorted(names) != list(range(len(names))) or not all(isinstance(name, str) for name in names.values()):
        raise FormatError(f"a label map holds {names}, expected names under the labels 0 to {len(names) - 1}")
    return tuple(names[label] for label in range(len(names)))
