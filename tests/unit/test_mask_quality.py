"""mIoU: every object counts for itself, its own class and its own size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.mask_quality import MaskQuality, Overlap, mask_quality, mean, size_of

unit = st.floats(0, 1)
found = st.tuples(unit, unit, unit).map(lambda ious: Overlap("car", "small", True, *ious))  # noqa: FBT003
missed = st.just(Overlap("car", "small", found=False))
objects = st.lists(found | missed, max_size=30)


@pytest.mark.parametrize(
    ("area", "size"),
    [(0, "small"), (1024, "small"), (1024.001, "medium"), (9216, "medium"), (9216.001, "large"), (1e12, "large")],
)
def test_a_limit_belongs_to_the_smaller_size(area, size):
    assert size_of(area) == size


@given(objects, st.randoms())
def test_the_order_of_objects_does_not_matter_to_the_last_bit(overlaps, random):
    assert mask_quality(random.sample(overlaps, len(overlaps))) == mask_quality(overlaps)


@given(st.lists(found, min_size=1, max_size=20), st.lists(missed, max_size=5))
def test_an_object_without_a_label_counts_as_zero_but_among_the_found(overlaps, without):
    quality = mask_quality([*overlaps, *without])
    total = sum(overlap.iou for overlap in overlaps)
    assert (quality.truths, quality.found) == (len(overlaps) + len(without), len(overlaps))
    assert quality.miou == pytest.approx(total / quality.truths)
    assert quality.miou_found == pytest.approx(total / quality.found)


def test_nothing_has_no_mean():
    """MAL-21: the published mIoU of nothing is NaN, which users took for a failure."""
    assert mask_quality([]) == MaskQuality(0, 0, None, None, None, None)


@given(st.lists(unit, min_size=1))
def test_the_mean_is_that_of_numpy(values):
    assert mean(values) == pytest.approx(float(np.mean(values)))
