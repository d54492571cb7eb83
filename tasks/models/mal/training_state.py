"""The state of a training: both networks, the optimiser, and how far it is; written to a file and read again."""

import copy
import io
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.domain.artifacts import Json
from tasks.domain.errors import CheckpointError
from tasks.domain.spec_train_mal import TOKEN, TrainMalSpec
from tasks.models.mal.architecture import ARCHITECTURES, MalArchitecture
from tasks.models.mal.backbones import load_backbone
from tasks.models.mal.network import MalNetwork
from tasks.models.tensor_files import UNREADABLE, load_plain

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when an older version would misread a state


@dataclass
class Totals:
    """Sums over the steps of an epoch so far; `refined` counts those in which the second loss had a weight."""

    projection_loss: float = 0.0
    refinement_loss: float = 0.0
    steps: int = 0
    refined: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass
class TrainingState:
    """Where a training stands, on the CPU.

    Attributes:
        asked: everything on which the weights depend, by name: another training does not go on from here.
        seed: of all randomness.
        epoch: that is under way or, with `step` 0, about to begin; counted from 0.
        step: of this epoch that comes next.
        student: tensors of the network that is trained.
        teacher: tensors of the one that follows it.
        optimiser: moments of AdamW; None before the first step.
        scaler: scale of the gradients in mixed precision; empty without.
        totals: of the epoch that is under way.
        epochs: the records of the epochs before it.
    """

    asked: dict[str, Json]
    seed: int
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    epoch: int = 0
    step: int = 0
    optimiser: dict[str, Any] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    epochs: list[dict[str, Any]] = field(default_factory=list)


def architecture_of(spec: TrainMalSpec) -> MalArchitecture:
    """The network that the spec asks for. Raises SpecError for sizes that make none, or none for the spec's crops.

    The position embedding of a network of the user's own sizes is made for the crop itself; that of a published one for
    its pretraining, and resized.
    """
    asked = spec.model
    published = ARCHITECTURES[asked.arch]
    dim, depth, heads = asked.sizes or (published.dim, published.depth, published.heads)
    architecture = MalArchitecture(
        dim=dim,
        depth=depth,
        heads=heads,
        stem=asked.stem,
        grid=spec.dataset.crop_size // TOKEN if asked.sizes else published.grid,
        head_convs=asked.mask_head_num_convs,
        head_hidden=asked.mask_head_hidden_channel,
        head_out=asked.mask_head_out_channel,
        adjusts_scale=not asked.not_adjust_scale,
        scale_before=asked.mask_scale_ratio_pre,
        scale=asked.mask_scale_ratio,
    )
    architecture.refuse_crop(spec.dataset.crop_size)
    return architecture


def initial_state(spec: TrainMalSpec, asked: Mapping[str, Json], seed: int) -> TrainingState:
    """Random weights of `seed`, or those of `train.pretrained_model_path`; the teacher is a copy of the student.

    Raises CheckpointError where these weights cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = MalNetwork(architecture_of(spec))
    path = spec.train.pretrained_model_path
    if path and (absent := load_backbone(student, path)):
        logger.warning("%s has no %s: these start from random weights", path, ", ".join(absent))
    tensors = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    return TrainingState(dict(asked), seed, tensors, copy.deepcopy(tensors))


def network_of(spec: TrainMalSpec, tensors: Mapping[str, Tensor], drop_path: float = 0.0) -> MalNetwork:
    """The student or the teacher of a state, on the CPU and in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        network = MalNetwork(architecture_of(spec), drop_path)
    network.load_state_dict(tensors)
    return network.eval()


def derived_seed(*words: int) -> int:
    """A seed of 32 bits from others."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def dump_state(state: TrainingState) -> bytes:
    """The bytes of a state, which hold tensors and plain values alone."""
    content = {name.name: getattr(state, name.name) for name in fields(state)}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content, "totals": vars(state.totals)}, buffer)
    return buffer.getvalue()


def load_state(data: bytes, what: str) -> TrainingState:
    """The state that `dump_state` wrote; `what` names the file. Raises CheckpointError for anything else."""
    try:
        content = load_plain(io.BytesIO(data))
    except (*UNREADABLE, pickle.UnpicklingError) as error:
        raise CheckpointError(_damaged(what)) from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{what} is no state of this trainer; give weights of another one as train.pretrained_model_path"
        )
    try:
        return TrainingState(**{**content, "totals": Totals(**content["totals"])})
    except (LookupError, TypeError) as error:
        raise CheckpointError(_damaged(what)) from error


def _damaged(what: str) -> str:
    return f"{what} is no state of a training, or damaged; delete it to begin anew"
