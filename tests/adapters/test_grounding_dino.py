"""The detector against transformers' own processor, tokenizer and model, on small random networks."""

import json
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from tasks.domain.boxes import clip_boxes, is_degenerate
from tasks.domain.detections import Candidates
from tasks.domain.errors import CheckpointError, PromptError, SpecError
from tasks.domain.prompts import caption_text, clean_phrase
from tasks.models import DetectorConfig, load_detector, load_prompter
from tasks.models.grounding_dino import _batches, _View, load_grounding_dino, load_grounding_dino_prompter

WORDS = ["person", "man", "woman", "son", "car", "fire", "truck", "cafe", "dog", "container", "##number", "##s", "-"]
EDGES = {"shortest_edge": 64, "longest_edge": 96}
MODELS = {
    GroundingDinoConfig: GroundingDinoForObjectDetection,
    MMGroundingDinoConfig: MMGroundingDinoForObjectDetection,
}


def save_tokenizer(folder: Path) -> Path:
    """A WordPiece vocabulary with the special ids of bert-base-uncased, and letters for all words it does not know."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = string.ascii_lowercase + string.digits
    words = [special.get(number, f"[unused{number}]") for number in range(1030)]
    words += [*letters, *(f"##{letter}" for letter in letters), *WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def tiny_config(config_class: type = GroundingDinoConfig, **changes: object):
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 12,
        "backbone_config": SwinConfig(
            embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_indices=[2, 3, 4]
        ),
        "text_config": BertConfig(
            vocab_size=1200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
    }
    return config_class(**(sizes | changes))


def random_model(config, seed: int = 0):
    """A network whose heads answer neither 0 nor 1 to everything, and whose text, image and boxes all matter."""
    torch.manual_seed(seed)
    model = MODELS[type(config)](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "bbox_embed" in name else 0.1))
        model.model.decoder.layer_norm.weight.mul_(0.5)
        for head in model.class_embed:
            if hasattr(head, "bias"):
                head.bias.fill_(-0.5)
    return model


def save(model, folder: Path) -> Path:
    """The checkpoint folder: weights, config, tokenizer, and how images are to be resized."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    GroundingDinoImageProcessorPil(size=EDGES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS, ids=["grounding_dino", "mm_grounding_dino"])
