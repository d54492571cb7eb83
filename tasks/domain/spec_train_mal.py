"""The spec of `train-mal`: Mask Auto-Labeler, trained on the user's own boxes.

A TAO `mal` train spec is one of ours: its keys keep their names, places, meanings and defaults (TAO 6.25 to 7.0, and
the older names of 5.0 where they differ). Keys without the mark of TAO are this project's own.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from tasks.domain.artifacts import Json
from tasks.domain.spec_fields import (
    Count,
    NonNegative,
    NonNegativeInt,
    PathOrName,
    Refusal,
    Share,
    ShareWithin,
    SpecBlock,
    Tao,
    Unused,
    is_unused,
    refuse,
)
from tasks.domain.spec_mal import Arch, MalDatasetSpec, MalEvaluateSpec, MalModelSpec
from tasks.domain.spec_root import SpecRoot
from tasks.domain.spec_tao import CudnnSpec, MalTrainSpec

TOKEN = 16  # pixels of a crop's side that a token stands for

# Keys on which the trained weights do not depend: where data and results are, how fast it goes, and what is measured.
# The images and boxes themselves do count, and are compared by content.
_NO_PART = frozenset(
    {
        "results_dir",
        "storage_options",
        *(f"dataset.{key}" for key in ("train_ann_path", "train_img_dir", "val_ann_path", "val_img_dir", "load_mask")),
        *(f"dataset.{key}" for key in ("num_workers_per_gpu", "min_obj_size", "max_obj_size")),
        *(f"train.{key}" for key in ("num_gpus", "gpu_ids", "checkpoint_interval", "checkpoint_interval_unit")),
        *(f"train.{key}" for key in ("validation_interval", "resume_training_checkpoint_path", "test_margin_rate")),
        *(f"train.{key}" for key in ("mask_thres", "cudnn.benchmark", "cudnn.deterministic")),
    }
)


class TrainMalDatasetSpec(MalDatasetSpec):
    """The pictures and boxes to learn from, and those to measure with."""

    crop_size: Tao[Annotated[StrictInt, Field(ge=32)]] = 512
    """Side of the square crop around a box that the network sees, in pixels: a multiple of 32 (of 16 with
    `model.not_adjust_scale`). TAO takes 256 and more. Labelling uses the same size."""
    train_ann_path: Tao[StrictStr] = ""
    """COCO JSON with the boxes to learn from; masks in it are not looked at. Required."""
    train_img_dir: Tao[StrictStr] = ""
    """Folder of the images in `train_ann_path`, local or an fsspec URL. Required."""
    val_ann_path: Tao[StrictStr] = ""
    """COCO JSON to measure with: masks (see `load_mask`), or boxes alone. Empty: nothing is measured."""
    val_img_dir: Tao[StrictStr] = ""
    """Folder of the images in `val_ann_path`."""
    min_obj_size: Tao[NonNegative] = 2048
    """Boxes of this area in square pixels, or less, are not trained on; 0 keeps all. TAO's default leaves out every
    box under about 45 x 45, so that such a network has never seen a small object."""
    max_obj_size: Tao[NonNegative] = 1e10
    """Boxes of this area in square pixels, or more, are not trained on."""
    num_workers_per_gpu: Tao[NonNegativeInt] = 2
    """Threads that decode, crop and augment ahead of the network, for each process. Never changes a weight."""
    load_mask: Tao[StrictBool] = True
    """Compare with the masks in `val_ann_path` (mean IoU). Without it the loss of the boxes is measured."""


class TrainMalModelSpec(MalModelSpec):
    """The network that is trained; student and teacher are alike."""

    arch: Tao[Arch] = "vit-mae-base/16"
    """Vision transformer that looks at the crop."""
    mask_head_num_convs: Tao[Count] = 4
    """Convolutions of the mask head."""
    mask_head_hidden_channel: Tao[Count] = 256
    """Channels between them."""
    mask_head_out_channel: Tao[Count] = 256
    """Channels of their result, and of the query that it is compared with."""
    not_adjust_scale: Tao[StrictBool] = False
    """Resize the feature map by `mask_scale_ratio_pre` in place of by the area of the box."""
    mask_scale_ratio_pre: Tao[Count] = 1
    """Factor before the mask head, with `not_adjust_scale`."""
    mask_scale_ratio: Tao[NonNegative] = 2.0
    """Factor before the last convolution of the mask head."""
    frozen_stages: Tao[Annotated[tuple[StrictInt, ...], Field(min_length=1)]] = (-1,)
    """Stages that keep their weights: [last], [first, last], or three and more one by one (TAO since 6). 0 is the stem,
    i the i-th block. [-1]: none."""
    teacher_momentum: Tao[Share] = 0.996
    """Share of the teacher that stays at every step; the rest comes from the student."""
    vit_dpr: Tao[Annotated[Share, Field(lt=1)]] = 0
    """Stochastic depth: share of samples that skip the last block; it grows linearly up to there."""
    stem: Literal["conv", "patch"] = "conv"
    """How pixels become tokens: `conv` is the published stem of four convolutions (NVlabs, TAO to 5.5), `patch` one
    convolution of 16 x 16 (TAO since 6), which can start from pretrained weights."""
    dim: Annotated[StrictInt, Field(ge=8)] | None = None
    """Channels of a token, a multiple of 8 and of `heads`. `dim`, `depth` and `heads` go together and override `arch`,
    for networks smaller than the published ones."""
    depth: Count | None = None
    """Transformer blocks, with `dim`."""
    heads: Count | None = None
    """Attention heads of a block, with `dim`."""

    @property
    def sizes(self) -> tuple[int, int, int] | None:
        """`dim`, `depth` and `heads`, or None where `arch` tells them."""
        if self.dim is None or self.depth is None or self.heads is None:
            return None
        return self.dim, self.depth, self.heads

    @model_validator(mode="after")
    def _has_sizes_that_make_a_network(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[Refusal]:
        given = {name: getattr(self, name) for name in ("dim", "depth", "heads")}
        if len({value is None for value in given.values()}) == 2:
            missing = next(name for name, value in given.items() if value is None)
            yield Refusal((missing,), None, "all of dim, depth and heads, or none of them")
        if self.sizes and (self.sizes[0] % 8 or self.sizes[0] % self.sizes[2]):
            yield Refusal(("dim",), self.dim, f"a multiple of 8 and of heads ({self.heads})")
        if self.not_adjust_scale:
            return
        follows_area = "where the map follows the box's area; set not_adjust_scale: true for other values"
        if self.mask_head_num_convs < 4:
            yield Refusal(("mask_head_num_convs",), self.mask_head_num_convs, f"at least 4 {follows_area}")
        if self.mask_scale_ratio_pre != 1:
            yield Refusal(("mask_scale_ratio_pre",), self.mask_scale_ratio_pre, f"1 {follows_area}")
        if self.mask_scale_ratio != 2:
            yield Refusal(("mask_scale_ratio",), self.mask_scale_ratio, f"2 {follows_area}")


class TrainCudnnSpec(CudnnSpec):
    """What cuDNN may do on a GPU."""

    benchmark: Tao[StrictBool] = False
    """Try several convolution algorithms and take the fastest."""
    deterministic: Tao[StrictBool] = True
    """Only algorithms that give the same result each time."""


def _rising(rates: tuple[float, float]) -> tuple[float, float]:
    if rates[0] > rates[1]:
        refuse([Refusal((), rates, f"the smaller number first, and not [{rates[0]:g}, {rates[1]:g}]")])
    return rates


def _odd(size: int) -> int:
    if size % 2 == 0:
        refuse([Refusal((), size, "an odd number")])
    return size


class MalAugmentationSpec(SpecBlock):
    """How a crop is varied: mirrored for both networks, the rest for the student alone.

    The defaults are the published ones. Weaken what hides the colours that tell your objects from their surroundings.
    """

    flip_prob: Share = 0.5
    """Share of the crops that are mirrored."""
    jitter_prob: Share = 0.5
    """Share of the views whose brightness, contrast, saturation and hue are changed, in random order."""
    brightness: Share = 0.4
    """The factor is within 1 minus and plus this."""
    contrast: Share = 0.4
    """The factor is within 1 minus and plus this."""
    saturation: Share = 0.2
    """The factor is within 1 minus and plus this."""
    hue: Annotated[StrictFloat, Field(ge=0, le=0.5)] = 0.1
    """Most that hues turn either way, as a share of the colour circle."""
    grey_prob: Share = 0.2
    """Share of the views without colour."""
    blur_prob: Share = 0.5
    """Share of the views that are blurred."""
    blur_radius: Annotated[tuple[NonNegative, NonNegative], AfterValidator(_rising)] = (0.1, 2.0)
    """Least and most radius of the blur, in pixels of the crop."""


def _of_32_bits(seed: int) -> int:
    if seed >= 2**32:
        refuse([Refusal((), seed, f"at most {2**32 - 1}")])
    return seed


def _different(ids: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(ids)) < len(ids):
        refuse([Refusal((), ids, "every GPU once")])
    return ids


class TrainMalTrainSpec(MalTrainSpec):
    """How it is trained."""

    num_gpus: Tao[Count] = 1
    """Processes, one for each GPU. Without a GPU, one process trains on the CPU."""
    gpu_ids: Tao[Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_different)]] = (0,)
    """Indices of the GPUs, each once. Where it names fewer than `num_gpus`, the first `num_gpus` GPUs are used."""
    seed: Tao[Annotated[StrictInt, Field(ge=-1), AfterValidator(_of_32_bits)]] = 1234
    """Decides the first weights, the order of the boxes and their augmentation. -1: another one for every training."""
    cudnn: Tao[TrainCudnnSpec] = Field(default_factory=TrainCudnnSpec)
    num_epochs: Tao[Count] = 10
    """How often every box is looked at."""
    checkpoint_interval: Tao[Count] = 1
    """With the unit `step`: the state is also written after every so many steps. It is written at the end of every
    epoch in any case."""
    checkpoint_interval_unit: Tao[Literal["epoch", "step"]] = "epoch"
    """What `checkpoint_interval` counts."""
    validation_interval: Tao[Count] = 1
    """Epochs between two measurements; after the last epoch there is always one."""
    resume_training_checkpoint_path: Tao[PathOrName | None] = None
    """State of another run to go on from, its `checkpoints/last.pt`. Empty: that in `results_dir`, if there is one."""
    pretrained_model_path: Tao[PathOrName | None] = None
    """Weights to start from: a backbone (MAE, DeiT) or a MAL checkpoint. Empty: random ones."""
    margin_rate: Tao[Annotated[tuple[NonNegative, NonNegative], AfterValidator(_rising)]] = (0, 1.2)
    """Least and most that a crop adds on two opposite sides of a box, as a share of its half side."""
    augmentation: MalAugmentationSpec = Field(default_factory=MalAugmentationSpec)
    """How crops are varied while training."""
    batch_size: Tao[Count] = 3
    """Boxes per forward pass and process."""
    accum_grad_batches: Tao[Count] = 1
    """Forward passes before a step. A step sees processes x `batch_size` x this many boxes. Does not work in TAO."""
    use_amp: Tao[StrictBool] = True
    """Mixed precision on a GPU: half as much memory, and faster."""
    amp_precision: Literal["fp16", "bf16"] = "fp16"
    """What is mixed in. On the CPU, only bf16 is."""
    optim_type: Tao[Literal["adamw"]] = "adamw"
    """The optimiser."""
    lr: Tao[NonNegative] = 1e-6
    """Learning rate for one box: its peak is this times the boxes of a step."""
    min_lr_rate: Tao[Share] = 0.2
    """The last learning rate, as a share of the peak."""
    num_wave: Tao[NonNegative] = 1
    """Half periods of the cosine from the peak down."""
    wd: Tao[NonNegative] = 5e-4
    """Weight decay of every parameter."""
    optim_eps: Tao[Annotated[NonNegative, Field(gt=0)]] = 1e-8
    """AdamW's epsilon, above 0: a gradient of 0 is divided by it."""
    optim_betas: Tao[tuple[Annotated[Share, Field(lt=1)], Annotated[Share, Field(lt=1)]]] = (0.9, 0.9)
    """AdamW's betas."""
    warmup_epochs: Tao[NonNegative] = 1
    """Epochs in which the learning rate grows to its peak. TAO takes whole ones; 0.1 is a tenth of the first."""
    loss_mil_weight: Tao[NonNegative] = 4
    """Weight of the loss of the projections: a mask has to reach the sides of its box, and not leave it."""
    loss_crf_weight: Tao[NonNegative] = 0.5
    """Weight of the loss of the outlines: a mask has to agree with what the colours make of it."""
    loss_mil_step: Tao[NonNegativeInt] = 1000
    """Steps of the first epoch in which the first loss comes in. In later epochs it counts in full."""
    loss_crf_step: Tao[NonNegativeInt] = 4000
    """Steps of the first epoch in which the second loss comes in. In later epochs it counts in full."""
    crf_zeta: Tao[Annotated[NonNegative, Field(gt=0)]] = 0.1
    """How different two neighbouring pixels may be and still belong together, in deviations of ImageNet's colours."""
    crf_kernel_size: Tao[Annotated[Count, AfterValidator(_odd)]] = 3
    """Side of the neighbourhood in pixels, odd."""
    crf_num_iter: Tao[NonNegativeInt] = 100
    """Updates of the mean field, at most."""
    crf_size_ratio: Tao[Count] = 1
    """The outlines are refined at this times the resolution of the masks."""
    crf_value_high_thres: Tao[ShareWithin] = 0.9
    """The greatest probability that a pixel may have in the mean field."""
    crf_value_low_thres: Tao[ShareWithin] = 0.1
    """The least."""
    save_every_k_epoch: Unused[Count] = 1
    val_interval: Unused[Count] = 1

    @property
    def boxes_per_step(self) -> int:
        """Boxes that one process has a share of a step in."""
        return self.batch_size * self.accum_grad_batches


