"""Segment Anything 1 and 2 through transformers: boxes in, masks out, the same bytes whatever the batch was.

The image encoder, which is nearly all the work, runs once per image; every box of the image then costs a pass of the
small mask decoder.
"""

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel, Sam2Config, Sam2Model, SamConfig, SamModel

from tasks.domain.artifacts import canonical_json
from tasks.domain.boxes import Boxes
from tasks.domain.errors import CheckpointError
from tasks.domain.masks import Mask
from tasks.models import Precision, SegmenterConfig
from tasks.models.checkpoint_files import CheckpointFiles, file_sha256, locate_checkpoint, read_settings
from tasks.models.devices import autocast, refuse_device
from tasks.models.quiet_transformers import UNREADABLE, quiet_transformers
from tasks.models.regions import Region, region_of
from tasks.models.sam_inputs import SamInputs, read_sam_inputs
from tasks.models.sam_masks import Logits, logits_in, mask_of
from tasks.models.tensor_files import listed

VERSION = 1  # of the rules in this file, sam_inputs.py and sam_masks.py that change masks; part of the digest


@dataclass(frozen=True)
class _Family:
    """Segment Anything 1 or 2.

    `model_types` are those of the checkpoints that it reads: the hub's SAM 2 checkpoints are of the video model, which
    is the image model and a memory.
    """

    model: Any
    config: Any
    model_types: tuple[str, ...]
    pads: bool
    example: str


_FAMILIES = {
    "sam": _Family(SamModel, SamConfig, ("sam",), pads=True, example="facebook/sam-vit-base"),
    "sam2": _Family(Sam2Model, Sam2Config, ("sam2", "sam2_video"), pads=False, example="facebook/sam2.1-hiera-tiny"),
}