def checkpoint(request, tmp_path_factory) -> Path:
    return save(random_model(tiny_config(request.param)), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save(random_model(tiny_config()), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def detector(plain):
    return load_grounding_dino(plain)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blotches rather than white noise, so that positions differ after resizing."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def character_spans(tokenizer, phrases: list[str]) -> list[list[int]]:
    """The tokens of each phrase by their characters in the whole text: not how our captions know them."""
    text = caption_text(phrases)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    tokens, start = [], 0
    for phrase in map(clean_phrase, phrases):
        end = start + len(phrase)
        tokens.append([place for place, (a, b) in enumerate(offsets) if start <= a < b <= end])
        start = end + len(" . ")
    return tokens


def transformers_answers(folder: Path, images: list[np.ndarray], prompts: list[list[str]]):
    """Per image: probabilities (Q, T), boxes (Q, 4) cxcywh and the tokens of each phrase, all by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    model_class = next(model for kind, model in MODELS.items() if kind.model_type == config["model_type"])
    model = model_class.from_pretrained(folder).eval()
    pixels = GroundingDinoImageProcessorPil(size=EDGES)(images, return_tensors="pt")
    texts = tokenizer([caption_text(prompt) for prompt in prompts], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**pixels, **texts)
    return [
        (logits.sigmoid().double().numpy(), boxes.double().numpy(), character_spans(tokenizer, prompt))
        for logits, boxes, prompt in zip(outputs.logits, outputs.pred_boxes, prompts, strict=True)
    ]


def expected(answer, height: int, width: int, rule=np.mean) -> list[tuple[float, int, list[float]]]:
    """(score, phrase, box) of every query and phrase, worked out pair by pair."""
    probabilities, boxes, tokens = answer
    rows = []
    for query, (cx, cy, w, h) in enumerate(boxes):
        box = np.array([[(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]])
        clipped = clip_boxes(box, width, height)
        if not is_degenerate(clipped)[0]:
            rows += [
                (float(rule(probabilities[query, own])), phrase, clipped[0].tolist())
                for phrase, own in enumerate(tokens)
            ]
    return sorted(rows, key=lambda row: (row[1], row[0], row[2]))


def assert_same(found: Candidates, rows, tolerance: float) -> None:
    order = np.lexsort((found.scores, found.phrases))
    assert found.phrases[order].tolist() == [phrase for _, phrase, _ in rows]
    np.testing.assert_allclose(found.scores[order], [score for score, _, _ in rows], atol=tolerance)
    np.testing.assert_allclose(found.boxes[order], [box for _, _, box in rows], atol=tolerance * 1000)


PROMPT = ["fire truck", "truck", "woman", "man", "container", "containernumber"]


# Parity


@pytest.mark.parametrize(("rule", "oracle"), [("mean", np.mean), ("max", np.max)])
def test_boxes_and_scores_are_those_of_transformers(checkpoint, rule, oracle):
    image = noise(90, 120)
    (answer,) = transformers_answers(checkpoint, [image], [PROMPT])
    (found,) = load_grounding_dino(checkpoint, score=rule).detect([image], [PROMPT], keep_floor=0.0)
    rows = expected(answer, 90, 120, oracle)
    assert len(rows) > 20, "the random network must have something to say"
    assert len({round(score, 4) for score, _, _ in rows}) > 20
    assert_same(found, rows, tolerance=1e-5)


def test_a_batch_of_different_prompts_gives_what_each_gives_alone(checkpoint):
    images, prompts = [noise(90, 120, 1), noise(90, 120, 2)], [["man"], PROMPT]
    answers = transformers_answers(checkpoint, images, prompts)
    found = load_grounding_dino(checkpoint).detect(images, prompts, keep_floor=0.0)
    for candidates, answer in zip(found, answers, strict=True):
        assert_same(candidates, expected(answer, 90, 120), tolerance=1e-3)


def test_one_forward_pass_over_several_captions_answers_each_as_alone(detector):
    pixels = [detector._preprocessing.prepare(noise(90, 120, seed), (64, 80)) for seed in (1, 2)]
    captions = [*detector.captions(["man"]), *detector.captions(PROMPT)]
    together = detector._forward(pixels, captions)
    for answer, pixel, caption in zip(together, pixels, captions, strict=True):
        (alone,) = detector._forward([pixel], [caption])
        assert answer.token_scores.shape == (12, len(caption.input_ids))
        np.testing.assert_allclose(answer.token_scores, alone.token_scores, atol=1e-4)
        np.testing.assert_allclose(answer.boxes, alone.boxes, atol=1e-4)


def test_the_checkpoint_says_how_images_are_resized_unless_the_user_does(plain, detector):
    assert detector._size(300, 400) == (64, 85)
    assert load_grounding_dino(plain, shortest_edge=96, longest_edge=200)._size(300, 400) == (96, 128)


# Prompts


@pytest.mark.parametrize(
    "prompt",
    [["fire truck", "truck"], ["truck", "fire truck"], ["woman", "man"], ["man", "woman"], ["person", "son"]],
    ids=" ".join,
)
def test_d5_a_name_inside_another_name_is_read_at_its_own_tokens(plain, detector, prompt):
    (caption,) = detector.captions(prompt)
    own = character_spans(AutoTokenizer.from_pretrained(plain), prompt)
    assert [list(range(*span)) for span in caption.spans] == own


def test_d5_the_order_of_the_phrases_does_not_change_what_is_found(detector):
    forward, backward = detector.detect(
        [noise(90, 120)] * 2, [["woman", "man", "fire truck"], ["fire truck", "man", "woman"]], keep_floor=0.0
    )
    for index, phrase in enumerate(forward.asked):
        ours = forward.scores[forward.phrases == index]
        theirs = backward.scores[backward.phrases == backward.asked.index(phrase)]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_d6_all_of_three_hundred_names_are_asked_in_full_and_answered(detector):
    names = [f"class {number}" for number in range(300)]
    captions = detector.captions(names)
    assert len(captions) > 1
    assert all(len(caption.input_ids) <= 256 for caption in captions)
    (found,) = detector.detect([noise(90, 120)], [names], keep_floor=0.0)
    assert set(found.phrases.tolist()) == set(range(300))
    assert np.all(found.scores > 0)


def test_d6_a_phrase_longer_than_a_caption_is_refused_not_cut(detector):
    with pytest.raises(PromptError, match="takes 300 tokens and a caption has room for 253"):
        detector.captions(["man", "dog " * 300])


def test_d18_names_with_spaces_separators_and_accents_are_answered_under_the_name_as_given(detector):
    names = ["person ", "fire. truck?", "Café", "cafe"]
    (found,) = detector.detect([noise(90, 120)], [names], keep_floor=0.0)
    assert found.asked == tuple(names)
    cafes = [found.scores[found.phrases == index] for index in (2, 3)]
    np.testing.assert_array_equal(*cafes)
    assert cafes[0].size > 0


def test_a_name_without_known_words_is_refused_by_name(detector):
    with pytest.raises(PromptError, match="1 of 2 phrases cannot be asked: '🐱'"):
        detector.detect([noise(90, 120)], [["man", "🐱"]], keep_floor=0.0)


def test_an_empty_prompt_costs_no_forward_pass_and_finds_nothing(plain):
    detector, passes = load_grounding_dino(plain), []
    detector.model.register_forward_pre_hook(lambda *_: passes.append(1))
    (found, other) = detector.detect([noise(90, 120)] * 2, [[], ["man"]], keep_floor=0.0)
    assert (found.asked, found.boxes.shape) == ((), (0, 4))
    assert len(other.scores) > 0
    assert passes == [1]


# Candidates


def test_d13_every_box_lies_inside_its_image_and_dropped_ones_are_counted(detector):
    for height, width in ((90, 120), (40, 3)):
        (found,) = detector.detect([noise(height, width)], [PROMPT], keep_floor=0.0)
        assert np.all(found.boxes >= 0)
        assert np.all(found.boxes <= [width, height, width, height])
        assert np.all(found.boxes[:, 2:] - found.boxes[:, :2] >= 1)
        assert len(found.boxes) + found.degenerate == 12 * len(PROMPT)


def test_everything_above_the_keep_floor_is_kept_best_first(detector):
    (all_of_them,) = detector.detect([noise(90, 120)], [PROMPT], keep_floor=0.0)
    floor = float(np.median(all_of_them.scores))
    (kept,) = detector.detect([noise(90, 120)], [PROMPT], keep_floor=floor)
    count = int((all_of_them.scores >= floor).sum())
    assert 0 < count < len(all_of_them.scores)
    np.testing.assert_array_equal(kept.scores, all_of_them.scores[:count])
    assert np.all(np.diff(kept.scores) <= 0)


def test_d16_the_batch_size_and_the_company_change_no_bit(detector):
    images = [noise(90, 120, 1), noise(90, 120, 2), noise(120, 90, 3), noise(50, 50, 4)]
    prompts = [["man"], PROMPT, ["dog"], ["man"]]
    together = detector.detect(images, prompts, keep_floor=0.0, batch_size=4)
    for image, prompt, found in zip(images, prompts, together, strict=True):
        (alone,) = detector.detect([image], [prompt], keep_floor=0.0)
        for ours, theirs in ((found.boxes, alone.boxes), (found.scores, alone.scores), (found.phrases, alone.phrases)):
            np.testing.assert_array_equal(ours, theirs)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))), st.integers(1, 5))
def test_d16_images_of_different_size_never_share_a_forward_pass(sizes, batch_size):
    views = [_View(index, size, None) for index, size in enumerate(sizes)]
    batches = list(_batches(views, batch_size))
    assert sorted(view.image for batch in batches for view in batch) == list(range(len(sizes)))
    assert all(len({view.size for view in batch}) == 1 and len(batch) <= batch_size for batch in batches)


def test_d27_few_queries_and_one_class_are_enough(tmp_path):
    folder = save(random_model(tiny_config(num_queries=3)), tmp_path)
    (found,) = load_grounding_dino(folder).detect([noise(90, 120)], [["man"]], keep_floor=0.0)
    assert len(found.scores) + found.degenerate == 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 12000), (12000, 20), (1, 500), (3, 7)])
def test_an_image_of_any_shape_is_looked_at(detector, height, width):
    (found,) = detector.detect([noise(height, width)], [["man"]], keep_floor=0.0)
    assert len(found.scores) + found.degenerate == 12


# Devices and precision


def test_d20_a_machine_without_a_gpu_is_enough(detector):
    assert detector.model.device.type == "cpu"
    assert {parameter.dtype for parameter in detector.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_cpu_is_refused(plain, precision):
    with pytest.raises(SpecError, match=f"precision {precision} needs a CUDA device"):
        load_grounding_dino(plain, precision=precision)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_the_way_out(plain, device):
    with pytest.raises(SpecError, match=f"device '{device}' cannot be used .*; use cpu"):
        load_grounding_dino(plain, device=device)


# Loading


def test_torchvision_is_not_needed(detector):
    detector.detect([noise(90, 120)], [["man"]], keep_floor=0.5)
    assert "torchvision" not in sys.modules


def test_the_port_can_be_imported_without_a_deep_learning_framework():
    program = "import sys, tasks.models; print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_eager_attention_of_the_text_encoder_is_refused(plain):
    config = tiny_config()
    config.text_config._attn_implementation = "eager"
    with pytest.raises(CheckpointError, match="mixes up the phrases"):
        load_grounding_dino(plain, config=config)


def test_nothing_is_printed_while_a_checkpoint_is_loaded(plain, capfd):
    load_grounding_dino(plain)
    assert capfd.readouterr() == ("", "")


def test_the_digest_holds_what_the_answers_depend_on_and_not_where_the_files_are(plain, tmp_path):
    digest = load_grounding_dino_prompter(plain).digest
    assert load_grounding_dino(plain).digest == digest
    assert load_grounding_dino_prompter(save(random_model(tiny_config()), tmp_path / "copy")).digest == digest
    others = [
        load_grounding_dino_prompter(save(random_model(tiny_config(), seed=1), tmp_path / "weights")),
        load_grounding_dino_prompter(save(random_model(tiny_config(activation_function="gelu")), tmp_path / "config")),
        load_grounding_dino_prompter(plain, score="max"),
        load_grounding_dino_prompter(plain, precision="fp16"),
        load_grounding_dino_prompter(plain, shortest_edge=96),
        load_grounding_dino_prompter(plain, mean=(0.5, 0.5, 0.5)),
        load_grounding_dino_prompter(plain, tokenizer=cased(save_tokenizer(tmp_path / "tokenizer"))),
    ]
    digests = {digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert all(len(each) == 64 for each in digests)


def cased(folder: Path) -> str:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    )
    return str(folder)


def test_a_process_keeps_the_detector_it_used_last(plain):
    config = DetectorConfig(str(plain))
    detector = load_detector(config)
    assert load_detector(DetectorConfig(str(plain))) is detector
    assert load_prompter(config).digest == detector.digest
    assert load_prompter(config).captions(PROMPT) == detector.captions(PROMPT)
    assert load_detector(DetectorConfig(str(plain), score="max")).digest != detector.digest


@pytest.mark.parametrize(
    "name", ["no/such/folder", "no-such-file.pth", "model.tlt", "bundled:nothing", "no-such/model"]
)
def test_a_checkpoint_that_is_not_there_is_refused_with_the_way_out(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"check the|download it|ships with|only TAO can read"):
        load_detector(DetectorConfig(name))


def test_a_folder_with_an_original_checkpoint_says_which_file_to_give(tmp_path):
    (tmp_path / "groundingdino_swint_ogc.pth").touch()
    with pytest.raises(CheckpointError, match=r"give the file: groundingdino_swint_ogc\.pth"):
        load_grounding_dino(tmp_path)


def test_another_architecture_is_refused_by_name(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="is a 'bert'; expected grounding-dino or mm-grounding-dino"):
        load_grounding_dino(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused_and_listed(plain):
    with pytest.raises(CheckpointError, match=r"missing: .*decoder.layers.2.*; check the config"):
        load_grounding_dino(plain, config=tiny_config(decoder_layers=3))
    with pytest.raises(CheckpointError, match=r"of another size: model.query_position_embeddings.weight \(12, 32\)"):
        load_grounding_dino(plain, config=tiny_config(num_queries=13))


def test_a_damaged_weights_file_is_refused(tmp_path):
    folder = save(random_model(tiny_config()), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_grounding_dino(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_settings_file_is_refused(plain, tmp_path, name):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read .*; fetch it again"):
        load_grounding_dino(tmp_path)


def test_a_tokenizer_with_other_separators_is_refused(plain, tmp_path):
    save_tokenizer(tmp_path)
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    words[1012], words[1013] = words[1013], words[1012]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(CheckpointError, match=r"'\.': 1013.*use that tokenizer"):
        load_grounding_dino(plain, tokenizer=str(tmp_path))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    model = random_model(tiny_config(text_config=BertConfig(vocab_size=1032, hidden_size=32, num_attention_heads=2)))
    with pytest.raises(CheckpointError, match="the model has 1032 words"):
        load_grounding_dino(save(model, tmp_path))


@pytest.mark.slow
def test_the_full_size_network_answers_one_image_on_a_cpu(tmp_path):
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
    folder = save(model, tmp_path)
    started = time.monotonic()
    detector = load_grounding_dino(folder, shortest_edge=480, longest_edge=640)
    (found,) = detector.detect([noise(480, 640)], [PROMPT], keep_floor=0.0)
    assert len(found.scores) + found.degenerate == 900 * len(PROMPT)
    assert time.monotonic() - started < 300
