"""Mask Auto-Labeler behind the port: boxes in, masks out, against a naive way over arrays as large as the image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tasks.domain.errors import CheckpointError, SpecError
from tasks.domain.masks import Mask
from tasks.formats.rle import decode_segmentation
from tasks.models import SegmenterConfig
from tasks.models.mal.architecture import MalArchitecture
from tasks.models.mal.checkpoints import load_network, save_checkpoint
from tasks.models.mal.crops import crop_box, crop_image, expand, normalise
from tasks.models.mal.network import MalNetwork
from tasks.models.mal.segmenter import MalSegmenter, _batches, _objects, load_mal_segmenter, mal_segmenter_digest

SIDE = 64
SIZES = MalArchitecture(dim=48, depth=2, heads=3, head_hidden=16, head_out=16)
CONFIG = SegmenterConfig("mal", "unused", thresholds=(0.45, 0.5, 0.55))
IMAGE = np.random.default_rng(0).integers(0, 256, (150, 180, 3), dtype=np.uint8)
# Small, medium, large; at the corners; a pixel wide; as large as the image.
BOXES = np.array(
    [
        [20.3, 30.8, 44.1, 52.0],
        [60.0, 40.0, 120.0, 110.0],
        [10.5, 5.25, 170.0, 140.75],
        [0.0, 0.0, 20.0, 31.0],
        [149.6, 100.2, 180.0, 150.0],
        [77.0, 20.0, 78.0, 21.0],
        [0.0, 0.0, 180.0, 150.0],
        [0.0, 70.0, 180.0, 74.0],
    ]
)


def random_network(seed: int) -> MalNetwork:
    """Its logits lie around 0 and differ from place to place."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MalNetwork(SIZES).eval()
        for name, parameter in network.named_parameters():
            if "blocks" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.15)
            elif name.endswith(("pos_embed", "conv.bias", "mlp2.bias")):
                nn.init.normal_(parameter, std=0.5)
    return network


class Painted(nn.Module):
    """Stands for a network: what its crops show becomes logits, `sure` where red is bright and -`sure` elsewhere."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(sure))

    def forward(self, crops: Tensor, boxes: Tensor) -> Tensor:
        red = functional.avg_pool2d(crops[:, :1], 4)
        return torch.where(red > 0, self.sure, -self.sure).detach()


class Constant(nn.Module):
    """Stands for a network that gives every pixel the same logit."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, crops: Tensor, boxes: Tensor) -> Tensor:
        return self.logit.detach().expand(len(crops), 1, crops.shape[-2] // 4, crops.shape[-1] // 4)


def segmenter(*networks: nn.Module, **changes) -> MalSegmenter:
    crop_size = changes.pop("crop_size", SIDE)
    return MalSegmenter(networks, replace(CONFIG, **changes), crop_size=crop_size, digest="")


def boxes(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def pixels(mask: Mask | None) -> np.ndarray:
    assert mask is not None
    return decode_segmentation({"size": [mask.height, mask.width], "counts": mask.counts}, mask.height, mask.width)


def one(of: MalSegmenter, image: np.ndarray, box: Sequence[float]) -> Mask | None:
    return of.segment([image], [boxes(box)])[0][0]


@pytest.fixture(scope="module")
def student() -> MalNetwork:
    return random_network(0)


@pytest.fixture(scope="module")
def teacher() -> MalNetwork:
    return random_network(1)


# Against the naive way


def n_probabilities(networks: Sequence[nn.Module], image: np.ndarray, box: np.ndarray, *, clip: bool) -> np.ndarray:
    """The probabilities of an object pasted into a plane as large as the image, as published."""
    height, width = image.shape[:2]
    window = expand(tuple(box), (0.3, 0.3, 0.3, 0.3))
    crop = normalise([crop_image(image, window, SIDE)])
    with torch.no_grad():
        logits = sum(network(crop, torch.from_numpy(box)[None]) for network in networks) / len(networks)
    chances = torch.sigmoid(functional.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False))
    if clip:
        chances = chances * torch.tensor(crop_box(tuple(box), window, height, width, SIDE, wrap=False))
    large = functional.interpolate(chances, (window.height, window.width), mode="bilinear", align_corners=False)[0, 0]
    plane = np.zeros((height, width))
    for y in range(max(0, window.top), min(height, window.bottom)):
        for x in range(max(0, window.left), min(width, window.right)):
            plane[y, x] = large[y - window.top, x - window.left]
    if clip:
        x0, y0, x1, y1 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
        ys, xs = np.mgrid[:height, :width]
        plane[(xs < x0) | (xs >= x1) | (ys < y0) | (ys >= y1)] = 0
    return plane


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("row", range(len(BOXES)))
def test_a_mask_is_that_of_the_naive_way(student, row, clip):
    """MAL-14: the area is the mask's, and not the box's."""
    box = BOXES[row]
    plane = n_probabilities([student], IMAGE, box, clip=clip)
    area = (box[2] - box[0]) * (box[3] - box[1])
    threshold = CONFIG.thresholds[0 if area <= 1024 else 1 if area <= 9216 else 2]

    mask = one(segmenter(student, clip_to_box=clip), IMAGE, box)

    # Bilinear interpolation in another order of the same sums may differ in the last bit.
    unclear = np.abs(plane - threshold) < 1e-6
    assert not unclear.any()
    if mask is None:
        assert not (plane > threshold).any()
        return
    np.testing.assert_array_equal(pixels(mask), plane > threshold)
    assert mask.area == np.count_nonzero(plane > threshold)
    strict, lax = (1 / (1 + np.exp(-(np.log(threshold / (1 - threshold)) + by))) for by in (1, -1))
    assert mask.quality == pytest.approx(np.count_nonzero(plane > strict) / np.count_nonzero(plane > lax), abs=1e-3)


def test_most_of_these_boxes_have_a_mask_that_is_neither_empty_nor_full(student):
    """Else the test above would prove little."""
    masks = segmenter(student).segment([IMAGE], [BOXES])[0]

    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in BOXES]
    shares = [0 if mask is None else mask.area / size for mask, size in zip(masks, sizes, strict=True)]
    assert sum(0.05 < share < 0.95 for share in shares) >= 4


