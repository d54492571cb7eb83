"""How good masks are: the mIoU of objects, what their boxes alone would have got, and COCO's twelve numbers.

mIoU asks of every object of the truth how well the mask of its label covers it, and takes boxes only to find that
label; so it judges the segmenter, where AP judges detector and segmenter together. docs/evaluation.md has the rules.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tasks.domain.artifacts import Json
from tasks.domain.errors import FormatError
from tasks.domain.mask_quality import SIZES, MaskQuality, Overlap, Size, mask_quality, mean
from tasks.evaluation.average_precision import RANKED, AveragePrecision, average_precision
from tasks.evaluation.counterparts import Coverage, matched, refuse_strangers, refuse_twins, without_classes
from tasks.evaluation.mask_overlaps import Id, Outline, overlaps, read_outlines
from tasks.formats.foreign_coco import Row, image_sizes, labels_place, load_coco_with_masks, load_truth_with_masks
from tasks.formats.rle import Rle, empty_mask, mask_area


@dataclass(frozen=True)
class MaskScores:
    """How the masks of a set of labels do; `ap` (IoU 0.5 to 0.95) and `ap50` are None where there is no truth."""

    labels: int
    labels_without_mask: int
    quality: MaskQuality
    ap: float | None
    ap50: float | None

    def to_json(self) -> dict[str, Json]:
        """The scores as a JSON object."""
        labels: dict[str, Json] = {"labels": self.labels, "labels_without_mask": self.labels_without_mask}
        return {**labels, **self.quality.to_json(), "AP": self.ap, "AP50": self.ap50}


@dataclass(frozen=True)
class MaskReport:
    """How good masks are.

    `overall`, `classes` (in the order of the truth's categories) and `sizes` (of the truth's box) give every object the
    same weight; `miou_classes` gives it to every class that has objects. `coco` holds COCO's twelve numbers under the
    names of `STATS`, None where there is no truth of that size.

    A label without a mask has an IoU of 0. An object of the truth without one cannot be judged and is left out. A label
    without a score ranks as one of 1. COCO's numbers do not look at `labels_not_ranked`, those after the 100 best of an
    image and class. Crowd regions among the labels are not compared.
    """

    coco: Mapping[str, float | None]
    overall: MaskScores
    miou_classes: float | None
    classes: Mapping[str, MaskScores]
    sizes: Mapping[Size, MaskQuality]
    truths_without_mask: int
    labels_without_score: int
    labels_not_ranked: int
    crowd_labels: int
    coverage: Coverage

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        return {
            "coco": dict(self.coco),
            "overall": self.overall.to_json(),
            "miou_classes": self.miou_classes,
            "classes": {name: scores.to_json() for name, scores in self.classes.items()},
            "sizes": {size: quality.to_json() for size, quality in self.sizes.items()},
            "truths_without_mask": self.truths_without_mask,
            "labels_without_score": self.labels_without_score,
            "labels_not_ranked": self.labels_not_ranked,
            "crowd_labels": self.crowd_labels,
            "coverage": asdict(self.coverage),
        }


def evaluate_masks(
    labels: bytes,
    truth: bytes,
    *,
    class_agnostic: bool = False,
    labels_are: str = "labels",
    truth_is: str = "ground truth",
) -> MaskReport:
    """Compare the masks of labels with those of the ground truth.

    Args:
        labels: A COCO file, or a COCO results list, as of `evaluate_boxes`, with `segmentation` in the place of `score`
            and `bbox`, which may be missing: a label without a box has the smallest around its mask.
        truth: A COCO file with masks, and the `height` and `width` of every image.
        class_agnostic: Ask only whether something is outlined, not what it is called.
        labels_are: What the labels are called in messages.
        truth_is: What the truth is called in messages.

    Raises:
        FormatError: A file is not COCO, or a mask not one of its image; the two have no image or no class in common; or
            the truth has no mask at all.
    """
    ours, theirs = load_coco_with_masks(labels, labels_are), load_truth_with_masks(truth, truth_is)
    refuse_twins(theirs)
    if class_agnostic:
        ours, theirs = without_classes(ours), without_classes(theirs)
    refuse_strangers(ours, theirs)
    rows, coverage = matched(ours, theirs)
    sizes = image_sizes(theirs, truth_is)
    outlines = read_outlines(rows, sizes, labels_place(ours, labels_are))
    truths = read_outlines(theirs["annotations"], sizes, labels_place(theirs, truth_is))
    if all(outline.is_crowd or outline.mask is None for outline in truths):
        raise FormatError(
            f"the {truth_is} has no mask: but for crowd regions, no annotation has a `segmentation` with a pixel; "
            "expected a COCO file with masks (without --masks, boxes are compared)"
        )
    return _report(outlines, truths, theirs, coverage)


def _report(outlines: Sequence[Outline], truths: Sequence[Outline], truth: Row, coverage: Coverage) -> MaskReport:
    labels = [outline for outline in outlines if not outline.is_crowd]
    names = {row["id"]: row["name"] for row in sorted(truth["categories"], key=lambda row: row["id"])}
    objects = list(overlaps(labels, truths, names))
    true_rows = [_true_row(number, outline) for number, outline in enumerate(truths, 1)]
    precision = average_precision(
        [_label_row(number, label) for number, label in enumerate(labels, 1)],
        {**truth, "annotations": true_rows},
        "segm",
    )
    classes = _classes(labels, objects, precision, names)
    return MaskReport(
        coco=precision.coco,
        overall=_scores(labels, objects, precision.coco["AP"], precision.coco["AP50"]),
        miou_classes=mean(miou for scores in classes.values() if (miou := scores.quality.miou) is not None),
        classes=classes,
        sizes={size: mask_quality([overlap for overlap in objects if overlap.size == size]) for size in SIZES},
        truths_without_mask=sum(outline.mask is None and not outline.is_crowd for outline in truths),
        labels_without_score=sum("score" not in label.row for label in labels),
        labels_not_ranked=sum(max(0, n - RANKED) for n in Counter(label.place for label in labels).values()),
        crowd_labels=len(outlines) - len(labels),
        coverage=coverage,
    )


def _classes(
    labels: Sequence[Outline], objects: Sequence[Overlap], precision: AveragePrecision, names: Mapping[Id, str]
) -> dict[str, MaskScores]:
    labels_of: dict[Id, list[Outline]] = {category: [] for category in names}
    objects_of: dict[str, list[Overlap]] = {name: [] for name in names.values()}
    for label in labels:
        labels_of[label.place[1]].append(label)
    for overlap in objects:
        objects_of[overlap.category].append(overlap)
    return {
        name: _scores(labels_of[category], objects_of[name], *precision.classes[category])
        for category, name in names.items()
    }


def _scores(labels: Sequence[Outline], objects: Sequence[Overlap], ap: float | None, ap50: float | None) -> MaskScores:
    without = sum(label.mask is None for label in labels)
    return MaskScores(len(labels), without, mask_quality(objects), ap, ap50)


def _label_row(number: int, label: Outline) -> Row:
    """A label as pycocotools wants it. Its area is that of the mask: by it, COCO tells what is small."""
    mask = label.mask or empty_mask(*label.image_size)
    return {**_row(number, label, mask), "score": label.score, "iscrowd": 0}


def _true_row(number: int, outline: Outline) -> Row:
    """An annotation of the truth as pycocotools wants it.

    An object without a mask is known by its box alone. As a crowd region there, it makes no label right or wrong.
    """
    row = _row(number, outline, outline.mask or outline.filled_box())
    area = outline.row.get("area", row["area"])
    return {**row, "area": area, "iscrowd": int(outline.is_crowd or outline.mask is None)}


def _row(number: int, outline: Outline, mask: Rle) -> Row:
    image, category = outline.place
    return {
        "id": number,  # not 0, which pycocotools takes for "matched with nothing"
        "image_id": image,
        "category_id": category,
        "segmentation": mask,
        "area": mask_area(mask),
    }
