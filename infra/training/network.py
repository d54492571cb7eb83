"""The tiny Grounding DINO: its configuration, and a start from which it learns within hours on a processor."""

from collections.abc import Sequence

import numpy as np
import torch
from scene_data import Sample
from scene_prompts import QUESTION_MARK, Prompt
from torch import Tensor, nn
from transformers import BertConfig, ConvNextV2Config, GroundingDinoConfig, GroundingDinoForObjectDetection

D_MODEL = 96
LEVELS = 2  # strides 8 and 16
STRIDES = (8, 16)
# The statistics of ImageNet, as in every published Grounding DINO.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def build_config() -> GroundingDinoConfig:
    """About 1.5 million parameters. Every dropout is off: scenes are endless, so nothing is learned by heart."""
    backbone = ConvNextV2Config(
        hidden_sizes=[32, 64, 128], depths=[2, 3, 3], num_stages=3, patch_size=4, out_features=["stage2", "stage3"]
    )
    text = BertConfig(
        vocab_size=QUESTION_MARK + 1,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * D_MODEL,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=D_MODEL,
        num_queries=64,
        num_feature_levels=LEVELS,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        dropout=0.0,
        fusion_droppath=0.0,
    )


def build_model() -> GroundingDinoForObjectDetection:
    """An untrained model that finds nothing, with a probability of 0.01 for everything everywhere."""
    model = GroundingDinoForObjectDetection(build_config())
    _start_from_the_focal_prior(model)
    _let_modalities_meet(model)
    return model


@torch.no_grad()
def _start_from_the_focal_prior(model: GroundingDinoForObjectDetection) -> None:
    """Make every initial logit about -4.6, a probability of 0.01.

    The class logit is a bare dot product of two LayerNorm outputs, without scale or bias. Scaling the text side by
    1/sqrt(d) gives it unit variance; the first channel, made constant on both sides, is its bias.
    """
    text_norm = model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
    text_norm.weight.fill_(D_MODEL**-0.5)
    text_norm.weight[0], text_norm.bias[0] = 0, -2.3
    for norm in (model.model.enc_output_norm, model.model.decoder.layer_norm):
        norm.weight[0], norm.bias[0] = 0, 2


@torch.no_grad()
def _let_modalities_meet(model: GroundingDinoForObjectDetection) -> None:
    """Raise the fusion's layer scale from 1e-4, meant for pretrained towers, so that it takes part from the start."""
    for layer in model.model.encoder.layers:
        nn.init.constant_(layer.fusion_layer.vision_param, 0.1)
        nn.init.constant_(layer.fusion_layer.text_param, 0.1)


def as_tensors(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised pixels (B, 3, H, W), token ids (B, T) and the mask of those that are not padding (B, T)."""
    pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    ids = nn.utils.rnn.pad_sequence([torch.as_tensor(prompt.ids) for prompt in prompts], batch_first=True)
    return pixels, ids, (ids != 0).long()
