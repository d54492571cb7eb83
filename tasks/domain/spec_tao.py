"""The blocks of a TAO spec that describe Grounding DINO's network and its training.

Labelling reads four of these keys: the architecture comes from the checkpoint itself. The others are here so that a
TAO spec runs as it is, its types are checked, and the command line can say in one line which keys had no effect. Names,
types, defaults and ranges are those of TAO 6.25 to 7.0.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from tasks.domain.spec_fields import (
    Count,
    NonNegative,
    NonNegativeInt,
    PathOrName,
    Refusal,
    Share,
    SpecBlock,
    Tao,
    Unused,
    refuse,
)

Rgb = tuple[StrictFloat, StrictFloat, StrictFloat]


class AugmentationSpec(SpecBlock):
    """How an image is brought to the detector's size. TAO names the block after the trainer's augmentation."""

    test_random_resize: Tao[Annotated[StrictInt, Field(ge=32)] | None] = None
    """Shorter side of the image before the detector, in pixels. Empty: what the checkpoint's own preprocessor says
    (800 in the published ones, which is TAO's default)."""
    random_resize_max_size: Tao[Count | None] = None
    """Upper bound of the longer side, in pixels; the shorter side gives way. Empty: what the checkpoint's own
    preprocessor says (1333 in the published ones, which is TAO's default)."""
    input_mean: Tao[Rgb | None] = None
    """Mean of R, G and B in [0, 1] that is subtracted. Empty: what the checkpoint's own preprocessor says (ImageNet's
    0.485, 0.456, 0.406 in the published ones)."""
    input_std: Tao[Rgb | None] = None
    """Standard deviation of R, G and B by which is divided. Empty: what the checkpoint's own preprocessor says
    (ImageNet's 0.229, 0.224, 0.225 in the published ones)."""
    fixed_padding: Unused[StrictBool] = True
    """TAO pads every image to 800 x 1333. The network sees the padding, so labels would depend on the neighbours in
    the batch: images are never padded here."""
    scales: Unused[tuple[Count, ...]] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    train_random_resize: Unused[tuple[Count, ...]] = (400, 500, 600)
    horizontal_flip_prob: Unused[Share] = 0.5
    train_random_crop_min: Unused[Annotated[StrictInt, Field(ge=32)]] = 384
    train_random_crop_max: Unused[Annotated[StrictInt, Field(ge=32, le=1333)]] = 600
    fixed_random_crop: Unused[Count | None] = None


class GroundingDinoModelSpec(SpecBlock):
    """The network. Its architecture comes from the checkpoint; what is read here is what a checkpoint does not hold."""

    text_encoder_type: Tao[PathOrName | None] = None
    """Hub id or folder of the tokenizer. Empty: the checkpoint's own, or `bert-base-uncased` (TAO's default) where it
    has none, as a `.pth`."""
    max_text_len: Tao[Literal[256]] = 256
    """Longest prompt in tokens; the network's text map has this width. Longer prompts are split, never cut."""
    log_scale: Tao[Literal["auto", "none"] | None] = None
    """`auto` for a `.pth` that was trained with it: similarities are divided by the root of the hidden size. A learned
    scale (a number in TAO) has no counterpart in the published architecture."""
    backbone: Unused[
        Literal[
            "swin_tiny_224_1k",
            "swin_base_224_22k",
            "swin_base_384_22k",
            "swin_large_224_22k",
            "swin_large_384_22k",
            "resnet_50",
        ]
    ] = "swin_tiny_224_1k"
    pretrained_backbone_path: Unused[StrictStr | None] = None
    num_queries: Unused[Count] = 900
    num_select: Unused[Annotated[StrictInt, Field(ge=1, le=1000)]] = 300
    num_feature_levels: Unused[Annotated[StrictInt, Field(ge=1, le=5)]] = 4
    return_interm_indices: Unused[tuple[NonNegativeInt, ...]] = (1, 2, 3, 4)
    hidden_dim: Unused[Count] = 256
    nheads: Unused[Count] = 8
    enc_layers: Unused[Annotated[StrictInt, Field(ge=1, le=12)]] = 6
    dec_layers: Unused[Annotated[StrictInt, Field(ge=1, le=12)]] = 6
    dim_feedforward: Unused[Count] = 2048
    enc_n_points: Unused[Count] = 4
    dec_n_points: Unused[Count] = 4
    dropout_ratio: Unused[Share] = 0.0
    pre_norm: Unused[StrictBool] = False
    two_stage_type: Unused[Literal["standard", "no"]] = "standard"
    embed_init_tgt: Unused[StrictBool] = True
    decoder_sa_type: Unused[Literal["sa", "ca_label", "ca_content"]] = "sa"
    fix_refpoints_hw: Unused[Annotated[StrictInt, Field(ge=-2)]] = -1
    pe_temperatureH: Unused[Count] = 20  # noqa: N815  TAO's spelling
    pe_temperatureW: Unused[Count] = 20  # noqa: N815  TAO's spelling
    dilation: Unused[StrictBool] = False
    train_backbone: Unused[StrictBool] = True
    precise_msda: Unused[StrictBool] = False
    class_embed_bias: Unused[StrictBool] = False
    aux_loss: Unused[StrictBool] = True
    use_dn: Unused[StrictBool] = True
    dn_number: Unused[NonNegativeInt] = 0
    dn_box_noise_scale: Unused[NonNegative] = 1.0
    dn_label_noise_ratio: Unused[NonNegative] = 0.5
    set_cost_class: Unused[NonNegative] = 1.0
    set_cost_bbox: Unused[NonNegative] = 5.0
    set_cost_giou: Unused[NonNegative] = 2.0
    cls_loss_coef: Unused[NonNegative] = 2.0
    bbox_loss_coef: Unused[NonNegative] = 5.0
    giou_loss_coef: Unused[NonNegative] = 2.0
    interm_loss_coef: Unused[StrictFloat] = 1.0
    no_interm_box_loss: Unused[StrictBool] = False
    focal_alpha: Unused[StrictFloat] = 0.25
    focal_gamma: Unused[StrictFloat] = 2.0
    clip_max_norm: Unused[StrictFloat] = 0.1
    loss_types: Unused[tuple[StrictStr, ...]] = ("labels", "boxes")
    backbone_names: Unused[tuple[StrictStr, ...]] = ("backbone.0", "bert")
    linear_proj_names: Unused[tuple[StrictStr, ...]] = ("reference_points", "sampling_offsets")


class CudnnSpec(SpecBlock):
    """CuDNN in TAO's trainers."""

    benchmark: Unused[StrictBool] = False
    deterministic: Unused[StrictBool] = True


class CheckpointerSpec(SpecBlock):
    """Which checkpoints TAO's trainers keep (since 7.0)."""

    enable_topk: Unused[StrictBool] = False
    replace_periodic: Unused[StrictBool] = False
    monitor: Unused[StrictStr | None] = None
    mode: Unused[Literal["min", "max"] | None] = None
    save_top_k: Unused[Count] = 1
    filename: Unused[StrictStr] = "model_best_{epoch:03d}"
    dirpath: Unused[StrictStr | None] = None
    auto_insert_metric_name: Unused[StrictBool] = False


class TaoTrainSpec(SpecBlock):
    """What every trainer of TAO reads."""

    num_gpus: Unused[Count] = 1
    gpu_ids: Unused[tuple[NonNegativeInt, ...]] = (0,)
    num_nodes: Unused[Count] = 1
    seed: Unused[Annotated[StrictInt, Field(ge=-1)]] = 1234
    cudnn: Unused[CudnnSpec] = Field(default_factory=CudnnSpec)
    num_epochs: Unused[Count] = 10
    checkpoint_interval: Unused[Count] = 1
    checkpoint_interval_unit: Unused[Literal["epoch", "step"]] = "epoch"
    checkpointer: Unused[CheckpointerSpec] = Field(default_factory=CheckpointerSpec)
    validation_interval: Unused[Count] = 1
    resume_training_checkpoint_path: Unused[StrictStr | None] = None
    results_dir: Unused[StrictStr | None] = None
    pretrained_model_path: Unused[StrictStr | None] = None


class OptimSpec(SpecBlock):
    """The optimizer of TAO's Grounding DINO trainer."""

    optimizer: Unused[Literal["AdamW", "SGD"]] = "AdamW"
    monitor_name: Unused[Literal["val_loss", "train_loss"]] = "val_loss"
    lr: Unused[NonNegative] = 2e-4
    lr_backbone: Unused[NonNegative] = 2e-5
    lr_linear_proj_mult: Unused[NonNegative] = 0.1
    momentum: Unused[NonNegative] = 0.9
    weight_decay: Unused[NonNegative] = 1e-4
    lr_scheduler: Unused[Literal["MultiStep", "StepLR"]] = "MultiStep"
    lr_steps: Unused[tuple[NonNegativeInt, ...]] = (10,)
    lr_step_size: Unused[NonNegativeInt] = 10
    lr_decay: Unused[NonNegative] = 0.1


class GroundingDinoTrainSpec(TaoTrainSpec):
    """TAO's Grounding DINO trainer; nothing of it takes part in labelling."""

    freeze: Unused[tuple[StrictStr, ...]] = ()
    clip_grad_norm: Unused[NonNegative] = 0.1
    is_dry_run: Unused[StrictBool] = False
    precision: Unused[Literal["fp32", "fp16", "bf16"]] = "fp32"
    distributed_strategy: Unused[Literal["ddp", "fsdp"]] = "ddp"
    activation_checkpoint: Unused[StrictBool] = True
    optim: Unused[OptimSpec] = Field(default_factory=OptimSpec)


def _one_or_three(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    if len(thresholds) not in (1, 3):
        refuse([Refusal((), thresholds, f"1 or 3 thresholds and not {len(thresholds)}")])
    return thresholds


class MalTrainSpec(TaoTrainSpec):
    """TAO's MAL trainer, which also keeps two numbers of the mask prediction."""

    test_margin_rate: Tao[Annotated[tuple[NonNegative, ...], Field(min_length=1)]] = (0.6, 0.6)
    """The crop around a box is larger by half of the first number on each side, as a share of the box."""
    mask_thres: Tao[Annotated[tuple[Share, ...], AfterValidator(_one_or_three)]] = (0.1,)
    """Score above which a pixel belongs to the mask: one for all, or three for boxes up to 32 x 32, up to 96 x 96 and
    larger (square pixels)."""
    margin_rate: Unused[tuple[NonNegative, NonNegative]] = (0, 1.2)
    batch_size: Unused[Count] = 3
    accum_grad_batches: Unused[Count] = 1
    use_amp: Unused[StrictBool] = True
    optim_type: Unused[Literal["adamw"]] = "adamw"
    optim_momentum: Unused[Share] = 0.9
    lr: Unused[NonNegative] = 1e-6
    min_lr: Unused[NonNegative] = 0
    min_lr_rate: Unused[Share] = 0.2
    num_wave: Unused[NonNegative] = 1
    wd: Unused[NonNegative] = 5e-4
    optim_eps: Unused[NonNegative] = 1e-8
    optim_betas: Unused[tuple[Share, ...]] = (0.9, 0.9)
    warmup_epochs: Unused[NonNegative] = 1
    loss_mil_weight: Unused[NonNegative] = 4
    loss_crf_weight: Unused[NonNegative] = 0.5
    loss_mil_step: Unused[NonNegativeInt] = 1000
    loss_crf_step: Unused[NonNegativeInt] = 4000
    crf_zeta: Unused[NonNegative] = 0.1
    crf_kernel_size: Unused[Count] = 3
    crf_num_iter: Unused[NonNegativeInt] = 100
    crf_size_ratio: Unused[Count] = 1
    crf_value_high_thres: Unused[Share] = 0.9
    crf_value_low_thres: Unused[Share] = 0.1
