"""Grounding DINO through transformers: captions in, candidates out, the same bytes whatever the batch was.

One path serves Grounding DINO, MM-Grounding-DINO, LLMDet and converted TAO checkpoints. Images are never padded
together: the Swin backbone and the group normalisation behind it see the padding, so an image's boxes would depend on
its neighbours.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tasks.domain.artifacts import canonical_json
from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError
from tasks.domain.prompts import (
    CLS,
    FULL_STOP,
    MAX_TOKENS,
    PADDING,
    QUESTION_MARK,
    SEP,
    UNKNOWN,
    Caption,
    clean_phrase,
    plan_captions,
)
from tasks.models.checkpoint_files import (
    TOKENIZER_FILES,
    CheckpointFiles,
    file_sha256,
    locate_checkpoint,
    locate_tokenizer,
    read_settings,
)
from tasks.models.devices import autocast, refuse_device
from tasks.models.grounding_dino_weights import load_model
from tasks.models.postprocessing import Answer, candidates_of
from tasks.models.preprocessing import Preprocessing, Pyramid, grown_until_workable, read_preprocessing
from tasks.models.quiet_transformers import UNREADABLE

VERSION = 1  # of the rules in this file that change boxes or scores; part of the digest

_DEFAULT_TOKENIZER = "bert-base-uncased"  # the text encoder of every published Grounding DINO
_VOCABULARY = {
    "[PAD]": PADDING,
    "[UNK]": UNKNOWN,
    "[CLS]": CLS,
    "[SEP]": SEP,
    ".": FULL_STOP,
    "?": QUESTION_MARK,
}


class GroundingDinoOptions(TypedDict, total=False):
    """What may be said about a checkpoint beyond its name; each changes the answers, and so the digest.

    Attributes:
        precision: of the arithmetic, "fp32" if not given; fp16 and bf16 by autocast, on CUDA only.
        score: of a phrase, over its tokens: "mean" if not given, as published, or "max".
        shortest_edge: pixels; None or not given as the checkpoint says, as for the next three.
        longest_edge: pixels.
        mean: of RGB values in [0, 1].
        std: of RGB values in [0, 1].
        config: transformers' config, in place of the folder's or of the one that the tensors' shapes imply.
        tokenizer: folder, hub id or object; None for the checkpoint's own, or bert-base-uncased if it has none.
        architecture: "log_scale_auto" for an original checkpoint whose tensors cannot tell.
    """

    precision: Literal["fp32", "fp16", "bf16"]
    score: Literal["mean", "max"]
    shortest_edge: int | None
    longest_edge: int | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    config: PreTrainedConfig | None
    tokenizer: Any
    architecture: str | None


class GroundingDinoPrompter:
    """Tokenises phrases into captions, and knows the digest of the checkpoint; holds no weights."""

    def __init__(self, tokenizer: Any, *, digest: str, max_tokens: int = MAX_TOKENS) -> None:
        self.digest = digest
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._planned = lru_cache(maxsize=4096)(self._plan)

    def captions(self, phrases: Sequence[str]) -> tuple[Caption, ...]:
        """The captions that ask these phrases; none for none. Raises PromptError, which names all that cannot be."""
        return self._planned(tuple(phrases))

    def refuse_words_beyond(self, words: int) -> None:
        """Raise CheckpointError if the tokenizer gives ids that a model of so many words does not have."""
        largest = max(self._tokenizer.get_vocab().values())
        if largest >= words:
            raise CheckpointError(
                f"the tokenizer gives ids up to {largest}, the model has {words} words; use the model's own tokenizer"
            )

    def _plan(self, phrases: tuple[str, ...]) -> tuple[Caption, ...]:
        cleaned = [clean_phrase(phrase) for phrase in phrases]
        token_ids = [self._tokenizer(phrase, add_special_tokens=False)["input_ids"] for phrase in cleaned]
        return plan_captions(phrases, token_ids, self.max_tokens)


@dataclass(frozen=True)
class _View:
    """One forward pass's share: the image it is about, the size it is seen at, the caption it is asked."""

    image: int
    size: tuple[int, int]  # (height, width)
    caption: Caption


