"""Specs as users of TAO Auto-Label have them: every key of TAO, at its default, and the two shapes that TAO ships."""

import yaml

from tasks.domain.schedule import ListSchedule
from tasks.domain.spec import ExperimentSpec
from tasks.formats.spec_yaml import parse_spec

# Every key with the default that TAO gives it; what a user has to fill in is filled in.
TEXT2BOX = """
autolabel_type: grounding_dino
gpu_ids: [0]
num_gpus: 1
batch_size: 4
num_workers: 8
results_dir: /results/text2box
grounding_dino:
  checkpoint: /models/grounding_dino_swin_tiny_commercial_trainable.pth
  results_dir: null
  visualize: true
  iteration_scheduler:
    - conf_threshold: 0.5
      nms_threshold: 0.0
    - conf_threshold: 0.4
      nms_threshold: 0.0
  dataset:
    image_dir: /data/images
    noun_chunk_path: null
    class_names: ["person", "car"]
    augmentation:
      scales: [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
      input_mean: [0.485, 0.456, 0.406]
      input_std: [0.229, 0.224, 0.225]
      train_random_resize: [400, 500, 600]
      horizontal_flip_prob: 0.5
      train_random_crop_min: 384
      train_random_crop_max: 600
      random_resize_max_size: 1333
      test_random_resize: 800
      fixed_padding: true
      fixed_random_crop: null
  model:
    pretrained_backbone_path: null
    backbone: swin_tiny_224_1k
    num_queries: 900
    num_feature_levels: 4
    set_cost_class: 1.0
    set_cost_bbox: 5.0
    set_cost_giou: 2.0
    cls_loss_coef: 2.0
    bbox_loss_coef: 5.0
    giou_loss_coef: 2.0
    num_select: 300
    interm_loss_coef: 1.0
    no_interm_box_loss: false
    pre_norm: false
    two_stage_type: standard
    decoder_sa_type: sa
    embed_init_tgt: true
    fix_refpoints_hw: -1
    pe_temperatureH: 20
    pe_temperatureW: 20
    return_interm_indices: [1, 2, 3, 4]
    use_dn: true
    dn_number: 0
    dn_box_noise_scale: 1.0
    dn_label_noise_ratio: 0.5
    focal_alpha: 0.25
    focal_gamma: 2.0
    clip_max_norm: 0.1
    nheads: 8
    dropout_ratio: 0.0
    hidden_dim: 256
    enc_layers: 6
    dec_layers: 6
    dim_feedforward: 2048
    dec_n_points: 4
    enc_n_points: 4
    aux_loss: true
    dilation: false
    train_backbone: true
    precise_msda: false
    text_encoder_type: bert-base-uncased
    max_text_len: 256
    class_embed_bias: false
    log_scale: null
    loss_types: [labels, boxes]
    backbone_names: [backbone.0, bert]
    linear_proj_names: [reference_points, sampling_offsets]
  train:
    num_gpus: 1
    gpu_ids: [0]
    num_nodes: 1
    seed: 1234
    cudnn: {benchmark: false, deterministic: true}
    num_epochs: 10
    checkpoint_interval: 1
    checkpoint_interval_unit: epoch
    validation_interval: 1
    resume_training_checkpoint_path: null
    results_dir: null
    checkpointer:
      enable_topk: false
      replace_periodic: false
      monitor: null
      mode: null
      save_top_k: 1
      filename: "model_best_{epoch:03d}"
      dirpath: null
      auto_insert_metric_name: false
    freeze: []
    pretrained_model_path: null
    clip_grad_norm: 0.1
    is_dry_run: false
    precision: fp32
    distributed_strategy: ddp
    activation_checkpoint: true
    optim:
      optimizer: AdamW
      monitor_name: val_loss
      lr: 2e-4
      lr_backbone: 2e-5
      lr_linear_proj_mult: 0.1
      momentum: 0.9
      weight_decay: 1e-4
      lr_scheduler: MultiStep
      lr_steps: [10]
      lr_step_size: 10
      lr_decay: 0.1
"""