class SamSegmenter:
    """A `Segmenter`: see the port for the contract.

    `model` is transformers' module, in evaluation mode on its device.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: SamInputs, *, digest: str, precision: Precision, clip_to_box: bool
    ) -> None:
        self.model = model
        self.digest = digest
        self._inputs = inputs
        self._precision = precision
        self._clip_to_box = clip_to_box

    def segment(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Boxes], *, batch_size: int = 1
    ) -> list[list[Mask | None]]:
        """For every image (H, W, 3), uint8 RGB, the masks of its boxes (N, 4); None where no logit is above 0.

        On a CUDA device `batch_size` boxes of an image share a pass of the mask decoder, which is filled up where there
        are fewer: kernels differ by the shape of the batch, and a mask must not depend on the company of its box.
        Elsewhere each passes alone, so that the batch size cannot change a bit of the result. It would gain nothing
        there: a box took 0.06 s on two cores in a batch of 1 or 4, and 0.09 to 0.22 s in one of 8 (torch 2.13,
        full-size decoders, 2026-11-23).
        """
        on_gpu = self.model.device.type == "cuda"
        return [
            list(self._masks(image, own, batch_size if on_gpu else 1)) for image, own in zip(images, boxes, strict=True)
        ]

    def _masks(self, image: NDArray[np.uint8], boxes: Boxes, batch_size: int) -> Iterator[Mask | None]:
        """The masks one after the other, since a photo has room in memory for the logits of one."""
        if not len(boxes):
            return
        height, width = image.shape[:2]
        embeddings, prompts = self._embed(image), self._inputs.place(boxes, height, width)
        for start in range(0, len(boxes), batch_size):
            batch = boxes[start : start + batch_size]
            filled = np.pad(prompts[start : start + batch_size], ((0, batch_size - len(batch)), (0, 0)), mode="edge")
            for box, answer in zip(batch, self._decode(embeddings, filled)[: len(batch)], strict=True):
                region = region_of(box) if self._clip_to_box else Region(0, 0, width, height)
                logits = logits_in(region, answer, self._inputs, height, width)
                yield mask_of(logits, region, height, width)

    def _embed(self, image: NDArray[np.uint8]) -> Any:
        """What the decoder needs to know of the image, in fp32: a tensor for SAM 1, one per level for SAM 2."""
        pixels = torch.from_numpy(self._inputs.prepare(image)[None])  # (1, 3, side, side)
        with torch.inference_mode(), autocast(self._precision):
            embeddings = self.model.get_image_embeddings(pixels.to(self.model.device))
            return [level.float() for level in embeddings] if isinstance(embeddings, list) else embeddings.float()

    def _decode(self, embeddings: Any, prompts: Boxes) -> Logits:
        """The logits (N, h, w) of N boxes in the square that the network sees.

        Always in fp32: bf16 has 8 bits for the corner of a box, which is two pixels of 1024. The decoder's other three
        answers are for prompts that may mean several things, as one click does; a box means one.
        """
        boxes = torch.from_numpy(prompts.astype(np.float32)[None]).to(self.model.device)  # (1, N, 4)
        with torch.inference_mode():
            outputs = self.model(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
        logits: Logits = outputs.pred_masks[0, :, 0].cpu().numpy()
        if np.isnan(logits).any():
            raise CheckpointError(f"the model gives logits that are no numbers; {self._way_out()}")
        return logits

    def _way_out(self) -> str:
        if self._precision == "fp32":
            return "its weights are damaged: fetch the checkpoint again, or use another one"
        return f"use precision fp32 (it is {self._precision})"


def load_sam_segmenter(config: SegmenterConfig, *, device: str) -> SamSegmenter:
    """The segmenter of a hub id, or of a folder in transformers' layout.

    `config.thresholds` and the fields that are of `mal` change nothing here.

    Args:
        config: `segmenter` is "sam" or "sam2".
        device: as torch names it.

    Raises:
        CheckpointError: it is missing, damaged, incomplete, or of another family.
        SpecError: the device cannot be used, or not with this precision.
    """
    refuse_device(device, config.precision)
    checkpoint = _read_checkpoint(config)
    return SamSegmenter(
        _load_model(checkpoint).to(device),
        checkpoint.inputs,
        digest=_digest(config, checkpoint),
        precision=config.precision,
        clip_to_box=config.clip_to_box,
    )


def sam_segmenter_digest(config: SegmenterConfig) -> str:
    """The digest of the segmenter that `load_sam_segmenter` gives, without its weights in memory.

    Raises:
        CheckpointError: the checkpoint is missing, or of another family.
    """
    return _digest(config, _read_checkpoint(config))


@dataclass(frozen=True)
class _Checkpoint:
    """What is known of a checkpoint before its weights are loaded."""

    files: CheckpointFiles
    family: _Family
    config: PreTrainedConfig
    settings: Mapping[str, Any]
    inputs: SamInputs


def _read_checkpoint(config: SegmenterConfig) -> _Checkpoint:
    files, family = locate_checkpoint(config.checkpoint), _FAMILIES[config.segmenter]
    if files.folder is None:
        raise CheckpointError(
            f"checkpoint {files.name} is an original file; segmenter {config.segmenter} reads a hub id such as "
            f"{family.example}, or a folder in the layout of transformers; give one of them, or set "
            "mal.segmenter: mal for a file of Mask Auto-Labeler"
        )
    settings = read_settings(files.folder / "config.json")
    _refuse_other_families(files.name, settings.get("model_type"), config.segmenter)
    try:
        with quiet_transformers():
            model_config = family.config.from_pretrained(files.folder, local_files_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{files.folder / 'config.json'} cannot be read ({error}); fetch it again") from error
    side = model_config.prompt_encoder_config.image_size
    return _Checkpoint(
        files, family, model_config, settings, read_sam_inputs(files.folder, side=side, pads=family.pads)
    )


def _refuse_other_families(name: str, model_type: str | None, segmenter: str) -> None:
    expected = _FAMILIES[segmenter]
    if model_type in expected.model_types:
        return
    others = {name: key for key, family in _FAMILIES.items() for name in family.model_types} | {"mal": "mal"}
    other = others.get(model_type or "")
    way_out = f"set mal.segmenter: {other}" if other else f"use a checkpoint such as {expected.example}"
    raise CheckpointError(
        f"checkpoint {name} is a {model_type!r}; segmenter {segmenter} expects {' or '.join(expected.model_types)}; "
        f"{way_out}"
    )


def _digest(config: SegmenterConfig, checkpoint: _Checkpoint) -> str:
    marks = ("transformers_version", "_name_or_path")  # of who saved it
    content = {
        "version": VERSION,
        "segmenter": config.segmenter,
        "weights": [file_sha256(path) for path in checkpoint.files.weights],
        "config": {key: value for key, value in checkpoint.settings.items() if key not in marks},
        "preprocessing": asdict(checkpoint.inputs),
        "precision": config.precision,
        "clip_to_box": config.clip_to_box,
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _load_model(checkpoint: _Checkpoint) -> PreTrainedModel:
    """The network in fp32 on the CPU, in evaluation mode, every weight of it from the checkpoint.

    Weights that the network has no use for are no fault: those of a video checkpoint's memory are.
    """
    name = checkpoint.files.name
    try:
        with quiet_transformers():
            model, report = checkpoint.family.model.from_pretrained(
                checkpoint.files.folder,
                config=checkpoint.config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below with the missing
                local_files_only=True,
                output_loading_info=True,
            )
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {error}") from error
    gaps = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if gaps:
        raise CheckpointError(
            f"checkpoint {name} lacks weights that its config asks for, or has them in another size: {listed(gaps)}; "
            "fetch it again"
        )
    return model
