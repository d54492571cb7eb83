"""How good the detector is on scenes it has not seen: AP50 with class names and with phrases, precision and recall."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from losses import corners
from network import as_tensors
from scene_data import Sample, sample_of
from scene_prompts import ANY, Phrase, Prompt, PromptWriter, build_tokenizer, true_of
from torch import Tensor
from transformers import GroundingDinoForObjectDetection

from tasks.domain.scenes import COLOURS, SHAPES, SIZES, draw_scene

# Grounding DINO's predictions for a batch: token logits (B, Q, T) and boxes (B, Q, 4), cxcywh in [0, 1].
Predict = Callable[[Sequence[Sample], Sequence[Prompt]], tuple[Tensor, Tensor]]
_MATCH_IOU = 0.5
_NMS_IOU = 0.7
_FLOOR = 0.02


@dataclass(frozen=True)
class Found:
    """Candidates of one phrase in one image, best first, and the boxes that it truly describes (xyxy in [0, 1])."""

    scores: np.ndarray
    boxes: Tensor
    truth: Tensor


def class_prompt(writer: PromptWriter) -> Prompt:
    """The eight class names."""
    return writer.prompt([Phrase(word, (index, ANY, ANY)) for index, word in enumerate(SHAPES)])


def phrase_prompt(writer: PromptWriter, sample: Sample, rng: np.random.Generator) -> Prompt:
    """The image's phrases, of two or three words, with for each a near miss (one word changed)."""
    attributes: list[tuple[int, int, int]] = []
    for row in sample.attributes:
        detailed = rng.random() < 0.5
        other = row.copy()
        slot = int(rng.integers(3 if detailed else 2))
        other[slot] = rng.integers((len(SHAPES), len(COLOURS), len(SIZES))[slot])
        attributes += [(int(s), int(c), int(z) if detailed else ANY) for s, c, z in (row, other)]
    return writer.prompt([_phrase(item) for item in dict.fromkeys(attributes)])


def _phrase(attributes: tuple[int, int, int]) -> Phrase:
    shape, colour, size = attributes
    words = (SIZES[size] if size >= 0 else "", COLOURS[colour], SHAPES[shape])
    return Phrase(" ".join(filter(None, words)), attributes)


def find(predict: Predict, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[Found]:
    """What the detector finds for every (image, phrase) pair; the images have one size."""
    found: list[Found] = []
    for start in range(0, len(samples), 25):
        chunk, asked = samples[start : start + 25], prompts[start : start + 25]
        logits, boxes = predict(chunk, asked)
        for image, (sample, prompt) in enumerate(zip(chunk, asked, strict=True)):
            found += _of_image(logits[image], corners(boxes[image]), sample, prompt)
    return found


def _of_image(logits: Tensor, boxes: Tensor, sample: Sample, prompt: Prompt) -> list[Found]:
    """A phrase's score is the mean probability of its own tokens."""
    probabilities = logits.sigmoid().numpy()
    height, width = sample.pixels.shape[:2]
    true_boxes = torch.as_tensor(sample.boxes) / torch.tensor([width, height, width, height])
    describes = true_of(sample.attributes, prompt.attributes)
    found = []
    for phrase in range(len(prompt.attributes)):
        scores = probabilities[:, np.flatnonzero(prompt.phrase_of_token == phrase)].mean(1)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > _FLOOR]
        found.append(Found(scores[order], boxes[order], true_boxes[describes[:, phrase]]))
    return found


def suppressed(found: Found) -> Found:
    """The candidates that survive greedy non-maximum suppression within their phrase."""
    overlaps = _iou(found.boxes, found.boxes).numpy() > _NMS_IOU
    kept = np.ones(len(found.scores), dtype=bool)
    for index in range(len(kept)):
        kept[index] = not np.any(overlaps[index, :index] & kept[:index])
    return Found(found.scores[kept], found.boxes[kept], found.truth)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union: (n, 4), (m, 4) to (n, m)."""
    a, b = a[:, None], b[None]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return inner / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner).clamp(min=1e-9)


def _hits(found: Found) -> np.ndarray:
    """Which candidates are right, (n,) bool: the best of the phrase's boxes still free, at IoU 0.5 or more (COCO)."""
    overlaps = _iou(found.boxes, found.truth).numpy()
    free = np.ones(len(found.truth), dtype=bool)
    hits = np.zeros(len(found.scores), dtype=bool)
    for index in range(len(found.scores)):
        if free.any():
            best = int(np.argmax(np.where(free, overlaps[index], -1)))
            hits[index] = overlaps[index, best] >= _MATCH_IOU
            free[best] &= not hits[index]
    return hits


@dataclass(frozen=True)
class Scores:
    """AP50 over all phrases together; precision and recall at the threshold where the lower of the two is highest."""

    ap50: float
    precision: float
    recall: float
    threshold: float

    def __str__(self) -> str:
        return f"AP50 {self.ap50:.3f} P {self.precision:.3f} R {self.recall:.3f} at {self.threshold:.2f}"


def score(found: Sequence[Found]) -> Scores:
    """Pool the candidates of all images and phrases and rank them together."""
    scores = np.concatenate([item.scores for item in found])
    hits = np.concatenate([_hits(item) for item in found])
    total = sum(len(item.truth) for item in found)
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[order])
    precision, recall = right / np.arange(1, len(right) + 1), right / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, np.linspace(0, 1, 101))  # COCO's 101 recall levels
    ap50 = float(np.append(envelope, 0.0)[first].mean())
    best = int(np.argmax(np.minimum(precision, recall)))
    return Scores(ap50, float(precision[best]), float(recall[best]), float(scores[order][best]))


@dataclass(frozen=True)
class Examination:
    """Scenes, with a prompt of class names and one of phrases for each."""

    samples: list[Sample]
    class_prompts: list[Prompt]
    phrase_prompts: list[Prompt]

    @classmethod
    def drawn(cls, first_seed: int, count: int) -> "Examination":
        """Square scenes of `count` consecutive seeds."""
        samples = [sample_of(draw_scene(seed)) for seed in range(first_seed, first_seed + count)]
        rng = np.random.default_rng(first_seed)
        writer = PromptWriter(build_tokenizer(), rng)
        phrases = [phrase_prompt(writer, sample, rng) for sample in samples]
        return cls(samples, [class_prompt(writer)] * count, phrases)

    def scores(self, model: GroundingDinoForObjectDetection) -> dict[str, Scores]:
        """Scores for class names and for phrases, without and with non-maximum suppression."""
        predict = _predictor(model)
        result = {}
        for name, prompts in (("classes", self.class_prompts), ("phrases", self.phrase_prompts)):
            found = find(predict, self.samples, prompts)
            result[name] = score(found)
            result[f"{name} nms"] = score([suppressed(item) for item in found])
        return result


def _predictor(model: GroundingDinoForObjectDetection) -> Predict:
    @torch.no_grad()
    def predict(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        pixels, ids, mask = as_tensors(samples, prompts)
        outputs = model(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        return outputs.logits[..., : ids.shape[1]], outputs.pred_boxes

    return predict