# The batch


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_no_mask_depends_on_the_batch_or_on_its_neighbours(student, batch_size):
    images = [IMAGE, IMAGE[:70, :90], IMAGE[::-1]]
    per_image = [BOXES, boxes([3, 4, 60, 50], [0, 0, 90, 70]), BOXES[:2]]
    of = segmenter(student)

    together = of.segment(images, per_image, batch_size=batch_size)

    assert together == [[one(of, image, box) for box in own] for image, own in zip(images, per_image, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("crop_size", [128, 512])
def test_on_a_cpu_passes_have_512_tokens_or_one_crop_whatever_the_batch_size(student, crop_size, batch_size):
    passed = []
    hook = student.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))

    segmenter(student, crop_size=crop_size).segment([IMAGE], [BOXES], batch_size=batch_size)
    hook.remove()

    assert set(passed) == {8 if crop_size == 128 else 1}


@settings(max_examples=10)
@given(st.permutations(range(len(BOXES))))
def test_the_masks_come_in_the_order_of_the_boxes(order):
    of = segmenter(Painted(3.0))

    assert of.segment([IMAGE], [BOXES[order]])[0] == [of.segment([IMAGE], [BOXES])[0][row] for row in order]


@given(st.permutations(range(len(BOXES))), st.integers(1, 4))
def test_boxes_share_a_pass_only_with_boxes_of_their_size(order, batch_size):
    items = list(_objects([BOXES[order], BOXES[:2]], 0.3))

    batches = list(_batches(items, batch_size))

    assert all(len({item.size for item in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    places = [(item.image, item.row) for batch in batches for item in batch]
    assert sorted(places) == [(item.image, item.row) for item in items]


def test_a_batch_that_is_not_full_is_filled_up_to_its_size_and_the_filling_is_dropped(student):
    """As on a GPU; the shape of a batch decides on the kernels, and so on the last bits."""
    of, items, passed = segmenter(student), list(_objects([BOXES[1:2], BOXES[1:2] + 2], 0.3)), []
    hook = student.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))

    filled = of._probabilities([IMAGE, IMAGE], items, 5)
    alone = np.concatenate([of._probabilities([IMAGE, IMAGE], [item], 1) for item in items])
    hook.remove()

    assert passed == [5, 1, 1]
    np.testing.assert_allclose(filled, alone, atol=1e-5)


def test_an_image_without_boxes_has_no_masks(student):
    assert segmenter(student).segment([IMAGE, IMAGE], [boxes(), boxes([1, 2, 30, 40])])[0] == []
    assert segmenter(student).segment([], []) == []


def test_neither_images_nor_boxes_are_changed(student):
    image, own = IMAGE.copy(), BOXES.copy()
    image.flags.writeable = own.flags.writeable = False

    segmenter(student, flip=True).segment([image], [own])

    np.testing.assert_array_equal(image, IMAGE)


# Student, teacher, both, and the mirror


def test_two_networks_answer_with_the_mean_of_their_logits(student, teacher):
    for box in BOXES[:3]:
        plane = n_probabilities([student, teacher], IMAGE, box, clip=True)
        threshold = 0.5
        mask = one(segmenter(student, teacher, thresholds=(threshold,) * 3), IMAGE, box)
        np.testing.assert_array_equal(pixels(mask), plane > threshold)


def test_logits_are_averaged_before_they_become_probabilities():
    """Mean logit -1 is a probability of 0.27; the mean of the two probabilities would be 0.48."""
    of = segmenter(Constant(3.0), Constant(-5.0), thresholds=(0.3,) * 3)

    assert one(of, IMAGE, (10, 10, 60, 60)) is None


def test_with_flip_a_symmetrical_answer_stays_and_a_crooked_one_is_straightened(student):
    symmetrical = np.concatenate([IMAGE[:, :90], IMAGE[:, 89::-1]], axis=1)
    # The far corner is a pixel further than the near one, so this window is symmetrical to column 90.
    box = (60.0, 20.0, 119.0, 80.0)
    window = expand(box, (0.3,) * 4)
    assert window.left + window.right == 180

    straight = pixels(one(segmenter(student, flip=True, clip_to_box=False), symmetrical, box))
    crooked = pixels(one(segmenter(student, clip_to_box=False), symmetrical, box))

    np.testing.assert_array_equal(straight, straight[:, ::-1])
    assert (crooked != crooked[:, ::-1]).any()


def test_with_flip_the_logits_of_both_views_are_averaged(student):
    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = student

        def forward(self, crops: Tensor, areas: Tensor) -> Tensor:
            return self.inner(crops.flip(-1), areas).flip(-1)

    flipped = segmenter(student, flip=True).segment([IMAGE], [BOXES])
    averaged = segmenter(student, Mirrored()).segment([IMAGE], [BOXES])

    assert flipped == averaged


# Where a mask may be


@pytest.mark.parametrize(
    "box", [(0, 0, 40, 30), (140, 120, 180, 150), (20.2, 30.9, 22.1, 70.5), (0, 0, 180, 150)], ids=str
)
def test_a_clipped_mask_of_a_sure_network_is_every_pixel_that_the_box_touches_and_no_other(box):
    mask = one(segmenter(Constant(20.0)), IMAGE, box)

    x0, y0, x1, y1 = int(np.floor(box[0])), int(np.floor(box[1])), int(np.ceil(box[2])), int(np.ceil(box[3]))
    expected = np.zeros(IMAGE.shape[:2], bool)
    expected[y0:y1, x0:x1] = True
    # Published masks lose part of a border pixel that the crop's box mask has rounded off.
    assert not (pixels(mask) & ~expected).any()
    assert pixels(mask).sum() >= 0.8 * expected.sum()


def test_an_unclipped_mask_may_fill_its_window_but_never_the_part_that_shows_the_opposite_side():
    """MAL-7: what a crop shows from the opposite side can be the object itself."""
    box = (100.0, 100.0, 180.0, 150.0)
    window = expand(box, (0.3,) * 4)

    mask = one(segmenter(Constant(20.0), clip_to_box=False), IMAGE, box)

    expected = np.zeros(IMAGE.shape[:2], bool)
    expected[window.top :, window.left :] = True
    np.testing.assert_array_equal(pixels(mask), expected)


def test_a_window_larger_than_the_image_leaves_the_masks_inside_of_it():
    """The overhang is more than a whole image."""
    image = np.full((12, 10, 3), 255, np.uint8)
    of = segmenter(Painted(20.0), clip_to_box=False, margin=5.0)

    mask = one(of, image, (0, 0, 10, 12))

    assert expand((0, 0, 10, 12), (5.0,) * 4).width > 5 * 10
    assert pixels(mask).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (179, 149, 180, 150), (90, 70, 91, 71), (90.4, 70.4, 90.9, 70.9)], ids=str
)
def test_a_box_of_a_pixel_has_a_mask_of_that_pixel(box):
    mask = one(segmenter(Constant(20.0)), IMAGE, box)

    assert np.argwhere(pixels(mask)).tolist() == [[int(box[1]), int(box[0])]]