BOX2SEG = """
autolabel_type: mal
gpu_ids: [0]
num_gpus: 1
batch_size: 4
num_workers: 8
results_dir: /results/box2seg
mal:
  checkpoint: /models/mal.pth
  results_dir: null
  dataset:
    type: coco
    train_ann_path: ''
    train_img_dir: ''
    val_ann_path: ''
    val_img_dir: ''
    min_obj_size: 2048
    max_obj_size: 1e10
    num_workers_per_gpu: 2
    load_mask: true
    crop_size: 512
  model:
    arch: vit-mae-base/16
    frozen_stages: [-1]
    mask_head_num_convs: 4
    mask_head_hidden_channel: 256
    mask_head_out_channel: 256
    teacher_momentum: 0.996
    not_adjust_scale: false
    mask_scale_ratio_pre: 1
    mask_scale_ratio: 2.0
    vit_dpr: 0
  train:
    num_gpus: 1
    gpu_ids: [0]
    num_nodes: 1
    seed: 1234
    cudnn: {benchmark: false, deterministic: true}
    num_epochs: 10
    checkpoint_interval: 1
    checkpoint_interval_unit: epoch
    validation_interval: 1
    resume_training_checkpoint_path: null
    results_dir: null
    batch_size: 3
    accum_grad_batches: 1
    use_amp: true
    pretrained_model_path: null
    optim_type: adamw
    optim_momentum: 0.9
    lr: 0.000001
    min_lr: 0
    min_lr_rate: 0.2
    num_wave: 1
    wd: 0.0005
    optim_eps: 1e-8
    optim_betas: [0.9, 0.9]
    warmup_epochs: 1
    margin_rate: [0, 1.2]
    test_margin_rate: [0.6, 0.6]
    mask_thres: [0.1]
    loss_mil_weight: 4
    loss_crf_weight: 0.5
    crf_zeta: 0.1
    crf_kernel_size: 3
    crf_num_iter: 100
    loss_crf_step: 4000
    loss_mil_step: 1000
    crf_size_ratio: 1
    crf_value_high_thres: 0.9
    crf_value_low_thres: 0.1
  inference:
    num_gpus: 1
    gpu_ids: [0]
    num_nodes: 1
    checkpoint: ???
    trt_engine: null
    results_dir: null
    ann_path: /data/boxes.json
    img_dir: /data/images
    label_dump_path: instances_val2017_mal.json
    batch_size: 3
    load_mask: false
  evaluate:
    num_gpus: 1
    gpu_ids: [0]
    num_nodes: 1
    checkpoint: ???
    trt_engine: null
    results_dir: null
    batch_size: 3
    use_mixed_model_test: false
    use_teacher_test: false
    comp_clustering: false
    use_flip_test: false
"""

# The block of the pipeline that does not run, as in a file of all of TAO's defaults.
UNUSED_MAL = """
mal:
  checkpoint: null
  inference:
    ann_path: ''
    img_dir: ''
    checkpoint: ???
"""


def without_none(value: object) -> object:
    """The value without empty keys and keys still to be filled in, lists as tuples: as a spec holds it."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item not in (None, "???")}
    return tuple(map(without_none, value)) if isinstance(value, list) else value


def set_by_the_user(spec: ExperimentSpec) -> object:
    return spec.model_dump(exclude_unset=True, exclude_none=True)


def parse(text: str) -> ExperimentSpec:
    return parse_spec(text, source="spec.yaml")


def test_every_key_of_a_text2box_spec_is_taken_as_it_is() -> None:
    dataset = yaml.safe_load(TEXT2BOX)["grounding_dino"]["dataset"]
    assert set_by_the_user(parse(TEXT2BOX))["grounding_dino"]["dataset"] == without_none(dataset)  # type: ignore[index]


def test_a_text2box_spec_runs_the_schedule_of_tao_without_nms() -> None:
    block = parse(TEXT2BOX).grounding_dino
    assert (block.schedule, block.nms_threshold(0), block.nms_threshold(1)) == (ListSchedule((0.5, 0.4)), None, None)


def test_a_box2seg_spec_names_its_boxes() -> None:
    inference = parse(BOX2SEG).mal.inference
    assert (inference.ann_path, inference.img_dir) == ("/data/boxes.json", "/data/images")


def test_a_block_left_out_has_the_defaults_of_tao() -> None:
    text2box, box2seg = parse(TEXT2BOX), parse(BOX2SEG)
    # What is about the network is an exception: empty means what the checkpoint says; TAO's say TAO's defaults.
    sizes = {"arch": "vit-mae-base/16", "not_adjust_scale": False, "mask_scale_ratio_pre": 1, "mask_scale_ratio": 2.0}
    assert text2box.mal.model.model_copy(update=sizes) == box2seg.mal.model
    assert text2box.mal.dataset.model_copy(update={"crop_size": 512}) == box2seg.mal.dataset
    assert text2box.mal.train == box2seg.mal.train
    assert text2box.grounding_dino.train == box2seg.grounding_dino.train
    tokenizer = {"text_encoder_type": "bert-base-uncased"}
    assert text2box.grounding_dino.model == box2seg.grounding_dino.model.model_copy(update=tokenizer)


def test_the_keys_that_had_no_effect_fit_in_a_line() -> None:
    assert [key for key in parse(TEXT2BOX).unused_keys() if not key.startswith("grounding_dino.model.")] == [
        "grounding_dino.dataset.augmentation.fixed_padding",
        "grounding_dino.dataset.augmentation.horizontal_flip_prob",
        "grounding_dino.dataset.augmentation.scales",
        "grounding_dino.dataset.augmentation.train_random_crop_max",
        "grounding_dino.dataset.augmentation.train_random_crop_min",
        "grounding_dino.dataset.augmentation.train_random_resize",
        "grounding_dino.train",
        "num_gpus",
    ]


def test_the_block_of_the_other_pipeline_may_be_left_as_it_came() -> None:
    assert parse(TEXT2BOX + UNUSED_MAL).mal.checkpoint is None
