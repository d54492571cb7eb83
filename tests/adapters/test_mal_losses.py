"""The objective: dice, projections and the mean field, against loops that follow the formulas one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tasks.models.mal.losses import MeanField, dice_loss, projection_loss, refinement_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def box_mask(batch: int, side: int, box: tuple[int, int, int, int]) -> Tensor:
    mask = torch.zeros(batch, 1, side, side)
    left, top, right, bottom = box
    mask[..., top:bottom, left:right] = 1
    return mask


def n_dice(a: list[float], b: list[float]) -> float:
    overlap = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - 2 * overlap / (sum(x * x for x in a) + 0.001 + sum(y * y for y in b) + 0.001)


def n_projection(probabilities: Tensor, masks: Tensor) -> float:
    total = 0.0
    for p, m in zip(probabilities[:, 0].tolist(), masks[:, 0].tolist(), strict=True):
        total += n_dice([max(row) for row in p], [max(row) for row in m])
        total += n_dice([max(column) for column in zip(*p, strict=True)], [max(c) for c in zip(*m, strict=True)])
    return total / (len(probabilities) + 1e-4)


def n_refine(pictures: Tensor, probabilities: Tensor, masks: Tensor, field: MeanField) -> Tensor:
    """With neighbourhoods by `unfold`, in double precision, all iterations."""
    batch, _, height, width = pictures.shape
    k = field.kernel_size
    raised = pictures.double() + 10
    patches = functional.unfold(raised, k, padding=k // 2).view(batch, 3, k * k, height, width)
    kernel = torch.exp(-((patches - raised[:, :, None]) ** 2).sum(1) / (2 * field.zeta**2))  # (B, k * k, h, w)
    masks = masks.double()
    q = (probabilities.double() * masks).clamp(field.low, field.high)
    for _ in range(field.iterations):
        support = []
        for chance in (1 - q, q):
            energies = functional.unfold(-torch.log(chance), k, padding=k // 2).view(batch, k * k, height, width)
            support.append(torch.exp(-(kernel * energies).sum(1, keepdim=True)))
        support[1] = support[1] * masks
        q = (support[1] / (support[0] + support[1] + 1e-6)).clamp(field.low, field.high)
    return (q > 0.5).float()


# Dice


@given(st.integers(0, 10_000))
def test_dice_is_that_of_the_formula_for_every_sample_on_its_own(seed):
    a, b = drawn(3, 1, 4, 5, seed=seed), drawn(3, 1, 4, 5, seed=seed + 1)

    expected = [n_dice(x.flatten().tolist(), y.flatten().tolist()) for x, y in zip(a, b, strict=True)]

    assert dice_loss(a, b).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000))
def test_dice_lies_between_0_and_1_and_is_symmetrical(seed):
    a, b = drawn(2, 6, seed=seed), drawn(2, 6, seed=seed + 1)

    assert torch.equal(dice_loss(a, b), dice_loss(b, a))
    assert bool(((dice_loss(a, b) >= 0) & (dice_loss(a, b) <= 1)).all())


def test_equal_masks_have_no_dice_loss_and_disjoint_ones_all_of_it():
    mask = box_mask(1, 32, (4, 4, 20, 20))

    assert dice_loss(mask, mask).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(mask, 1 - mask).item() == 1


# Projections


@given(st.integers(0, 10_000))
def test_the_projection_loss_is_that_of_the_formula(seed):
    probabilities, masks = drawn(3, 1, 5, 7, seed=seed), drawn(3, 1, 5, 7, seed=seed + 1).round()

    assert projection_loss(probabilities, masks).item() == pytest.approx(n_projection(probabilities, masks), abs=1e-6)


def test_a_mask_that_touches_all_four_sides_of_its_box_has_no_projection_loss():
    cross = torch.zeros(1, 1, 32, 32)
    cross[..., 10, 4:20] = 1
    cross[..., 6:18, 9] = 1

    assert projection_loss(cross, box_mask(1, 32, (4, 6, 20, 18))).item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("box", [(4, 6, 12, 18), (4, 6, 20, 12), (0, 6, 20, 18), (4, 6, 20, 30)])
def test_a_mask_that_falls_short_of_its_box_or_leaves_it_has_a_projection_loss(box):
    loss = projection_loss(box_mask(1, 32, box), box_mask(1, 32, (4, 6, 20, 18)))

    assert loss.item() > 0.05


# The mean field


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([3, 5]), st.sampled_from([0.1, 0.5]))
def test_the_refined_masks_are_those_of_the_formula(seed, kernel_size, zeta):
    # Neighbours that resemble each other, as in a photo: noise would leave every pixel alone.
    coarse = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    pictures = functional.interpolate(coarse, (16, 16), mode="bilinear") * 0.3
    probabilities = drawn(2, 1, 16, 16, seed=seed)
    masks = functional.interpolate(box_mask(2, 20, (3, 4, 15, 18)), (16, 16), mode="bilinear")
    field = MeanField(zeta=zeta, kernel_size=kernel_size, iterations=30)

    refined = field.refine(pictures, probabilities, masks)

    assert torch.equal(refined, n_refine(pictures, probabilities, masks, field))


def test_the_published_hundred_iterations_give_the_labels_of_the_formula():
    pictures = functional.interpolate(torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(3)), (32, 32))
    probabilities, masks = drawn(4, 1, 32, 32), box_mask(4, 32, (5, 5, 27, 30))

    refined = MeanField().refine(pictures, probabilities, masks)

    assert torch.equal(refined, n_refine(pictures, probabilities, masks, MeanField()))
    assert 0 < refined.mean() < 1


def test_holes_and_specks_of_a_guess_are_mended_up_to_the_edge_that_the_colours_show():
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 4:11, 6:13] = 2.0
    truth = (picture[:, :1] > 1).float()
    guess = 0.2 + 0.6 * truth
    guess[..., 5, 6], guess[..., 8, 9], guess[..., 3, 6], guess[..., 13, 2] = 0.2, 0.2, 0.8, 0.8

    refined = MeanField().refine(picture, guess, torch.ones(1, 1, 16, 16))

    assert torch.equal(refined, truth)


@given(st.integers(0, 1000))
def test_no_refined_mask_leaves_its_box(seed):
    masks = box_mask(1, 12, (3, 2, 9, 10))

    refined = MeanField(iterations=10).refine(drawn(1, 3, 12, 12, seed=seed), drawn(1, 1, 12, 12), masks)

    assert not bool(refined[masks == 0].any())
    assert set(refined.unique().tolist()) <= {0.0, 1.0}


def test_a_picture_in_half_precision_is_refined_in_single_precision():
    picture = (drawn(1, 3, 8, 8) * 2).half()
    guess, masks = drawn(1, 1, 8, 8), torch.ones(1, 1, 8, 8)

    assert torch.equal(MeanField().refine(picture, guess, masks), MeanField().refine(picture.float(), guess, masks))


# Both together


def test_the_refinement_loss_is_the_dice_to_the_refined_mean_of_student_and_teacher():
    student, teacher, masks = drawn(2, 1, 8, 8), drawn(2, 1, 8, 8, seed=1), box_mask(2, 8, (1, 1, 7, 7))
    pictures, field = drawn(2, 3, 32, 32, seed=2), MeanField(iterations=5)

    loss = refinement_loss(student, teacher, pictures, masks, field)

    scaled = functional.interpolate(pictures, (8, 8), mode="bilinear", align_corners=False)
    refined = n_refine(scaled, (student + teacher) / 2, masks, field)
    expected = [n_dice(a.flatten().tolist(), b.flatten().tolist()) for a, b in zip(student, refined, strict=True)]
    assert loss.item() == pytest.approx(math.fsum(expected) / 2, abs=1e-6)


def test_only_the_student_learns_from_the_refinement():
    student, teacher = drawn(1, 1, 8, 8).requires_grad_(), drawn(1, 1, 8, 8, seed=1).requires_grad_()

    refinement_loss(student, teacher, drawn(1, 3, 8, 8), torch.ones(1, 1, 8, 8), MeanField()).backward()

    assert student.grad is not None
    assert teacher.grad is None
