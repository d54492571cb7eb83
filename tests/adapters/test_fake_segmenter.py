"""The segmenter without weights keeps the contract of the port."""

import math
import subprocess
import sys

import numpy as np
import pytest

from tasks.domain.masks import Mask
from tasks.formats.rle import decode_segmentation
from tasks.models import SegmenterConfig, load_segmenter, refuse_segmenter_device, segmenter_digest
from tasks.models.fake import SMALLEST_OBJECT, FakeSegmenter

IMAGE = np.zeros((60, 80, 3), np.uint8)
FAKE = SegmenterConfig("mal", "fake")


def masks(*boxes: tuple[float, float, float, float]) -> list[Mask | None]:
    (made,) = FakeSegmenter().segment([IMAGE], [np.array(boxes, dtype=np.float64).reshape(-1, 4)])
    return made


def decoded(mask: Mask) -> np.ndarray:
    return decode_segmentation({"size": [mask.height, mask.width], "counts": mask.counts}, mask.height, mask.width)


def test_a_mask_is_the_ellipse_in_its_box():
    (mask,) = masks((10, 20, 50, 44))
    assert mask is not None
    pixels = decoded(mask)
    ys, xs = np.nonzero(pixels)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (10, 49, 20, 43)
    assert mask.area == pixels.sum() == pytest.approx(math.pi / 4 * 40 * 24, rel=0.02)
    assert 0 < mask.quality < 1


def test_masks_come_in_the_order_of_the_boxes_and_small_objects_are_not_seen():
    small = SMALLEST_OBJECT - 0.5
    found = masks((0, 0, 80, 60), (0, 0, small, 60), (77, 57, 80, 60))
    assert [mask is None for mask in found] == [False, True, False]


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 81, 5), (5, 5, 5, 9), (math.nan, 0, 5, 5)])
def test_a_segmenter_is_not_asked_about_a_box_that_leaves_the_image_or_has_no_area(box):
    with pytest.raises(ValueError, match="expected one inside"):
        masks(box)


def test_the_loader_gives_it_on_any_device_with_a_digest_of_its_own():
    refuse_segmenter_device(FAKE, "cuda:9")
    assert load_segmenter(FAKE, device="cuda:9").digest == segmenter_digest(FAKE)


def test_it_needs_no_framework():
    script = "import sys; from tasks.models import *; load_segmenter(SegmenterConfig('mal', 'fake')); "
    script += "print(*{'torch', 'transformers', 'prefect'} & set(sys.modules))"
    program = script.replace("import *", "import SegmenterConfig, load_segmenter")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