def test_what_is_bright_in_the_box_becomes_its_mask():
    image = np.zeros((120, 160, 3), np.uint8)
    image[30:70, 50:110] = 255

    mask = pixels(one(segmenter(Painted(20.0), crop_size=256), image, (45.0, 25.0, 115.0, 75.0)))

    truth = image[..., 0] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95


# Thresholds, and how stable a mask is


@pytest.mark.parametrize(
    ("box", "own"),
    [
        ((10, 10, 42, 42), 0),
        ((10, 10, 42, 42.1), 1),
        ((10, 10, 106, 106), 1),
        ((10, 10, 106, 106.1), 2),
    ],
    ids=["1024 square pixels", "more", "9216 square pixels", "more still"],
)
def test_the_threshold_is_that_of_the_boxs_area_and_the_limits_belong_to_the_smaller_boxes(box, own):
    """MAL-2: the network's limits and the threshold's are the same."""
    thresholds = [0.9, 0.9, 0.9]
    thresholds[own] = 0.4

    assert one(segmenter(Constant(0.0), thresholds=tuple(thresholds)), IMAGE, box) is not None
    thresholds = [0.4, 0.4, 0.4]
    thresholds[own] = 0.9
    assert one(segmenter(Constant(0.0), thresholds=tuple(thresholds)), IMAGE, box) is None


