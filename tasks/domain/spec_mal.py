"""The `mal` block: boxes to masks. Names, types, defaults and ranges are those of TAO 6.25 to 7.0."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from tasks.domain.spec_fields import Count, NonNegative, NonNegativeInt, PathOrName, Share, SpecBlock, Tao, Unused
from tasks.domain.spec_tao import MalTrainSpec


class MalInferenceSpec(SpecBlock):
    """Which boxes get a mask, and where the masks go."""

    ann_path: Tao[StrictStr] = ""
    """COCO JSON with the boxes. Required for `autolabel_type: mal`; otherwise the boxes come from the detection."""
    img_dir: Tao[StrictStr] = ""
    """Folder of the images in `ann_path`. Required for `autolabel_type: mal`."""
    label_dump_path: Tao[StrictStr] = "instances_val2017_mal.json"
    """COCO JSON with the masks, relative to `results_dir`; an absolute path is taken as it is."""
    load_mask: Tao[StrictBool] = False
    """Compare with the masks in `ann_path`, and write the IoU to every annotation."""
    batch_size: Unused[Count] = 3
    """TAO overwrites it with the top-level `batch_size`."""
    num_gpus: Unused[Count] = 1
    gpu_ids: Unused[tuple[NonNegativeInt, ...]] = (0,)
    num_nodes: Unused[Count] = 1
    checkpoint: Unused[StrictStr | None] = None
    trt_engine: Unused[StrictStr | None] = None
    results_dir: Unused[StrictStr | None] = None


class MalEvaluateSpec(SpecBlock):
    """TAO's evaluation of MAL, which forces the four switches off when it labels."""

    use_mixed_model_test: Unused[StrictBool] = False
    use_teacher_test: Unused[StrictBool] = False
    comp_clustering: Unused[StrictBool] = False
    use_flip_test: Unused[StrictBool] = False
    batch_size: Unused[Count] = 3
    num_gpus: Unused[Count] = 1
    gpu_ids: Unused[tuple[NonNegativeInt, ...]] = (0,)
    num_nodes: Unused[Count] = 1
    checkpoint: Unused[StrictStr | None] = None
    trt_engine: Unused[StrictStr | None] = None
    results_dir: Unused[StrictStr | None] = None


class MalDatasetSpec(SpecBlock):
    """The crop that MAL looks at, and the data that TAO's trainer reads."""

    crop_size: Tao[Annotated[StrictInt, Field(ge=256)]] = 512
    """Side of the square crop around a box that the network sees, in pixels."""
    type: Unused[Literal["coco"]] = "coco"
    train_ann_path: Unused[StrictStr] = ""
    train_img_dir: Unused[StrictStr] = ""
    val_ann_path: Unused[StrictStr] = ""
    val_img_dir: Unused[StrictStr] = ""
    min_obj_size: Unused[NonNegative] = 2048
    max_obj_size: Unused[NonNegative] = 1e10
    num_workers_per_gpu: Unused[NonNegativeInt] = 2
    load_mask: Unused[StrictBool] = True


class MalModelSpec(SpecBlock):
    """The network; it must fit the checkpoint."""

    arch: Tao[
        Literal["vit-deit-tiny/16", "vit-deit-small/16", "vit-mae-base/16", "vit-mae-large/16", "vit-mae-huge/14"]
    ] = "vit-mae-base/16"
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
    vit_dpr: Unused[Share] = 0
    frozen_stages: Unused[tuple[StrictInt, ...]] = (-1,)
    teacher_momentum: Unused[Share] = 0.996


class MalSpec(SpecBlock):
    """Boxes to masks with the Mask Auto-Labeler."""

    checkpoint: Tao[PathOrName | None] = None
    """MAL checkpoint. Required when `autolabel_type` includes `mal`."""
    inference: Tao[MalInferenceSpec] = Field(default_factory=MalInferenceSpec)
    dataset: Tao[MalDatasetSpec] = Field(default_factory=MalDatasetSpec)
    model: Tao[MalModelSpec] = Field(default_factory=MalModelSpec)
    train: Tao[MalTrainSpec] = Field(default_factory=MalTrainSpec)
    evaluate: Unused[MalEvaluateSpec] = Field(default_factory=MalEvaluateSpec)
    results_dir: Unused[StrictStr | None] = None
    """TAO overwrites it with the top-level `results_dir`."""