class TrainMalInferenceSpec(MalEvaluateSpec):
    """TAO's prediction, which training does not run."""

    ann_path: Unused[StrictStr] = ""
    img_dir: Unused[StrictStr] = ""
    label_dump_path: Unused[StrictStr] = "instances_val2017_mal.json"
    load_mask: Unused[StrictBool] = False


class WandbSpec(SpecBlock):
    """Weights & Biases in TAO's trainers."""

    enable: Unused[StrictBool] = True
    project: Unused[StrictStr] = "TAO Toolkit"
    entity: Unused[StrictStr] = ""
    group: Unused[StrictStr] = ""
    tags: Unused[tuple[StrictStr, ...]] = ("training", "tao-toolkit")
    reinit: Unused[StrictBool] = False
    sync_tensorboard: Unused[StrictBool] = False
    save_code: Unused[StrictBool] = False
    name: Unused[StrictStr] = "TAO Toolkit training experiment"
    run_id: Unused[StrictStr] = ""


class TrainMalSpec(SpecRoot):
    """A training: from which boxes, which network, and where it goes."""

    results_dir: Tao[StrictStr] = ""
    """Where the network and the course of the training go: a local path (relative to where the command runs) or an
    fsspec URL. Required."""
    dataset: Tao[TrainMalDatasetSpec] = Field(default_factory=TrainMalDatasetSpec)
    model: Tao[TrainMalModelSpec] = Field(default_factory=TrainMalModelSpec)
    train: Tao[TrainMalTrainSpec] = Field(default_factory=TrainMalTrainSpec)
    evaluate: Unused[MalEvaluateSpec] = Field(default_factory=MalEvaluateSpec)
    inference: Unused[TrainMalInferenceSpec] = Field(default_factory=TrainMalInferenceSpec)
    wandb: Unused[WandbSpec] = Field(default_factory=WandbSpec)
    model_name: Unused[StrictStr | None] = "mal"
    encryption_key: Unused[StrictStr | None] = None
    strategy: Unused[Literal["ddp", "fsdp", "ddp_sharded"]] = "ddp"
    checkpoint: Unused[StrictStr | None] = None
    gpu_ids: Unused[tuple[NonNegativeInt, ...]] = (0,)
    num_gpus: Unused[Count] = 1
    num_nodes: Unused[Count] = 1

    @property
    def learned_from(self) -> dict[str, Json]:
        """Every key, dotted, on which the trained weights depend."""
        return {key: value for key, value in _flat(self, "") if key not in _NO_PART}

    def requirements(self) -> Iterator[Refusal]:
        """What is missing, and what does not fit together."""
        yield from self._missing()
        yield from self._unfit()

    def _missing(self) -> Iterator[Refusal]:
        data = self.dataset
        if not self.results_dir:
            yield Refusal(("results_dir",), None, "a folder or URL for the network")
        if not data.train_ann_path:
            yield Refusal(("dataset", "train_ann_path"), None, "the COCO JSON with the boxes to learn from")
        if not data.train_img_dir:
            yield Refusal(("dataset", "train_img_dir"), None, "the folder of the images in train_ann_path")
        if bool(data.val_ann_path) != bool(data.val_img_dir):
            missing = "val_img_dir" if data.val_ann_path else "val_ann_path"
            yield Refusal(("dataset", missing), None, "both of val_ann_path and val_img_dir, or neither")

    def _unfit(self) -> Iterator[Refusal]:
        data, train = self.dataset, self.train
        step = TOKEN if self.model.not_adjust_scale else 2 * TOKEN
        if data.crop_size % step:
            yield Refusal(("dataset", "crop_size"), data.crop_size, f"a multiple of {step}")
        if data.min_obj_size >= data.max_obj_size:
            yield Refusal(("dataset", "min_obj_size"), data.min_obj_size, "less than max_obj_size")
        if train.crf_value_low_thres >= train.crf_value_high_thres:
            found = train.crf_value_low_thres
            yield Refusal(("train", "crf_value_low_thres"), found, "less than crf_value_high_thres")


def _flat(block: SpecBlock, prefix: str) -> Iterator[tuple[str, Json]]:
    for name, field in type(block).model_fields.items():
        value: Any = getattr(block, name)
        if is_unused(field):
            continue
        if isinstance(value, SpecBlock):
            yield from _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, Mapping):
            yield prefix + name, list(value) if isinstance(value, tuple) else value