def test_a_pixel_exactly_on_the_threshold_is_not_in_the_mask():
    assert one(segmenter(Constant(0.0), thresholds=(0.5,) * 3, clip_to_box=False), IMAGE, (10, 10, 60, 60)) is None


def test_an_object_without_a_pixel_above_the_threshold_has_no_mask():
    assert segmenter(Constant(-5.0)).segment([IMAGE], [BOXES]) == [[None] * len(BOXES)]


@settings(max_examples=15)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(0, len(BOXES) - 1))
def test_a_higher_threshold_gives_a_mask_inside_of_the_lower_ones(one_threshold, another, row):
    low, high = sorted((one_threshold, another))
    network = Painted(1.5)

    larger, smaller = (one(segmenter(network, thresholds=(t,) * 3), IMAGE, BOXES[row]) for t in (low, high))

    if smaller is not None:
        assert not (pixels(smaller) & ~pixels(larger)).any()


def test_a_network_that_is_sure_of_every_pixel_has_masks_of_quality_1():
    for clip in (True, False):
        masks = segmenter(Constant(20.0), clip_to_box=clip, thresholds=(0.1,) * 3).segment([IMAGE], [BOXES[1:3]])[0]
        assert all(mask.quality > 0.95 for mask in masks)
    unclipped = one(segmenter(Constant(20.0), clip_to_box=False), IMAGE, BOXES[1])
    assert unclipped.quality == 1


def test_a_guess_has_masks_of_quality_0():
    """All pixels lie between the stricter and the laxer threshold."""
    assert one(segmenter(Constant(0.5), thresholds=(0.5,) * 3), IMAGE, BOXES[1]).quality == 0


@given(st.floats(0.0, 0.99), st.floats(0.1, 5))
def test_the_quality_lies_between_0_and_1_for_every_threshold(threshold, sure):
    mask = one(segmenter(Painted(sure), thresholds=(threshold,) * 3), IMAGE, BOXES[0])

    assert mask is None or 0 <= mask.quality <= 1


def test_logits_that_are_no_numbers_are_an_error_and_no_mask():
    with pytest.raises(
        CheckpointError, match=r"no numbers; its weights are damaged, or its training diverged: use another"
    ):
        one(segmenter(Constant(float("nan"))), IMAGE, BOXES[0])


# From a checkpoint


@pytest.fixture
def folder(tmp_path, student, teacher) -> Path:
    save_checkpoint(tmp_path / "mal", {"student": student, "teacher": teacher}, SIDE)
    return tmp_path / "mal"


def config(folder: Path, **changes) -> SegmenterConfig:
    return replace(CONFIG, checkpoint=str(folder), **changes)


@pytest.mark.parametrize("weights", ["student", "teacher", "mixed"])
def test_the_networks_of_the_checkpoint_that_the_config_names_answer(folder, weights):
    loaded = load_mal_segmenter(config(folder, weights=weights), device="cpu")

    roles = ["student", "teacher"] if weights == "mixed" else [weights]
    expected = segmenter(*(load_network(folder, role) for role in roles))
    assert loaded.segment([IMAGE], [BOXES]) == expected.segment([IMAGE], [BOXES])


