"""What the published programs for Mask Auto-Labeler do wrong and these modules must not: docs/known_defects.md."""

import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flows import settings
from tasks.domain.errors import SpecError
from tasks.domain.images import Image
from tasks.domain.spec import validate_spec
from tasks.domain.spec_train_mal import TrainMalSpec
from tasks.domain.training_boxes import LabelledBoxes
from tasks.formats.spec_yaml import parse_root
from tasks.models import SegmenterConfig
from tasks.models.mal.checkpoints import save_checkpoint
from tasks.models.mal.distributed import Team
from tasks.models.mal.losses import MeanField
from tasks.models.mal.samples import Pixels, SampleSet
from tasks.models.mal.segmenter import MalSegmenter, load_mal_segmenter
from tasks.models.mal.training import Trainer
from tasks.models.mal.training_state import TrainingState, initial_state, network_of

SIDE = 64
BOXES = LabelledBoxes(
    tuple(Image(f"{i}.png", "0" * 64, SIDE, SIDE) for i in range(4)),
    np.arange(4),
    np.array([[4.0, 6.0, 30.0, 34.0], [10.0, 8.0, 50.0, 40.0]] * 2),
)
SPEC: dict[str, Any] = {
    "results_dir": "out",
    "dataset": {"train_ann_path": "a", "train_img_dir": "b", "crop_size": 32, "num_workers_per_gpu": 0},
    "model": {"dim": 16, "depth": 2, "heads": 2, "mask_head_hidden_channel": 8, "mask_head_out_channel": 8},
    "train": {"num_epochs": 1, "batch_size": 2, "lr": 1e-3, "loss_mil_step": 0, "loss_crf_step": 0, "crf_num_iter": 5},
}


def paint(image: Image) -> Pixels:
    """Coloured noise, so that every distortion of a crop shows."""
    rng = np.random.default_rng(int(image.key[0]))
    return rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)


def make_spec(model: dict[str, Any] | None = None, **train: Any) -> TrainMalSpec:
    return TrainMalSpec.model_validate(
        SPEC | {"model": SPEC["model"] | (model or {}), "train": SPEC["train"] | train},
    )


def trainer_of(spec: TrainMalSpec) -> Trainer:
    state = initial_state(spec, {}, spec.train.seed)
    samples = SampleSet(BOXES, paint, crop_size=32, margin_rate=spec.train.margin_rate, seed=state.seed)
    return Trainer(spec, samples, state, Team())


def run_epoch(trainer: Trainer) -> TrainingState:
    trainer.run_epoch(lambda boxes: None, lambda state: None)
    return trainer.state


# --- training


def test_the_optimiser_is_given_the_student_alone() -> None:
    """MAL-5: the published optimiser is given the teacher too, which only its lack of gradients protects."""
    state = run_epoch(trainer_of(make_spec()))
    assert state.optimiser is not None
    (group,) = state.optimiser["param_groups"]
    assert len(group["params"]) == len(state.student)


def test_the_teacher_skips_no_branch_while_the_student_does() -> None:
    """MAL-5: the published trainer turns the teacher back to training, where stochastic depth changes its answer."""
    trainer = trainer_of(make_spec({"vit_dpr": 0.5}))
    modes: dict[str, set[bool]] = {"student": set(), "teacher": set()}
    networks = {"student": trainer._student, "teacher": trainer._teacher}
    for name, network in networks.items():
        for module in network.modules():
            module.register_forward_pre_hook(lambda asked, _, name=name: modes[name].add(asked.training))
    run_epoch(trainer)
    assert modes == {"student": {True}, "teacher": {False}}


class Watched(MeanField):
    """Keeps the pictures that it refines with."""

    def refine(self, pictures: Tensor, probabilities: Tensor, box_masks: Tensor) -> Tensor:
        self.__dict__.setdefault("seen", []).append(pictures)
        return super().refine(pictures, probabilities, box_masks)


def test_outlines_are_refined_with_the_colours_that_the_student_sees() -> None:
    """MAL-6: as published: the picture is jittered, maybe grey or blurred, and not the teacher's."""
    trainer = trainer_of(make_spec())
    field = trainer._field = Watched()
    views: list[Tensor] = []
    trainer._student.register_forward_pre_hook(lambda _, inputs: views.append(inputs[0]))
    run_epoch(trainer)
    seen = field.__dict__["seen"]
    assert len(seen) == len(views) == 2
    for pictures, view in zip(seen, views, strict=True):
        expected = functional.interpolate(view, pictures.shape[-2:], mode="bilinear", align_corners=False)
        assert torch.equal(pictures, expected)


