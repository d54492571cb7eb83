"""The training of Mask Auto-Labeler from boxes alone: an epoch at a time, from a state and to a state.

A student learns two things at once: its mask reaches every side of the box and does not leave it (`projection_loss`),
and its outline is where the colours change (`refinement_loss`), for which its own mask and that of a teacher are
refined together. The teacher follows the student slowly. See arXiv 2301.03992, section 3.

Where this differs from the published training: the teacher starts as a copy of the student, and stays out of the
optimiser; the learning rate is set before a step and not after it; the last batch of an epoch is filled up; gradients
may be accumulated over several batches.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from tasks.domain.errors import SpecError
from tasks.domain.spec_train_mal import TrainMalSpec, TrainMalTrainSpec
from tasks.domain.training_record import EpochRecord
from tasks.models.mal.distributed import Team, Tell
from tasks.models.mal.losses import MeanField, projection_loss, refinement_loss
from tasks.models.mal.network import MalNetwork
from tasks.models.mal.samples import STEP, Batch, SampleSet
from tasks.models.mal.training_state import Totals, TrainingState, derived_seed, network_of


def learning_rate(train: TrainMalTrainSpec, peak: float, progress: float) -> float:
    """The learning rate after `progress` epochs: up in a line to `peak`, then down along a cosine."""
    if progress < train.warmup_epochs:
        return peak * progress / train.warmup_epochs
    floor = peak * train.min_lr_rate
    share = (progress - train.warmup_epochs) / max(1, train.num_epochs - train.warmup_epochs)
    return floor + (peak - floor) * (1 + math.cos(math.pi * train.num_wave * share)) / 2


def warm_up(epoch: int, step: int, steps: int) -> float:
    """How much a loss counts: in the first epoch it grows over `steps` steps from nothing."""
    return min(1.0, step / steps) if epoch == 0 and steps else 1.0


def frozen_prefixes(stages: tuple[int, ...]) -> tuple[str, ...]:
    """How the names of the parameters begin that keep their weights; `stages` as `model.frozen_stages` has it."""
    if len(stages) <= 2:
        first, last = stages if len(stages) == 2 else (0, stages[0])
        stages = tuple(range(max(first, 0), last + 1))
    stem = ("backbone.patch_embed.",) if 0 in stages else ()
    return (*stem, *(f"backbone.blocks.{stage - 1}." for stage in stages if stage > 0))


@dataclass(frozen=True)
class Losses:
    """The two losses of a batch, without weights, and their weighted sum; the second is None where it has no weight."""

    total: Tensor
    projection: Tensor
    refinement: Tensor | None


class Trainer:
    """Student, teacher and optimiser of one process, which trains alone or with others."""

    def __init__(self, spec: TrainMalSpec, samples: SampleSet, state: TrainingState, team: Team) -> None:
        self._spec, self._samples, self._state, self._team = spec, samples, state, team
        torch.backends.cudnn.benchmark = spec.train.cudnn.benchmark
        torch.backends.cudnn.deterministic = spec.train.cudnn.deterministic
        self._student = network_of(spec, state.student, spec.model.vit_dpr).to(team.device)
        self._teacher = network_of(spec, state.teacher).to(team.device).requires_grad_(False)  # noqa: FBT003  torch's own
        self._module = self._prepared()
        self._optimiser = self._adamw()
        self._amp = _amp_type(spec.train, team.device)
        scales = self._amp is torch.float16
        self._scaler = torch.amp.GradScaler(team.device.partition(":")[0], enabled=scales)
        if scales and state.scaler:
            self._scaler.load_state_dict(state.scaler)
        train = spec.train
        self._field = MeanField(
            train.crf_zeta,
            train.crf_kernel_size,
            train.crf_num_iter,
            train.crf_value_low_thres,
            train.crf_value_high_thres,
        )

    @property
    def boxes_per_step(self) -> int:
        """Boxes of all processes together."""
        return self._spec.train.boxes_per_step * self._team.size

    def run_epoch(self, tell: Tell, keep: Callable[[TrainingState], None]) -> EpochRecord:
        """Train to the end of the epoch that is under way, and give its record.

        Args:
            tell: told of every step's boxes.
            keep: given the state where it is due within the epoch; at its end it is in `state`.

        Raises:
            ImageError: an image cannot be read any more.
            SpecError: the losses are no numbers any more.
        """
        epoch, first = self._state.epoch, self._state.step
        totals = _RunningTotals(self._state.totals, self._team)
        order = self._samples.order(epoch, self.boxes_per_step)
        steps = len(order) // self.boxes_per_step
        self._student.train()
        for step, batches in enumerate(self._batches(epoch, first, steps), first):
            lr = self._set_learning_rate(epoch + step / steps)
            totals.add(self._take_step(epoch, step, batches))
            tell(self.boxes_per_step)
            if self._is_due(step + 1, steps):
                self._move_to(epoch, step + 1, totals.so_far(epoch, step))
                keep(self._state)
        done = totals.so_far(epoch, steps - 1)
        record = _record(epoch, done, lr, len(order))
        self._state.epochs.append(asdict(record))
        self._move_to(epoch + 1, 0, Totals())
        return record

    @property
    def state(self) -> TrainingState:
        """Where the training stands after the last epoch, or where it was told to keep."""
        return self._state

    def _batches(self, epoch: int, first: int, steps: int) -> Iterator[list[Batch]]:
        """This process's batches of every step from `first` on: its share of the step's boxes, in their order."""
        train, rank = self._spec.train, self._team.rank
        of_steps = self._samples.order(epoch, self.boxes_per_step).reshape(steps, self._team.size, -1)
        indices = of_steps[first:, rank].flatten()
        batches = self._samples.batches(epoch, indices, train.batch_size, self._spec.dataset.num_workers_per_gpu)
        while step := list(islice(batches, train.accum_grad_batches)):
            yield step

    def _take_step(self, epoch: int, step: int, batches: list[Batch]) -> "_Step":
        """One step of the optimiser and of the teacher."""
        if self._spec.model.vit_dpr:  # the only randomness in the network
            torch.manual_seed(derived_seed(STEP, self._state.seed, epoch, step, self._team.rank))
        taken: list[Losses] = []
        for i, batch in enumerate(batches):
            with self._without_exchange(last=i == len(batches) - 1):
                losses = self._losses(batch.to(self._team.device), epoch, step)
                self._scaler.scale(losses.total / len(batches)).backward()  # type: ignore[no-untyped-call]
            taken.append(losses)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad()
        self._follow()
        refinements = [losses.refinement for losses in taken if losses.refinement is not None]
        return _Step(
            torch.stack([losses.projection for losses in taken]).detach().mean(),
            torch.stack(refinements).detach().mean() if refinements else None,
            skipped=self._scaler.get_scale() < scale,
        )

    def _losses(self, batch: Batch, epoch: int, step: int) -> Losses:
        train = self._spec.train
        with self._autocast():
            logits = self._module(batch.student, batch.boxes)
        student = logits.float().sigmoid()
        masks = _resized(batch.masks, student)
        projection = projection_loss(student, masks)
        total = train.loss_mil_weight * warm_up(epoch, step, train.loss_mil_step) * projection
        weight = train.loss_crf_weight * warm_up(epoch, step, train.loss_crf_step)
        if weight == 0:
            return Losses(total, projection, None)
        with torch.no_grad(), self._autocast():
            teacher = self._teacher(batch.teacher, batch.boxes).float().sigmoid()
        scaled = [_enlarged(maps, train.crf_size_ratio) for maps in (student, teacher, masks)]
        refinement = refinement_loss(scaled[0], scaled[1], batch.student, scaled[2], self._field)
        return Losses(total + weight * refinement, projection, refinement)

    @torch.no_grad()
    def _follow(self) -> None:
        share = 1 - self._spec.model.teacher_momentum
        for mine, its in zip(self._teacher.parameters(), self._student.parameters(), strict=True):
            mine.lerp_(its, share)

    def _set_learning_rate(self, progress: float) -> float:
        lr = learning_rate(self._spec.train, self._spec.train.lr * self.boxes_per_step, progress)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _prepared(self) -> nn.Module:
        """The student as it is called: with frozen stages, and exchanging gradients where there are others."""
        frozen = frozen_prefixes(self._spec.model.frozen_stages)
        for name, parameter in self._student.named_parameters():
            parameter.requires_grad = not name.startswith(frozen)  # of no prefixes, none begins a name
        if self._team.size == 1:
            return self._student
        on_gpu = self._team.device.startswith("cuda")
        return DistributedDataParallel(self._student, device_ids=[self._team.device] if on_gpu else None)

    def _adamw(self) -> torch.optim.AdamW:
        """The optimiser: weight decay for every parameter, norms, biases and embeddings too, as published."""
        train = self._spec.train
        optimiser = torch.optim.AdamW(
            [parameter for parameter in self._student.parameters() if parameter.requires_grad],
            lr=0.0,
            betas=train.optim_betas,
            eps=train.optim_eps,
            weight_decay=train.wd,
        )
        if self._state.optimiser is not None:
            optimiser.load_state_dict(self._state.optimiser)
        return optimiser

    def _without_exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged with the last batch of a step alone."""
        if isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._team.device.partition(":")[0], dtype=self._amp, enabled=self._amp is not None)

    def _is_due(self, step: int, steps: int) -> bool:
        """Whether the state is to be kept after so many steps of the epoch; at its end it is in any case."""
        train = self._spec.train
        return train.checkpoint_interval_unit == "step" and step % train.checkpoint_interval == 0 and step < steps

    def _move_to(self, epoch: int, step: int, totals: Totals) -> None:
        """Bring the state up to date, on the CPU."""
        state = self._state
        state.student, state.teacher = _tensors(self._student), _tensors(self._teacher)
        state.optimiser, state.scaler = self._optimiser.state_dict(), self._scaler.state_dict()
        state.epoch, state.step, state.totals = epoch, step, totals


