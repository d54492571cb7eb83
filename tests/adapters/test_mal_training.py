"""The training itself: its schedule, its teacher, its state, and that it goes on exactly where it stopped."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from tasks.domain.errors import CheckpointError, SpecError
from tasks.domain.images import Image
from tasks.domain.masks import Mask
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_boxes import LabelledBoxes
from tasks.domain.training_record import EpochRecord
from tasks.formats.rle import encode_patch
from tasks.models.mal.checkpoints import save_checkpoint
from tasks.models.mal.distributed import Team, Tell, together
from tasks.models.mal.samples import DecodedImages, Pixels, SampleSet
from tasks.models.mal.training import Trainer, frozen_prefixes, learning_rate, warm_up
from tasks.models.mal.training_state import (
    TrainingState,
    architecture_of,
    derived_seed,
    dump_state,
    initial_state,
    load_state,
    network_of,
)
from tasks.models.mal.validation import mask_scores, mean_projection_loss, segmenter_of

SIDE = 64
IMAGES = tuple(Image(f"{i}.png", "0" * 64, SIDE, SIDE) for i in range(8))
CORNERS = np.random.default_rng(0).integers(4, 20, (8, 2))
BOXES = LabelledBoxes(
    IMAGES,
    np.arange(8),
    np.concatenate([CORNERS, CORNERS + np.array([[24, 30]])], axis=1).astype(np.float64),
)


def paint(image: Image) -> Pixels:
    """A bright ellipse that fills its box, on dark noise."""
    left, top, right, bottom = BOXES.boxes[int(image.key[0])]
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 <= 1
    noise = np.random.default_rng(1).integers(0, 40, (SIDE, SIDE, 3))
    return np.where(inside[..., None], 210, noise).astype(np.uint8)


def make_spec(model: dict[str, Any] | None = None, crop_size: int = 32, **train: Any) -> TrainMalSpec:
    network = {"dim": 16, "depth": 2, "heads": 2, "mask_head_hidden_channel": 8, "mask_head_out_channel": 8}
    recipe = {"num_epochs": 3, "batch_size": 2, "lr": 1e-3, "loss_mil_step": 0, "loss_crf_step": 2, "crf_num_iter": 5}
    return TrainMalSpec.model_validate(
        {
            "results_dir": "out",
            "dataset": {
                "train_ann_path": "a",
                "train_img_dir": "b",
                "crop_size": crop_size,
                "num_workers_per_gpu": 0,
            },
            "model": network | (model or {}),
            "train": recipe | train,
        }
    )


def trainer_of(spec: TrainMalSpec, state: TrainingState) -> Trainer:
    rate = spec.train.margin_rate
    samples = SampleSet(BOXES, paint, crop_size=spec.dataset.crop_size, margin_rate=rate, seed=state.seed)
    return Trainer(spec, samples, state, Team())


def begin(spec: TrainMalSpec) -> TrainingState:
    return initial_state(spec, {}, spec.train.seed)


def train(
    spec: TrainMalSpec, epochs: int, state: TrainingState | None = None
) -> tuple[TrainingState, list[TrainingState]]:
    """The state after so many epochs, and copies of those that were kept within them."""
    state = state or begin(spec)
    kept: list[TrainingState] = []
    for _ in range(epochs):
        trainer = trainer_of(spec, load_state(dump_state(state), "state"))
        trainer.run_epoch(lambda boxes: None, lambda now: kept.append(load_state(dump_state(now), "state")))
        state = trainer.state
    return state, kept


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# --- the schedule


@pytest.mark.parametrize(
    ("progress", "share"), [(0, 0), (0.5, 0.5), (1, 1), (5.5, 0.6), (10, 0.2), (1.0 + 9 / 4, 0.2 + 0.8 * 0.853553)]
)
def test_the_learning_rate_grows_in_a_line_and_falls_along_a_cosine(progress: float, share: float) -> None:
    assert learning_rate(make_spec(num_epochs=10).train, 2.0, progress) == pytest.approx(2.0 * share, rel=1e-5)


def test_without_warm_up_the_learning_rate_begins_at_its_peak() -> None:
    assert learning_rate(make_spec(warmup_epochs=0).train, 2.0, 0) == 2.0


def test_the_learning_rate_is_for_each_box_of_a_step() -> None:
    spec = make_spec(accum_grad_batches=2, lr=0.25, warmup_epochs=0)
    trainer = trainer_of(spec, begin(spec))
    assert trainer.boxes_per_step == 4
    assert trainer.run_epoch(lambda boxes: None, lambda state: None).lr <= 1.0


@pytest.mark.parametrize(("epoch", "step", "share"), [(0, 0, 0), (0, 25, 0.25), (0, 200, 1), (1, 0, 1)])
def test_a_loss_comes_in_over_the_first_epoch_alone(epoch: int, step: int, share: float) -> None:
    assert warm_up(epoch, step, 100) == share


def test_a_loss_without_warm_up_counts_at_once() -> None:
    assert warm_up(0, 0, 0) == 1


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        ((-1,), []),
        ((0,), ["backbone.patch_embed."]),
        ((0, 0), ["backbone.patch_embed."]),
        ((1,), ["backbone.patch_embed.", "backbone.blocks.0."]),
        ((0, 2), ["backbone.patch_embed.", "backbone.blocks.0.", "backbone.blocks.1."]),
        ((2, 2), ["backbone.blocks.1."]),
        ((0, 2, 4), ["backbone.patch_embed.", "backbone.blocks.1.", "backbone.blocks.3."]),
        ((-1, -1, -1), []),
    ],
)
def test_frozen_stages_are_a_range_of_the_stem_and_the_blocks_or_named_one_by_one(
    stages: tuple[int, ...], frozen: list[str]
) -> None:
    assert list(frozen_prefixes(stages)) == frozen


def test_a_frozen_stage_keeps_its_weights_and_the_others_do_not() -> None:
    spec = make_spec({"frozen_stages": [0, 1]})
    before, (after, _) = begin(spec), train(spec, 2)
    changed = {name for name in before.student if not torch.equal(before.student[name], after.student[name])}
    assert not [name for name in changed if name.startswith(("backbone.patch_embed.", "backbone.blocks.0."))]
    assert {"backbone.blocks.1.mlp.fc1.weight", "mask_head.convs.0.conv.weight"} <= changed


# --- student and teacher


def test_the_teacher_begins_as_a_copy_of_the_student() -> None:
    """MAL-5: the published teacher begins with random heads of its own."""
    state = begin(make_spec())
    assert difference(state.student, state.teacher) == 0


def test_the_teacher_follows_the_student_and_nothing_else() -> None:
    """MAL-5: nor does an optimiser move it."""
    spec = make_spec({"teacher_momentum": 0.75}, batch_size=8, warmup_epochs=0)
    before, (after, _) = begin(spec), train(spec, 1)  # one step
    expected = {name: 0.75 * before.teacher[name] + 0.25 * after.student[name] for name in before.teacher}
    assert difference(expected, after.teacher) < 1e-7
    assert difference(before.teacher, after.teacher) > 0


def test_training_brings_the_masks_to_their_boxes() -> None:
    spec = make_spec(num_epochs=12, warmup_epochs=0, lr=2e-3)
    pictures = DecodedImages(paint, 10**6)
    before, (after, _) = begin(spec), train(spec, 12)
    losses = [
        mean_projection_loss(spec, network_of(spec, state.student), BOXES, pictures, lambda boxes: None)
        for state in (before, after)
    ]
    assert losses[1] < 0.6 * losses[0]


# --- the same weights however it is run


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    (first, _), (second, _) = train(make_spec(), 2), train(make_spec(), 2)
    assert all(torch.equal(first.student[name], second.student[name]) for name in first.student)


def test_two_batches_of_two_make_the_step_of_one_batch_of_four() -> None:
    """MAL-8: the published training cannot accumulate gradients."""
    whole, _ = train(make_spec(batch_size=4), 2)
    parts, _ = train(make_spec(batch_size=2, accum_grad_batches=2), 2)
    assert difference(whole.student, parts.student) < 1e-5
    assert difference(whole.student, begin(make_spec()).student) > 1e-3


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_going_on_within_an_epoch_gives_the_same_weights_to_the_bit(drop_path: float) -> None:
    """MAL-11: users who resumed the published training got NaN from the second batch on."""
    spec = make_spec({"vit_dpr": drop_path}, checkpoint_interval=1, checkpoint_interval_unit="step")
    straight, kept = train(spec, 2)
    assert [(state.epoch, state.step) for state in kept] == [(epoch, step) for epoch in (0, 1) for step in (1, 2, 3)]
    again, _ = train(spec, 2, state=kept[1])
    assert all(torch.equal(straight.student[name], again.student[name]) for name in straight.student)
    assert all(torch.equal(straight.teacher[name], again.teacher[name]) for name in straight.teacher)


def test_the_record_of_an_epoch_is_the_same_when_it_was_interrupted() -> None:
    spec = make_spec(checkpoint_interval=2, checkpoint_interval_unit="step")
    straight, kept = train(spec, 1)
    again, _ = train(spec, 1, state=kept[0])
    (first,), (second,) = straight.epochs, again.epochs
    assert {**first, "seconds": 0} == pytest.approx({**second, "seconds": 0})


def test_bf16_on_the_cpu_learns_other_weights_that_are_numbers() -> None:
    mixed, _ = train(make_spec(amp_precision="bf16"), 1)
    single, _ = train(make_spec(amp_precision="fp16"), 1)
    assert all(bool(tensor.isfinite().all()) for tensor in mixed.student.values())
    assert 0 < difference(mixed.student, single.student) < 0.1


def test_fp16_on_the_cpu_is_single_precision() -> None:
    """MAL-16: the published code casts to fp16 whatever the device."""
    (mixed, _), (single, _) = train(make_spec(use_amp=True), 1), train(make_spec(use_amp=False), 1)
    assert difference(mixed.student, single.student) == 0


def test_the_outlines_can_be_refined_at_a_greater_resolution() -> None:
    (once, _), (twice, _) = train(make_spec(loss_crf_step=0), 1), train(make_spec(loss_crf_step=0, crf_size_ratio=2), 1)
    assert difference(once.student, twice.student) > 0


def test_a_loss_without_weight_is_not_on_record() -> None:
    state, _ = train(make_spec(loss_crf_weight=0), 1)
    assert state.epochs[0]["refinement_loss"] is None


def test_losses_that_are_no_numbers_end_the_training_before_the_state_is_lost() -> None:
    with pytest.raises(SpecError, match=r"no number any more by step 3 of epoch 0; try a smaller train\.lr"):
        train(make_spec(lr=1e30, warmup_epochs=0), 1)


# --- the state


def test_a_state_comes_back_equal() -> None:
    state, _ = train(make_spec(), 1)
    again = load_state(dump_state(state), "last.pt")
    assert dump_state(again) == dump_state(load_state(dump_state(again), "last.pt"))
    assert (again.epoch, again.step, again.seed, again.epochs) == (1, 0, 1234, state.epochs)
    assert difference(state.student, again.student) == 0


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"\x80\x02\x95"])
def test_a_damaged_state_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt is no state of a training, or damaged"):
        load_state(data, "last.pt")


@pytest.mark.parametrize("content", [{"format": 1}, {"format": 1, "totals": {}}, {"format": 1, "totals": {"other": 1}}])
def test_a_state_with_parts_missing_is_refused(content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with pytest.raises(CheckpointError, match=r"last\.pt is no state of a training, or damaged"):
        load_state(buffer.getvalue(), "last.pt")


@pytest.mark.filterwarnings("error")
def test_a_state_of_the_old_format_is_refused_wherever_it_was_cut_off() -> None:
    buffer = io.BytesIO()
    torch.save({"format": 1, "student": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    for end in range(len(data)):
        with pytest.raises(CheckpointError, match=r"last\.pt is no state of a training, or damaged"):
            load_state(data[:end], "last.pt")


@pytest.mark.filterwarnings("error")
def test_a_file_of_another_pickle_protocol_is_refused_without_a_warning() -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt is no state"):
        load_state(pickle.dumps({"format": 1}, protocol=4), "last.pt")


@pytest.mark.parametrize("scale", [0.0, 0.01])
def test_a_scale_that_leaves_no_pixel_is_refused_before_anything_is_trained(scale: float) -> None:
    """A crop of 32 pixels has 2 x 2 tokens."""
    with pytest.raises(SpecError, match=rf"mask_scale_ratio: found {scale:g}, expected at least 0\.5"):
        begin(make_spec({"not_adjust_scale": True, "mask_scale_ratio": scale}))


def test_the_smallest_scale_that_leaves_a_pixel_can_be_trained() -> None:
    state, _ = train(make_spec({"not_adjust_scale": True, "mask_scale_ratio": 0.5}), 1)
    assert all(bool(tensor.isfinite().all()) for tensor in state.student.values())


def test_a_checkpoint_of_another_trainer_is_refused_with_the_way_out(tmp_path) -> None:
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "tao.pth")
    with pytest.raises(CheckpointError, match=r"as train\.pretrained_model_path"):
        load_state((tmp_path / "tao.pth").read_bytes(), "tao.pth")


def test_a_training_starts_from_the_weights_of_another(tmp_path) -> None:
    """MAL-11: the way on from a released checkpoint."""
    spec = make_spec()
    trained, _ = train(spec, 1)
    save_checkpoint(tmp_path, {"student": network_of(spec, trained.student)}, spec.dataset.crop_size)
    start = begin(make_spec(pretrained_model_path=str(tmp_path), seed=7))
    assert difference(start.student, trained.student) == 0
    assert difference(start.teacher, trained.student) == 0


def test_the_networks_that_are_not_published_have_positions_for_their_own_crop() -> None:
    assert (architecture_of(make_spec(crop_size=64)).grid, architecture_of(TrainMalSpec.model_construct()).grid) == (
        4,
        14,
    )


def test_building_a_network_leaves_other_randomness_alone() -> None:
    spec = make_spec()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network_of(spec, begin(spec).student)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_of_different_words_differ() -> None:
    assert len({derived_seed(1, a, b) for a in range(8) for b in range(8)}) == 64


# --- measuring


class Oracle:
    """A segmenter that answers with the masks it is given, in turns."""

    digest = ""

    def __init__(self, answers: list[Mask | None]) -> None:
        self._answers = list(answers)

    def segment(self, images: Any, boxes: Any, *, batch_size: int = 1) -> list[list[Mask | None]]:
        return [[self._answers.pop(0) for _ in own] for own in boxes]


def masked_boxes() -> tuple[LabelledBoxes, list[Mask]]:
    shapes = [np.asarray(paint(image)[..., 0] == 210) for image in IMAGES]
    counts = [encode_patch(shape, 0, 0, SIDE, SIDE) for shape in shapes]
    masks = [Mask(SIDE, SIDE, code, int(shape.sum()), 1.0) for code, shape in zip(counts, shapes, strict=True)]
    return LabelledBoxes(BOXES.images, BOXES.image_of, BOXES.boxes, tuple(counts)), masks


def test_the_true_masks_score_1_and_a_missing_one_0() -> None:
    truth, masks = masked_boxes()
    pictures = DecodedImages(paint, 10**6)
    told: list[int] = []
    scores = mask_scores(Oracle([None, *masks[1:]]), truth, pictures, 4, told.append)
    assert (scores.boxes, scores.overall, scores.small, scores.medium, scores.large) == (8, 7 / 8, 7 / 8, None, None)
    assert sum(told) == 8


def test_a_score_is_the_mean_iou_of_pycocotools() -> None:
    """MAL-21: published numbers by size are of other objects."""
    truth, masks = masked_boxes()
    answers = masks[1:] + masks[:1]
    scores = mask_scores(Oracle(list(answers)), truth, DecodedImages(paint, 10**6), 4, lambda boxes: None)
    codes = [[{"size": [SIDE, SIDE], "counts": m.counts} for m in given] for given in (answers, masks)]
    ious = np.diag(coco_mask.iou(*codes, [0] * 8))
    assert scores.overall == pytest.approx(ious.mean(), abs=1e-6)


def test_a_network_is_measured_as_it_will_label() -> None:
    spec = make_spec(mask_thres=[0.5])
    state, _ = train(spec, 1)
    truth, _ = masked_boxes()
    segmenter = segmenter_of(spec, network_of(spec, state.student))
    scores = mask_scores(segmenter, truth, DecodedImages(paint, 10**6), 4, lambda boxes: None)
    assert scores.overall is not None
    assert 0 < scores.overall < 1


# --- processes


def _fail(team: Team, tell: Tell) -> EpochRecord:
    raise CheckpointError(f"cannot train as {team.rank}")


def test_one_device_needs_no_other_process() -> None:
    """MAL-17: the published code asks for the rank in a process group, even on one GPU."""
    with pytest.raises(CheckpointError, match="cannot train as 0"):
        together(_fail, ("cpu",), lambda samples: None)