def test_zeta_of_the_spec_decides_what_is_learned() -> None:
    """MAL-6: which one made the published weights is not known, so that it has to be the user's choice."""
    one, other = (run_epoch(trainer_of(make_spec(crf_zeta=zeta))) for zeta in (0.1, 5.0))
    assert any(not torch.equal(one.student[name], other.student[name]) for name in one.student)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.optim_type=sgd", 'train.optim_type: found "sgd"'),
        ("train.crf_omega=2", "train.crf_omega: unknown key"),
        ("train.use_crf_test=true", "train.use_crf_test: unknown key"),
        ("dataset.image_size=512", "dataset.image_size: unknown key"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(override: str, problem: str) -> None:
    """MAL-8: the published programs accept these and train as if they were not there."""
    with pytest.raises(SpecError) as refused:
        parse_root(TrainMalSpec, "results_dir: out", [override], source="spec.yaml")
    assert problem in str(refused.value)


def test_a_momentum_that_would_do_nothing_is_named() -> None:
    """MAL-8: TAO's specs carry `optim_momentum`, which AdamW has not."""
    spec = make_spec(optim_momentum=0.5)
    assert "train.optim_momentum" in spec.unused_keys()


def test_weights_to_start_from_stay_numbers_after_the_first_batch(tmp_path: Path) -> None:
    """MAL-11: the published training gave NaN from the second batch on, when it went on from a released checkpoint."""
    spec = make_spec()
    trained = run_epoch(trainer_of(spec))
    save_checkpoint(tmp_path, {role: network_of(spec, trained.student) for role in ("student", "teacher")}, 32)
    again = run_epoch(trainer_of(make_spec(pretrained_model_path=str(tmp_path), warmup_epochs=0)))
    assert again.epochs[0]["samples"] > spec.train.batch_size
    assert all(bool(tensor.isfinite().all()) for tensor in (again.student | again.teacher).values())


# --- devices


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs, as far as is asked here."""
    monkeypatch.delenv("AUTOLABEL_DEVICE", raising=False)
    monkeypatch.setattr(settings, "cuda_is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
def test_training_takes_the_gpus_that_are_named_though_they_do_not_start_at_0() -> None:
    """M-1b, MAL-17: TAO hides all GPUs but these, and then asks for them by their old numbers."""
    assert settings.training_devices(make_spec(gpu_ids=[2, 3], num_gpus=2).train) == ("cuda:2", "cuda:3")


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("ids", "device"), [([1], "cuda:1"), ([2, 3], "cuda:2")])
def test_masks_are_made_on_the_gpu_that_is_named_though_it_is_not_number_0(ids: list[int], device: str) -> None:
    """M-1b, M-2: TAO takes a single GPU that is not number 0 for a helper of another."""
    mal = {"checkpoint": "mal.pth", "inference": {"ann_path": "boxes.json", "img_dir": "images"}}
    spec = validate_spec({"autolabel_type": "mal", "results_dir": "out", "gpu_ids": ids, "mal": mal})
    assert settings.settings_for(spec).device == device


# --- labelling


def test_a_segmenter_is_loaded_and_answers_without_a_network_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAL-16: the published model downloads a pretrained backbone, even where a checkpoint replaces all of it."""
    spec = make_spec()
    save_checkpoint(tmp_path, {"student": network_of(spec, initial_state(spec, {}, 0).student)}, 32)

    def refuse(*address: Any) -> None:
        raise AssertionError(f"asked for {address}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    segmenter = load_mal_segmenter(SegmenterConfig("mal", str(tmp_path)), device="cpu")
    assert len(segmenter.segment([paint(BOXES.images[0])], [BOXES.boxes[:2]])[0]) == 2


class Sure(nn.Module):
    """Stands for a network that takes every pixel for the object."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(9.0), requires_grad=False)

    def forward(self, crops: Tensor, boxes: Tensor) -> Tensor:
        return self.logit.expand(len(crops), 1, 8, 8)


def test_an_object_of_a_huge_image_takes_the_memory_of_its_box() -> None:
    """MAL-19: the published code holds floats for the whole image, 66 MB of them for every object of a 4K image."""
    side = 8192
    image = np.broadcast_to(np.uint8(90), (side, side, 3))
    boxes = np.array([[100.0 * i, 50.0, 100.0 * i + 60, 90.0] for i in range(8)])
    segmenter = MalSegmenter([Sure()], SegmenterConfig("mal", "none"), crop_size=32, digest="")
    tracemalloc.start()
    masks = segmenter.segment([image], [boxes], batch_size=8)[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [mask.area for mask in masks if mask] == [60 * 40] * 8
    assert peak < side * side / 8  # an eighth of what one byte for every pixel of the image would take


# --- the environment

ROOT = Path(__file__).parents[2]
FOREIGN = (
    "apex",
    "fairscale",
    "lightning",
    "mmcv",
    "mmdet",
    "pytorch_lightning",
    "timm",
    "torchmetrics",
    "torchvision",
)
MODULES = sorted(f"tasks.models.mal.{path.stem}" for path in (ROOT / "tasks/models/mal").glob("[!_]*.py"))


def in_a_new_process(code: str) -> str:
    """What `code` prints; the repository is the folder it runs in."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_training_and_labelling_need_none_of_the_frameworks_of_the_published_code() -> None:
    """MAL-20: they pin old versions of these, some compiled, and do not run with a torch of today."""
    block = f"import sys; sys.modules.update(dict.fromkeys({FOREIGN!r}))"
    wanted = ", ".join([*MODULES, "flows.train_mal", "flows.segment_masks"])
    assert in_a_new_process(f"{block}\nimport {wanted}\nprint('imported')") == "imported"


def test_importing_the_models_leaves_torch_as_it_is() -> None:
    """MAL-22: importing TAO's trainer replaces `load_state_dict` of every module there is."""
    names = "[(name, value) for c in (nn.Module, torch.optim.Optimizer) for name, value in sorted(vars(c).items())]"
    code = f"import torch; from torch import nn\nbefore = {names}\nimport {', '.join(MODULES)}\n"
    assert in_a_new_process(f"{code}print([a[0] for a, b in zip(before, {names}) if a[1] is not b[1]])") == "[]"
