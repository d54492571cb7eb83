"""Aggregation: from every detection of a record, over all iterations so far, to its annotations.

The annotations are a pure function of the *set* of detections: earlier annotations carry what they were merged from,
so each iteration groups the union anew. The order of the input, and doing it twice, never change the result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasks.domain.annotations import Annotation
from tasks.domain.boxes import Box, Boxes, box_iou
from tasks.domain.detections import Detection

BOX_DECIMALS = 3  # thousandths of a pixel, as in the candidates; a fused box is rounded alike
SCORE_DECIMALS = 6


@dataclass(frozen=True)
class Nms:
    """Greedy non-maximum suppression per class: the best score stays, what overlaps it by more than `iou` goes into it.

    `iou` None switches it off (TAO's `nms_threshold: 0`): only equal boxes of the same phrase are one.
    """

    iou: float | None


@dataclass(frozen=True)
class Dbscan:
    """DBSCAN (Ester et al., KDD 1996) per class on the distance 1 - IoU, by scikit-learn.

    Detections within `eps` of each other are neighbours; one with at least `min_samples` neighbours, itself included,
    is the core of a cluster. A cluster's box is that of its best score, or the score-weighted mean of all.
    """

    eps: float
    min_samples: int
    box: Literal["best", "mean"]


@dataclass(frozen=True)
class Wbf:
    """Weighted boxes fusion per class (Solovyev et al., arXiv 1910.13302): score-weighted mean box, mean score."""

    iou: float


Method: TypeAlias = Nms | Dbscan | Wbf
Cluster: TypeAlias = tuple[Detection, ...]


@dataclass(frozen=True)
class AggregationRules:
    """How detections become annotations: per class by `method`, then across classes.

    With `cross_class_iou`, an annotation that overlaps a better one of another phrase by more than it goes into that
    one.
    """

    method: Method
    cross_class_iou: float | None = None


@dataclass(frozen=True)
class Aggregated:
    """The annotations of a record, by phrase in the order asked, then best score first; and why detections went.

    `merged` and `cross_class` detections stand in the `merged_from` of the annotation that took them; `noise` belongs
    to no DBSCAN cluster.
    """

    annotations: tuple[Annotation, ...]
    merged: int
    noise: int
    cross_class: int


def aggregate(
    annotations: Iterable[Annotation], detections: Iterable[Detection], phrases: Sequence[str], rules: AggregationRules
) -> Aggregated:
    """Join `detections` with the `annotations` so far: the labels of a record after this iteration."""
    members = distinct([*(member for annotation in annotations for member in annotation.merged_from), *detections])
    by_phrase = group_by_phrase(members)
    clusters = [cluster for phrase in phrases for cluster in _clusters(by_phrase.get(phrase, ()), rules.method)]
    kept = across_classes([_fuse(cluster, rules.method) for cluster in clusters], rules.cross_class_iou)
    clustered = sum(map(len, clusters))
    cross_class = sum(member.phrase != annotation.phrase for annotation in kept for member in annotation.merged_from)
    order = {phrase: position for position, phrase in enumerate(phrases)}
    return Aggregated(
        annotations=tuple(sorted(kept, key=lambda a: (order[a.phrase], -a.score, a.box))),
        merged=clustered - len(kept) - cross_class,
        noise=len(members) - clustered,
        cross_class=cross_class,
    )


def group_by_phrase(members: Iterable[Detection]) -> dict[str, Cluster]:
    """The detections of each phrase, their order kept."""
    groups: dict[str, list[Detection]] = {}
    for member in members:
        groups.setdefault(member.phrase, []).append(member)
    return {phrase: tuple(group) for phrase, group in groups.items()}


def distinct(detections: Iterable[Detection]) -> tuple[Detection, ...]:
    """Each (phrase, box, score) once, as its earliest iteration saw it; best score first, ties by iteration and box."""
    earliest: dict[tuple[str, Box, float], Detection] = {}
    for detection in sorted(detections, key=lambda d: (d.iteration, d.threshold)):
        earliest.setdefault((detection.phrase, detection.box, detection.score), detection)
    return tuple(sorted(earliest.values(), key=best_first))


def best_first(detection: Detection) -> tuple[float, int, Box, str]:
    """The sort key of the rule for ties: score, then earlier iteration, then box from the left, then phrase."""
    return -detection.score, detection.iteration, detection.box, detection.phrase


def _clusters(members: Cluster, method: Method) -> list[Cluster]:
    """Group the detections of one phrase, best first; every cluster is best first, noise is in none."""
    if not members:
        return []
    match method:
        case Nms(iou=None):
            return _equal_boxes(members)
        case Nms(iou=float(iou)):
            return _suppress(members, iou)
        case Dbscan():
            return _dbscan(members, method)
        case Wbf():
            return _fuse_greedily(members, method.iou)
    raise TypeError(method)


def _boxes(members: Sequence[Detection]) -> Boxes:
    return np.array([member.box for member in members], dtype=np.float64).reshape(-1, 4)


def _equal_boxes(members: Cluster) -> list[Cluster]:
    groups: dict[Box, list[Detection]] = {}
    for member in members:
        groups.setdefault(member.box, []).append(member)
    return [tuple(group) for group in groups.values()]


def _suppress(members: Cluster, iou: float) -> list[Cluster]:
    """Greedy NMS: each detection goes to the best-scored kept one that it overlaps by more than `iou`."""
    overlaps = box_iou(_boxes(members), _boxes(members)) > iou  # (N, N)
    keeper = np.full(len(members), -1)
    for i in range(len(members)):
        if keeper[i] < 0:
            keeper[overlaps[i] & (keeper < 0)] = i
            keeper[i] = i
    return _by_label(members, keeper)


def _by_label(members: Cluster, labels: NDArray[np.intp]) -> list[Cluster]:
    """The members of each label of 0 and above, ordered by their first member; a negative label is no cluster."""
    groups: dict[int, list[Detection]] = {}
    for member, label in zip(members, labels.tolist(), strict=True):
        if label >= 0:
            groups.setdefault(label, []).append(member)
    return [tuple(group) for group in groups.values()]


def _dbscan(members: Cluster, method: Dbscan) -> list[Cluster]:
    # Imported here: scikit-learn takes a second, and most runs suppress by NMS.
    from sklearn.cluster import DBSCAN

    boxes = _boxes(members)
    distance = np.clip(1.0 - box_iou(boxes, boxes), 0.0, None)  # (N, N)
    np.fill_diagonal(distance, 0.0)
    labels = DBSCAN(eps=method.eps, min_samples=method.min_samples, metric="precomputed").fit(distance).labels_
    return _by_label(members, labels)


def _fuse_greedily(members: Cluster, iou: float) -> list[Cluster]:
    """WBF's clusters: each detection, best first, joins the fused box that it overlaps most, if by more than `iou`."""
    clusters: list[list[Detection]] = []
    fused = np.empty((0, 4))
    for member in members:
        overlaps = box_iou(_boxes([member]), fused)[0]  # (clusters so far,)
        best = int(np.argmax(overlaps)) if len(clusters) else -1
        if best >= 0 and overlaps[best] > iou:
            clusters[best].append(member)
            fused[best] = _mean_box(clusters[best])
        else:
            clusters.append([member])
            fused = np.vstack([fused, _boxes([member])])
    return [tuple(cluster) for cluster in clusters]


def _mean_box(members: Sequence[Detection]) -> NDArray[np.float64]:
    """The score-weighted mean box (4,); the plain mean where every score is 0."""
    scores = np.array([member.score for member in members])
    weights = scores if scores.sum() > 0 else np.ones_like(scores)
    return np.average(_boxes(members), axis=0, weights=weights)


def _fuse(cluster: Cluster, method: Method) -> Annotation:
    """One annotation of a cluster: box and score by the method, iteration and threshold of its earliest detection."""
    earliest = min(cluster, key=lambda member: (member.iteration, member.threshold))
    return Annotation(
        phrase=cluster[0].phrase,
        box=_cluster_box(cluster, method),
        score=_cluster_score(cluster, method),
        iteration=earliest.iteration,
        threshold=earliest.threshold,
        merged_from=cluster,
    )


def _cluster_box(cluster: Cluster, method: Method) -> Box:
    if len(cluster) == 1 or isinstance(method, Nms) or (isinstance(method, Dbscan) and method.box == "best"):
        return cluster[0].box
    left, top, right, bottom = _mean_box(cluster).round(BOX_DECIMALS).tolist()
    return left, top, right, bottom


def _cluster_score(cluster: Cluster, method: Method) -> float:
    if isinstance(method, Wbf):
        return round(sum(member.score for member in cluster) / len(cluster), SCORE_DECIMALS)
    return cluster[0].score


def across_classes(annotations: Sequence[Annotation], iou: float | None) -> list[Annotation]:
    """Let each annotation that overlaps a better one of another phrase by more than `iou` go into that one."""
    ordered = sorted(annotations, key=lambda a: (-a.score, a.iteration, a.box, a.phrase))
    if iou is None or len(ordered) < 2:
        return ordered
    overlaps = box_iou(_boxes_of(ordered), _boxes_of(ordered)) > iou  # (N, N)
    kept: list[int] = []
    taken: dict[int, list[Detection]] = {}
    for i, annotation in enumerate(ordered):
        winner = next((k for k in kept if overlaps[i, k] and ordered[k].phrase != annotation.phrase), None)
        if winner is None:
            kept.append(i)
        else:
            taken.setdefault(winner, []).extend(annotation.merged_from)
    return [_take(ordered[k], taken.get(k, ())) for k in kept]


def _boxes_of(annotations: Sequence[Annotation]) -> Boxes:
    return np.array([annotation.box for annotation in annotations], dtype=np.float64).reshape(-1, 4)


def _take(annotation: Annotation, members: Iterable[Detection]) -> Annotation:
    merged = distinct([*annotation.merged_from, *members])
    return replace(annotation, merged_from=merged)
