"""The `mal` block: boxes to masks. Names, types, defaults and ranges are those of TAO 6.25 to 7.0."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr

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
from tasks.domain.spec_tao import MalTrainSpec

PATCH = 16  # pixels; the side of a patch of the vision transformers, but for the 14 of `huge`


class MalInferenceSpec(SpecBlock):
    """Which boxes get a mask, and where the masks go."""

    ann_path: Tao[StrictStr] = ""
    """COCO JSON with the boxes. Required for `autolabel_type: mal`; otherwise the boxes come from the detection."""
    img_dir: Tao[StrictStr] = ""
    """Folder of the images in `ann_path`. Required for `autolabel_type: mal`."""
    label_dump_path: Tao[StrictStr] = "instances_val2017_mal.json"
    """COCO JSON with the masks, relative to `results_dir`; an absolute path or a URL is taken as it is. The masks of a
    detection go into its `annotations.json`."""
    load_mask: Tao[StrictBool] = False
    """Compare with the masks in `ann_path`: an annotation that has one there gets the `iou` of both."""
    batch_size: Unused[Count] = 3
    """TAO overwrites it with the top-level `batch_size`."""
    num_gpus: Unused[Count] = 1
    gpu_ids: Unused[tuple[NonNegativeInt, ...]] = (0,)
    num_nodes: Unused[Count] = 1
    checkpoint: Unused[StrictStr | None] = None
    trt_engine: Unused[StrictStr | None] = None
    results_dir: Unused[StrictStr | None] = None


class MalEvaluateSpec(SpecBlock):
    """TAO's evaluation of MAL, which forces the four switches off when it labels. Ours: `weights` and `flip_test`."""

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


def _in_whole_patches(crop_size: int) -> int:
    if crop_size % PATCH:
        refuse(
            [Refusal((), crop_size, f"a multiple of {PATCH}: the network looks at patches of {PATCH} x {PATCH} pixels")]
        )
    return crop_size


class MalDatasetSpec(SpecBlock):
    """The crop that MAL looks at, and the data that TAO's trainer reads."""

    crop_size: Tao[Annotated[StrictInt, Field(ge=32), AfterValidator(_in_whole_patches)] | None] = None
    """Side of the square crop around a box that the network sees, in pixels: a multiple of 16. Empty: what the
    checkpoint says (512 in the published ones, which is TAO's default)."""
    type: Unused[Literal["coco"]] = "coco"
    train_ann_path: Unused[StrictStr] = ""
    train_img_dir: Unused[StrictStr] = ""
    val_ann_path: Unused[StrictStr] = ""
    val_img_dir: Unused[StrictStr] = ""
    min_obj_size: Unused[NonNegative] = 2048
    max_obj_size: Unused[NonNegative] = 1e10
    num_workers_per_gpu: Unused[NonNegativeInt] = 2
    load_mask: Unused[StrictBool] = True


Arch = Literal["vit-deit-tiny/16", "vit-deit-small/16", "vit-mae-base/16", "vit-mae-large/16", "vit-mae-huge/14"]


class MalModelSpec(SpecBlock):
    """What the checkpoint cannot tell of the network; its sizes are read off its tensors."""

    arch: Tao[Arch | None] = None
    """Vision transformer that looks at the crop; a checkpoint of another one is refused. Empty: any."""
    not_adjust_scale: Tao[StrictBool | None] = None
    """Resize the feature map by `mask_scale_ratio_pre` in place of by the area of the box. Empty: what the checkpoint
    says, which only our own do; false for those of NVlabs and TAO, which is TAO's default."""
    mask_scale_ratio_pre: Tao[Count | None] = None
    """Factor before the mask head, with `not_adjust_scale`. Empty: what the checkpoint says, else 1."""
    mask_scale_ratio: Tao[NonNegative | None] = None
    """Factor before the last convolution of the mask head. Empty: what the checkpoint says, else 2."""
    mask_head_num_convs: Unused[Count] = 4
    mask_head_hidden_channel: Unused[Count] = 256
    mask_head_out_channel: Unused[Count] = 256
    vit_dpr: Unused[Share] = 0
    frozen_stages: Unused[tuple[StrictInt, ...]] = (-1,)
    teacher_momentum: Unused[Share] = 0.996


class MalSpec(SpecBlock):
    """Boxes to masks with the Mask Auto-Labeler, or with Segment Anything."""

    checkpoint: Tao[PathOrName | None] = None
    """The segmenter: of MAL a `.pth`, `.pt` or `.ckpt` file of NVlabs or TAO, or a folder of `autolabel train-mal`; of
    Segment Anything a Hugging Face hub id or folder (`facebook/sam-vit-base`, `facebook/sam2.1-hiera-tiny`); or
    `bundled:mal_scenes`, which ships. Required when `autolabel_type` includes `mal`."""
    segmenter: Literal["mal", "sam", "sam2"] = "mal"
    """What kind of checkpoint that is: Mask Auto-Labeler, Segment Anything, or Segment Anything 2."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Arithmetic of the segmenter; fp16 and bf16 need a GPU, and change masks."""
    clip_to_box: StrictBool = True
    """Masks end at their boxes."""
    weights: Literal["student", "teacher", "mixed"] = "student"
    """Which network of a MAL checkpoint answers, or both, averaged. TAO labels with the student."""
    flip_test: StrictBool = False
    """Look at the mirrored crop, too, and average (MAL)."""
    visualize: StrictBool = False
    """Draw the masks into a picture of every image, in `images_annotated`."""
    inference: Tao[MalInferenceSpec] = Field(default_factory=MalInferenceSpec)
    dataset: Tao[MalDatasetSpec] = Field(default_factory=MalDatasetSpec)
    model: Tao[MalModelSpec] = Field(default_factory=MalModelSpec)
    train: Tao[MalTrainSpec] = Field(default_factory=MalTrainSpec)
    evaluate: Unused[MalEvaluateSpec] = Field(default_factory=MalEvaluateSpec)
    results_dir: Unused[StrictStr | None] = None
    """TAO overwrites it with the top-level `results_dir`."""