class GroundingDinoDetector:
    """A `Detector`: see the port for the contract.

    `model` is transformers' module, in evaluation mode on its device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompter: GroundingDinoPrompter,
        *,
        preprocessing: Preprocessing,
        precision: Literal["fp32", "fp16", "bf16"],
        score: Literal["mean", "max"],
    ) -> None:
        self.model = model
        self._prompter = prompter
        self._preprocessing = preprocessing
        self._precision = precision
        self._score: Literal["mean", "max"] = score

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over weights, config, vocabulary, preprocessing, precision and score rule."""
        return self._prompter.digest

    def captions(self, phrases: Sequence[str]) -> tuple[Caption, ...]:
        """The captions that ask these phrases: a forward pass per image and caption. Raises PromptError."""
        return self._prompter.captions(phrases)

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Sequence[str]],
        *,
        keep_floor: float,
        batch_size: int = 1,
    ) -> list[Candidates]:
        """One `Candidates` per image (H, W, 3), uint8 RGB: every (box, phrase) that scores at least `keep_floor`.

        On a CUDA device images of equal resized size share a forward pass, up to `batch_size`; elsewhere every image
        and caption passes alone, so that the batch size cannot change a bit of the result.
        """
        answers: list[list[Answer]] = [[] for _ in images]
        batches = _batches(self._views(images, prompts), batch_size if self.model.device.type == "cuda" else 1)
        for batch in batches:
            pixels = [self._preprocessing.prepare(images[view.image], view.size) for view in batch]
            for view, answer in zip(batch, self._forward(pixels, [view.caption for view in batch]), strict=True):
                answers[view.image].append(answer)
        return [
            candidates_of(
                prompt, found, height=len(image), width=image.shape[1], keep_floor=keep_floor, rule=self._score
            )
            for image, prompt, found in zip(images, prompts, answers, strict=True)
        ]

    def _views(self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[Sequence[str]]) -> Iterator[_View]:
        for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            captions = self.captions(prompt)
            size = self._size(*image.shape[:2]) if captions else (0, 0)
            yield from (_View(index, size, caption) for caption in captions)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the model sees an image of this size."""
        config = self.model.config
        resized = self._preprocessing.resized(height, width)
        return grown_until_workable(resized, config.num_queries, _pyramid(config))

    def _forward(self, pixels: Sequence[NDArray[np.float32]], captions: Sequence[Caption]) -> list[Answer]:
        """One forward pass over images (3, h, w) of equal size, with a caption each."""
        device = self.model.device
        ids, attention_mask = _pad([caption.input_ids for caption in captions])  # (B, T) each
        values = torch.from_numpy(np.stack(pixels)).to(device)  # (B, 3, h, w)
        # Whole models in bf16 move boxes by pixels.
        with torch.inference_mode(), autocast(self._precision):
            outputs = self.model(
                pixel_values=values,
                pixel_mask=torch.ones(values.shape[0], *values.shape[2:], dtype=torch.long, device=device),
                input_ids=ids.to(device),
                attention_mask=attention_mask.to(device),
            )
        scores = outputs.logits[..., : ids.shape[1]].float().sigmoid().cpu().double().numpy()  # (B, Q, T)
        boxes = outputs.pred_boxes.cpu().double().numpy()  # (B, Q, 4)
        if np.isnan(scores).any():
            half = f"use precision fp32 (it is {self._precision})"
            damaged = "its weights are damaged: fetch the checkpoint again, or use another one"
            way_out = damaged if self._precision == "fp32" else half
            raise CheckpointError(f"the model gives scores that are no numbers; {way_out}")
        return [
            Answer(caption, score[:, : len(caption.input_ids)], box)
            for caption, score, box in zip(captions, scores, boxes, strict=True)
        ]


def load_grounding_dino(
    checkpoint: str | Path, *, device: str = "cpu", **options: Unpack[GroundingDinoOptions]
) -> GroundingDinoDetector:
    """The detector of a hub id, a folder in transformers' layout, or an original IDEA-Research or TAO checkpoint.

    Args:
        checkpoint: hub id, folder, or `.pth`, `.pt`, `.safetensors` file.
        device: as torch names it.
        options: see `GroundingDinoOptions`.

    Raises:
        CheckpointError: it is missing, encrypted, damaged, or of an unsupported architecture.
        SpecError: the device cannot be used, or not with this precision.
    """
    precision = options.get("precision", "fp32")
    refuse_device(device, precision)
    files = locate_checkpoint(checkpoint)
    prompter = _prompter(files, options)
    model = load_model(files, config=options.get("config"), architecture=options.get("architecture"))
    prompter.refuse_words_beyond(model.config.text_config.vocab_size)
    return GroundingDinoDetector(
        model.to(device),
        prompter,
        preprocessing=_preprocessing(files, options),
        precision=precision,
        score=options.get("score", "mean"),
    )


def load_grounding_dino_prompter(
    checkpoint: str | Path, **options: Unpack[GroundingDinoOptions]
) -> GroundingDinoPrompter:
    """Digest and captions of the detector that `load_grounding_dino` gives for the same arguments.

    Raises:
        CheckpointError: the checkpoint or its tokenizer is missing or unusable.
    """
    return _prompter(locate_checkpoint(checkpoint), options)


def _prompter(files: CheckpointFiles, options: GroundingDinoOptions) -> GroundingDinoPrompter:
    settings = _settings(files, options.get("config"))
    tokenizer = _load_tokenizer(files, options.get("tokenizer"))
    content = {
        "version": VERSION,
        "weights": [file_sha256(path) for path in files.weights],
        "config": settings,
        "architecture": options.get("architecture"),
        "vocabulary": hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest(),
        # Two tokenizers of one vocabulary differ in what they do to case, accents and hyphens.
        "tokenised": tokenizer("Ab Çé-9", add_special_tokens=False)["input_ids"],
        "preprocessing": asdict(_preprocessing(files, options)),
        "precision": options.get("precision", "fp32"),
        "score": options.get("score", "mean"),
    }
    digest = hashlib.sha256(canonical_json(content)).hexdigest()
    return GroundingDinoPrompter(
        tokenizer, digest=digest, max_tokens=min(MAX_TOKENS, settings.get("max_text_len", MAX_TOKENS))
    )


def _preprocessing(files: CheckpointFiles, options: GroundingDinoOptions) -> Preprocessing:
    """What the checkpoint says about images, or what the user says instead."""
    published = Preprocessing() if files.folder is None else read_preprocessing(files.folder)
    return Preprocessing(
        shortest_edge=options.get("shortest_edge") or published.shortest_edge,
        longest_edge=options.get("longest_edge") or published.longest_edge,
        mean=options.get("mean") or published.mean,
        std=options.get("std") or published.std,
    )


def _settings(files: CheckpointFiles, config: PreTrainedConfig | None) -> dict[str, Any]:
    """The config in JSON, without the marks of who saved it; empty where the tensors alone tell."""
    if config is not None:
        content = json.loads(config.to_json_string(use_diff=False))
    elif files.folder is not None:
        content = read_settings(files.folder / "config.json")
    else:
        content = {}
    return {key: value for key, value in content.items() if key not in ("transformers_version", "_name_or_path")}


def _load_tokenizer(files: CheckpointFiles, tokenizer: Any) -> Any:
    """The tokenizer, checked to have the ids that Grounding DINO hard-codes."""
    if tokenizer is None:
        own = files.folder is not None and any((files.folder / name).is_file() for name in TOKENIZER_FILES)
        tokenizer = str(files.folder) if own else _DEFAULT_TOKENIZER
    if isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer_from(locate_tokenizer(str(tokenizer)))
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in _VOCABULARY}
    if found != _VOCABULARY:
        raise CheckpointError(
            f"the tokenizer for {files.name} has the ids {found}; Grounding DINO expects {_VOCABULARY}, "
            f"those of {_DEFAULT_TOKENIZER}; use that tokenizer"
        )
    return tokenizer


def _tokenizer_from(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be read ({error}); give one as tokenizer"
        ) from error


def _pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their attention mask, (B, T) int64 each. Padding behind the last full stop changes no answer."""
    lengths = torch.tensor([len(row) for row in rows])
    attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(attention_mask.shape, PADDING)
    ids[attention_mask] = torch.tensor([token for row in rows for token in row])
    return ids, attention_mask.long()


def _pyramid(config: PreTrainedConfig) -> Pyramid:
    """The feature levels of a model, from its config."""
    backbone = config.backbone_config
    strides = tuple(backbone.patch_size * 2 ** (stage - 1) for stage in backbone.out_indices)
    return Pyramid(strides, config.num_feature_levels - len(strides), pads=backbone.model_type == "swin")


def _batches(views: Iterable[_View], batch_size: int) -> Iterator[list[_View]]:
    """The views in groups of one size, of at most `batch_size`."""
    by_size: dict[tuple[int, int], list[_View]] = {}
    for view in views:
        by_size.setdefault(view.size, []).append(view)
    for group in by_size.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))
