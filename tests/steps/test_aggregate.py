"""The aggregate step: what its key holds, and what becomes of an image that failed."""

from itertools import combinations, product

import numpy as np
import pytest

from tasks.aggregate import Bar, aggregate_key, aggregate_shard
from tasks.domain.aggregation import AggregationRules, Dbscan, Nms, Wbf
from tasks.domain.annotations import LabelledImage, Record
from tasks.domain.artifacts import ArtifactRef
from tasks.domain.detections import Candidates
from tasks.domain.images import Failure, Image
from tasks.formats.candidates import LookedAt, dump_candidates
from tasks.formats.coco import dump_coco, load_coco
from tasks.store import ArtifactStore

CLASSES = ("cat",)
METHODS = [
    Nms(None),
    Nms(0.55),
    Wbf(0.55),
    Wbf(0.7),
    *(Dbscan(eps, n, box) for eps, n, box in product((0.3, 0.55), (1, 2), ("best", "mean"))),
]
RULES = [AggregationRules(method, cross_class) for method in METHODS for cross_class in (None, 0.55)]


def bar(iteration: int = 0, threshold: float = 0.5, rules: AggregationRules = RULES[2]) -> Bar:
    return Bar(iteration, threshold, rules, CLASSES)


def test_rules_that_differ_in_anything_never_share_a_key():
    ref = ArtifactRef("annotations", "0" * 64, "1" * 64)
    keys = [aggregate_key(ref, ref, bar(rules=rules)) for rules in RULES]
    assert all(a != b for a, b in combinations(keys, 2))


def test_the_name_of_an_input_is_not_in_the_key_but_its_content_is():
    a, renamed, other = (ArtifactRef("annotations", k * 64, s * 64) for k, s in ("01", "21", "03"))
    assert aggregate_key(a, a, bar()) == aggregate_key(renamed, renamed, bar())
    assert aggregate_key(a, a, bar()) != aggregate_key(a, other, bar())


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "cache"))


def published(store: ArtifactStore, images: list[LabelledImage]) -> ArtifactRef:
    return store.publish("annotations", "a" * 64, dump_coco(images, CLASSES))


def answered(store: ArtifactStore, key: str, found: Candidates | None) -> ArtifactRef:
    """The candidates of 1.png, or its failure."""
    looked_at = [LookedAt("1.png", "0" * 64, 0, found)] if found else []
    failures = [] if found else [Failure("1.png", "infer", "is gone")]
    return store.publish("candidates", key * 64, dump_candidates(looked_at, failures))


ONE_CAT = Candidates(CLASSES, np.array([[1.0, 2.0, 30.0, 40.0]]), np.array([0.9]), np.array([0]))
UNLABELLED = [LabelledImage(Image("1.png", "0" * 64, 80, 60), (Record(0, None, CLASSES),))]


def test_an_image_that_fails_after_it_was_labelled_keeps_its_labels(store):
    first = aggregate_shard(store, published(store, UNLABELLED), answered(store, "b", ONE_CAT), bar())
    second = aggregate_shard(store, first.annotations, answered(store, "c", None), bar(1, 0.3))
    (image,), _ = load_coco(store.read(second.annotations))
    assert [label.phrase for label in image.annotations] == ["cat"]


def test_an_image_that_fails_without_a_label_leaves_the_data_set(store):
    shard = aggregate_shard(store, published(store, UNLABELLED), answered(store, "c", None), bar())
    assert load_coco(store.read(shard.annotations))[0] == ()
