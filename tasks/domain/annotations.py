"""Annotations, the labels that are delivered, and the images and records that they belong to."""

from dataclasses import dataclass

from tasks.domain.boxes import Box
from tasks.domain.detections import Detection
from tasks.domain.images import Image


@dataclass(frozen=True, order=True)
class Annotation:
    """A label: what is left of one or several detections of the same object after aggregation.

    `iteration` and `threshold` are those of the earliest detection in it; `box` and `score` follow the aggregation
    rule. `merged_from` holds every detection that went into it, the only one too, best score first.
    """

    phrase: str
    box: Box
    score: float
    iteration: int
    threshold: float
    merged_from: tuple[Detection, ...]


@dataclass(frozen=True)
class Record:
    """What is asked about one image, and the labels found so far.

    Detection mode has one record per image (`caption` None, `caption_id` 0, `phrases` the class names); grounding mode
    has one per caption, numbered from 0 in the order of the prompt file. `phrases` are distinct and in the order asked.
    """

    caption_id: int
    caption: str | None
    phrases: tuple[str, ...]
    annotations: tuple[Annotation, ...] = ()

    @property
    def undetected(self) -> tuple[str, ...]:
        """The phrases that have no label yet, in the order asked."""
        found = {annotation.phrase for annotation in self.annotations}
        return tuple(phrase for phrase in self.phrases if phrase not in found)


@dataclass(frozen=True)
class LabelledImage:
    """An image that was looked at, with its records; an image without labels is a label too: nothing is there."""

    image: Image
    records: tuple[Record, ...]

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """The labels of all records, in their order."""
        return tuple(annotation for record in self.records for annotation in record.annotations)