def test_the_three_ways_to_answer_give_three_masks(folder):
    """M-6: TAO labels with the student, whatever its spec says."""
    found = [
        load_mal_segmenter(config(folder, weights=weights), device="cpu").segment([IMAGE], [BOXES[1:2]])[0][0].counts
        for weights in ("student", "teacher", "mixed")
    ]

    assert len(set(found)) == 3


def test_the_crop_is_as_large_as_the_checkpoint_says_or_as_the_config_says(folder, student):
    own = load_mal_segmenter(config(folder), device="cpu").segment([IMAGE], [BOXES])
    larger = load_mal_segmenter(config(folder, crop_size=96), device="cpu").segment([IMAGE], [BOXES])

    assert own == segmenter(student).segment([IMAGE], [BOXES])
    assert larger == segmenter(student, crop_size=96).segment([IMAGE], [BOXES])
    assert own != larger


def test_the_margin_decides_how_much_the_network_sees_around_a_box(folder):
    wide = load_mal_segmenter(config(folder, margin=0.6), device="cpu")

    assert wide.segment([IMAGE], [BOXES]) != load_mal_segmenter(config(folder), device="cpu").segment([IMAGE], [BOXES])


def test_an_original_checkpoint_of_a_network_at_one_scale_is_told_so_by_the_config(tmp_path):
    sizes = replace(SIZES, dim=64, heads=1)
    tensors = {f"student.{name}": tensor for name, tensor in MalNetwork(sizes).state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "mal.ckpt")
    asked = config(tmp_path / "mal.ckpt", crop_size=SIDE)

    adjusting = load_mal_segmenter(asked, device="cpu")
    plain = load_mal_segmenter(replace(asked, adjusts_scale=False), device="cpu")

    assert adjusting.networks[0].architecture.adjusts_scale
    assert not plain.networks[0].architecture.adjusts_scale
    assert adjusting.digest != plain.digest


def test_the_digest_is_the_segmenters_without_loading_it(folder):
    assert mal_segmenter_digest(config(folder)) == load_mal_segmenter(config(folder), device="cpu").digest
    assert len(mal_segmenter_digest(config(folder))) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16"},
        {"clip_to_box": False},
        {"thresholds": (0.1, 0.1, 0.2)},
        {"crop_size": 96},
        {"margin": 0.31},
        {"weights": "teacher"},
        {"flip": True},
        {"adjusts_scale": False},
        {"adjusts_scale": False, "scale_before": 2},
        {"adjusts_scale": False, "scale": 1.0},
    ],
    ids=str,
)
def test_whatever_changes_masks_changes_the_digest(folder, changes):
    assert mal_segmenter_digest(config(folder, **changes)) != mal_segmenter_digest(config(folder))


def test_other_weights_change_the_digest_and_another_place_does_not(folder, tmp_path, student):
    before = mal_segmenter_digest(config(folder))

    assert mal_segmenter_digest(config(folder.rename(tmp_path / "moved"))) == before
    save_checkpoint(folder, {"student": student, "teacher": student}, SIDE)
    assert mal_segmenter_digest(config(folder)) != before


def test_saying_what_holds_anyway_does_not_change_the_digest(folder):
    said = config(folder, crop_size=SIDE, adjusts_scale=True, scale_before=1, scale=2.0)

    assert mal_segmenter_digest(said) == mal_segmenter_digest(config(folder))


@pytest.mark.parametrize("of", [mal_segmenter_digest, lambda asked: load_mal_segmenter(asked, device="cpu")])
def test_what_cannot_be_loaded_has_no_digest_either(folder, tmp_path, student, of):
    save_checkpoint(tmp_path / "alone", {"student": student}, SIDE)

    with pytest.raises(CheckpointError, match="holds no teacher"):
        of(config(tmp_path / "alone", weights="mixed"))
    with pytest.raises(CheckpointError, match="does not exist"):
        of(config(tmp_path / "nowhere.ckpt"))
    with pytest.raises(CheckpointError, match="not vit-mae-base/16"):
        of(config(folder, arch="vit-mae-base/16"))
    with pytest.raises(SpecError, match="crop_size: found 100"):
        of(config(folder, crop_size=100))


def test_a_device_that_there_is_not_and_half_precision_without_cuda_are_refused(folder):
    """MAL-16: a CPU is enough, in fp32."""
    with pytest.raises(SpecError, match="'tpu' cannot be used"):
        load_mal_segmenter(config(folder), device="tpu")
    with pytest.raises(SpecError, match="precision fp16 needs a CUDA device"):
        load_mal_segmenter(config(folder, precision="fp16"), device="cpu")