@dataclass(frozen=True)
class _Step:
    """The losses of a step, means over its batches, and whether its gradients overflowed."""

    projection: Tensor
    refinement: Tensor | None
    skipped: bool


class _RunningTotals:
    """Sums of this process that stay on the device, and those of all processes when they are asked for."""

    def __init__(self, before: Totals, team: Team) -> None:
        self._before, self._team = before, team
        self._sums = torch.zeros(2, dtype=torch.float64, device=team.device)
        self._steps, self._refined, self._skipped = 0, 0, 0
        self._started = time.perf_counter()

    def add(self, step: _Step) -> None:
        self._sums[0] += step.projection
        self._steps += 1
        self._skipped += step.skipped
        if step.refinement is not None:
            self._sums[1] += step.refinement
            self._refined += 1

    def so_far(self, epoch: int, step: int) -> Totals:
        """The sums up to `step`, averaged over the processes. Raises SpecError where they are no numbers."""
        sums = self._sums.clone()
        if self._team.size > 1:
            distributed.all_reduce(sums)
        projection, refinement = (sums / self._team.size).tolist()
        if not math.isfinite(projection + refinement):
            raise SpecError(
                f"the loss was no number any more by step {step} of epoch {epoch}; try a smaller train.lr, or "
                "train.use_amp: false, with another results_dir"
            )
        before = self._before
        return Totals(
            before.projection_loss + projection,
            before.refinement_loss + refinement,
            before.steps + self._steps,
            before.refined + self._refined,
            before.skipped + self._skipped,
            before.seconds + time.perf_counter() - self._started,
        )


def _record(epoch: int, totals: Totals, lr: float, samples: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        projection_loss=totals.projection_loss / totals.steps,
        refinement_loss=totals.refinement_loss / totals.refined if totals.refined else None,
        lr=lr,
        samples=samples,
        skipped=totals.skipped,
        seconds=round(totals.seconds, 3),
    )


def _amp_type(train: TrainMalTrainSpec, device: str) -> torch.dtype | None:
    """What is mixed in; None for single precision, which the CPU has in place of fp16."""
    if not train.use_amp or (train.amp_precision == "fp16" and not device.startswith("cuda")):
        return None
    return torch.float16 if train.amp_precision == "fp16" else torch.bfloat16


def _resized(masks: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(masks, like.shape[-2:], mode="bilinear", align_corners=False)


def _enlarged(maps: Tensor, ratio: int) -> Tensor:
    if ratio == 1:
        return maps
    return functional.interpolate(maps, scale_factor=ratio, mode="bilinear", align_corners=False)


def _tensors(network: MalNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
