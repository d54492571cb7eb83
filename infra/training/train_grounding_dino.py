"""Train the bundled tiny Grounding DINO on generated scenes, from scratch, on a processor, and export it.

    python infra/training/train_grounding_dino.py --out tasks/models/bundled/grounding_dino_scenes --minutes 100

Started again with the same --work folder it goes on from its last checkpoint.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GroundingDinoForObjectDetection
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoObjectDetectionOutput,
    generate_masks_with_special_tokens_and_transfer_map,
)

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from evaluation import Examination  # noqa: E402
from export import export  # noqa: E402
from losses import AttributeHeads, Targets, dense_loss, matched_loss, readable  # noqa: E402
from network import D_MODEL, as_tensors, build_model  # noqa: E402
from scene_data import TRAINING_SEED, VALIDATION_SEED, Sample, batches, load_or_draw  # noqa: E402
from scene_prompts import Prompt, PromptWriter, build_tokenizer, true_of  # noqa: E402

from tasks.domain.scenes import COLOURS, SHAPES, SIZES  # noqa: E402

_WEIGHT_DECAY = 0.02
_CLIP = 0.5
_WARM_UP_STEPS = 300
_EMA = 0.999
_TEXT_STEPS = 400
_VALIDATION_SCENES = 100


@dataclass
class State:
    """All that a checkpoint holds: what is being trained, how far it is, and the best validation so far."""

    model: GroundingDinoForObjectDetection
    average: GroundingDinoForObjectDetection
    heads: AttributeHeads
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    best: float = 0.0


def main() -> None:
    """Train until the time is up, exporting after every evaluation that is the best so far."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    state = _resume(options.work / "checkpoint.pt", options.learning_rate)
    log = _logger(options.work / "log.txt")
    log(f"{sum(p.numel() for p in state.model.parameters()) / 1e6:.2f} M parameters, from step {state.step}")
    _train(state, options, log)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the exported model")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for scenes, checkpoint and log")
    parser.add_argument("--minutes", type=float, default=100, help="training time in all, over every start")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=8e-4, help="peak; a cosine follows")
    parser.add_argument("--scenes", type=int, default=24000, help="how many are drawn before the start")
    parser.add_argument("--evaluate-every", type=float, default=5, help="minutes")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _logger(path: Path) -> Callable[[str], None]:
    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with path.open("a") as file:
            file.write(stamped + "\n")

    return log


def _resume(checkpoint: Path, learning_rate: float) -> State:
    model, heads = build_model(), AttributeHeads()
    parameters = [*model.parameters(), *heads.parameters()]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    state = State(model, copy.deepcopy(model).eval(), heads, torch.optim.AdamW(groups, lr=learning_rate))
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name in ("model", "average", "heads", "optimizer"):
            getattr(state, name).load_state_dict(saved[name])
        state.step, state.seconds, state.best = saved["step"], saved["seconds"], saved["best"]
    return state


def _save(state: State, checkpoint: Path) -> None:
    content = {name: getattr(state, name).state_dict() for name in ("model", "average", "heads", "optimizer")}
    content |= {"step": state.step, "seconds": state.seconds, "best": state.best}
    torch.save(content, checkpoint.with_suffix(".part"))
    checkpoint.with_suffix(".part").replace(checkpoint)


def _train(state: State, options: argparse.Namespace, log: Callable[[str], None]) -> None:
    writer = PromptWriter(build_tokenizer(), np.random.default_rng(state.step))
    if state.step == 0:
        _teach_words(state, writer, log)
    data = _data(options, state.step)
    validation = Examination.drawn(VALIDATION_SEED, _VALIDATION_SCENES)
    budget, next_evaluation = options.minutes * 60, state.seconds + options.evaluate_every * 60
    while state.seconds < budget:
        started = time.monotonic()
        losses = _step(state, next(data), writer, options.learning_rate * _schedule(state.step, state.seconds / budget))
        state.seconds += time.monotonic() - started
        if state.step % 50 == 0:
            parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            log(f"step {state.step} {state.seconds / 60:.1f} min {parts}")
        if state.seconds > next_evaluation or state.seconds >= budget:
            next_evaluation = state.seconds + options.evaluate_every * 60
            _evaluate_and_export(state, validation, options, log)


def _data(options: argparse.Namespace, seed: int) -> Iterator[list[Sample]]:
    """Square scenes and, for a third, oblong ones."""
    square = options.scenes * 2 // 3
    sizes = [(TRAINING_SEED, square, 160), (TRAINING_SEED + 100_000, options.scenes - square, 208)]
    sets = [
        load_or_draw(options.work / "cache", first, count, width=width, height=160, workers=options.threads)
        for first, count, width in sizes
    ]
    return batches(sets, options.batch_size, np.random.default_rng(seed))


def _schedule(step: int, progress: float) -> float:
    """The share of the peak learning rate: a linear warm-up, then a cosine over the time budget."""
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * cosine


def _step(state: State, samples: Sequence[Sample], writer: PromptWriter, learning_rate: float) -> dict[str, float]:
    """Learn from one batch and return its losses by name."""
    prompts = writer.random_prompts([sample.attributes for sample in samples])
    losses = _losses(state, samples, prompts)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(list(losses.values()))
    nn.utils.clip_grad_norm_([*state.model.parameters(), *state.heads.parameters()], _CLIP)
    state.optimizer.step()
    state.step += 1
    _follow(state)
    return {name: float(value.detach()) for name, value in losses.items()}


def _losses(state: State, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    pixels, ids, mask = as_tensors(samples, prompts)
    outputs = state.model.train()(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    targets = [_targets(*pair, ids.shape[1]) for pair in zip(samples, prompts, strict=True)]
    losses = dense_loss(outputs, targets, mask.bool(), (pixels.shape[2], pixels.shape[3]), state.heads)
    for layer, (logits, boxes) in enumerate(_decoder_layers(state.model, outputs)):
        matched = matched_loss(readable(logits, mask.bool()), boxes, targets, mask.bool())
        losses |= {f"layer{layer}_{name}": value for name, value in matched.items()}
    return losses


def _targets(sample: Sample, prompt: Prompt, length: int) -> Targets:
    height, width = sample.pixels.shape[:2]
    x0, y0, x1, y1 = sample.boxes.T
    boxes = np.stack([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], 1)
    describes = true_of(sample.attributes, prompt.attributes)  # (n, P)
    tokens = np.zeros((len(boxes), length), dtype=bool)
    own = np.flatnonzero(prompt.phrase_of_token >= 0)
    tokens[:, own] = describes[:, prompt.phrase_of_token[own]]
    return Targets(torch.as_tensor(boxes), torch.as_tensor(sample.attributes), torch.as_tensor(tokens))


def _decoder_layers(
    model: GroundingDinoForObjectDetection, outputs: GroundingDinoObjectDetectionOutput
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, Q, T) and boxes (B, Q, 4) after every decoder layer, each with its gradient."""
    text = outputs.encoder_last_hidden_state_text
    # Every layer refines the boxes of the one before; the boxes of the last layer are nobody's reference.
    references = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)[:-1]]
    for hidden, reference, head in zip(
        outputs.intermediate_hidden_states.unbind(1), references, model.bbox_embed, strict=True
    ):
        boxes = (head(hidden) + torch.special.logit(reference, eps=1e-5)).sigmoid()
        yield hidden @ text.transpose(1, 2), boxes


@torch.no_grad()
def _follow(state: State) -> None:
    """Move the averaged weights towards the current ones; faster at the start."""
    decay = min(_EMA, (1 + state.step) / (10 + state.step))
    for average, current in zip(state.average.parameters(), state.model.parameters(), strict=True):
        average.lerp_(current, 1 - decay)


def _teach_words(state: State, writer: PromptWriter, log: Callable[[str], None]) -> None:
    """Before any picture: every token of a phrase learns to tell all that the phrase asks for.

    Only then can a dot product with one token's feature mean "small and red and a star".
    """
    model = state.model.model
    heads = nn.ModuleList(nn.Linear(D_MODEL, len(words) + 2) for words in (SHAPES, COLOURS, SIZES))
    towers = [*model.text_backbone.parameters(), *model.text_projection.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(towers, lr=1e-3)
    for _ in range(_TEXT_STEPS):
        prompts = writer.random_prompts([_random_objects(writer.random) for _ in range(16)])
        loss = _reading_loss(state.model, prompts, heads)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    state.average.load_state_dict(state.model.state_dict())
    log(f"words taught: loss {loss.item():.4f} after {_TEXT_STEPS} steps")


def _random_objects(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(len(words), size=6) for words in (SHAPES, COLOURS, SIZES)], 1)


def _reading_loss(model: GroundingDinoForObjectDetection, prompts: Sequence[Prompt], heads: nn.ModuleList) -> Tensor:
    """Cross-entropy of the attributes that each token's phrase asks for; the last two classes are ANY and NOTHING."""
    ids = nn.utils.rnn.pad_sequence([torch.as_tensor(prompt.ids) for prompt in prompts], batch_first=True)
    features = _text_features(model, ids)
    kept, wanted = [], []
    for row, prompt in enumerate(prompts):
        own = np.flatnonzero(prompt.phrase_of_token >= 0)
        kept.append(features[row, own])
        wanted.append(torch.as_tensor(prompt.attributes[prompt.phrase_of_token[own]]))
    read, asked = torch.cat(kept), torch.cat(wanted)
    counts = [len(words) + 2 for words in (SHAPES, COLOURS, SIZES)]
    return sum(
        (nn.functional.cross_entropy(h(read), asked[:, i] % counts[i]) for i, h in enumerate(heads)),
        torch.zeros(()),
    )


def _text_features(model: GroundingDinoForObjectDetection, ids: Tensor) -> Tensor:
    """Projected text features (B, T, D), each phrase read on its own as the detector does."""
    mask, positions = generate_masks_with_special_tokens_and_transfer_map(ids, model.model.special_tokens)
    features = model.model.text_backbone(ids, mask[:, None], torch.zeros_like(ids), positions).last_hidden_state
    projected: Tensor = model.model.text_projection(features)
    return projected


def _evaluate_and_export(
    state: State, validation: Examination, options: argparse.Namespace, log: Callable[[str], None]
) -> None:
    """Save a checkpoint; export the averaged weights if no earlier ones did as well."""
    scores = validation.scores(state.average)
    for name, values in scores.items():
        log(f"EVAL step {state.step} {name:12} {values}")
    quality = sum(values.ap50 for values in scores.values()) / len(scores)
    if quality > state.best:
        state.best = quality
        export(state.average, options.out)
        log(f"exported: mean AP50 {quality:.3f}")
        (options.work / "metrics.json").write_text(json.dumps({k: str(v) for k, v in scores.items()}, indent=1))
    _save(state, options.work / "checkpoint.pt")


if __name__ == "__main__":
    main()
