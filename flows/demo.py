"""The demo: drawn scenes with known truth, labelled by the same flow as everything else, and compared."""

import json
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image

from flows.spec_files import read_spec
from tasks.domain.scenes import COLOURS, SHAPES, Scene, SceneObject, draw_scene
from tasks.domain.spec import ExperimentSpec
from tasks.formats.scene_truth import dump_scene_truth
from tasks.pictures import encode_picture
from tasks.progress import advance, begin
from tasks.store import Folder

SCENES = "scenes"
IMAGES = f"{SCENES}/images"
PROMPTS = f"{SCENES}/prompts.jsonl"
CLASS_TRUTH = f"{SCENES}/ground_truth.json"
PHRASE_TRUTH = f"{SCENES}/ground_truth_phrases.json"

SIZES = ((160, 160), (192, 160), (160, 192))  # width x height in pixels, in turns: every run meets several sizes
PHRASES = tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES))
ABSENT_PHRASES = 3  # asked about each scene beside those that are there: a detector has to say no, too


def demo_spec(overrides: Sequence[str], *, grounding: bool) -> ExperimentSpec:
    """The demo's spec, with the images where `write_scenes` puts them; the user's overrides go last."""
    results = read_spec("demo", overrides).results_dir.rstrip("/")
    ours = [f"grounding_dino.dataset.image_dir={json.dumps(f'{results}/{IMAGES}')}"]
    if grounding:
        ours += [
            "grounding_dino.dataset.class_names=[]",
            f"grounding_dino.dataset.noun_chunk_path={json.dumps(f'{results}/{PROMPTS}')}",
        ]
    return read_spec("demo", [*ours, *overrides])


def write_scenes(results: Folder, count: int, seed: int) -> None:
    """Draw `count` scenes, the first from `seed`, with their truth: by class, and by colour and shape.

    Writes `scenes/images/*.png`, `scenes/ground_truth.json`, `scenes/ground_truth_phrases.json`, and the prompts of
    grounding mode, `scenes/prompts.jsonl`; scenes of an earlier demo are deleted.
    """
    results.delete_tree(SCENES)
    scenes = list(_drawn(results, range(seed, seed + count)))
    results.write(CLASS_TRUTH, dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))
    results.write(PHRASE_TRUTH, dump_scene_truth(scenes, sorted(PHRASES), colour_and_shape))
    results.write(PROMPTS, b"".join(_prompt(key, scene) for key, scene in scenes))


def colour_and_shape(drawn: SceneObject) -> str:
    """The phrase that grounding mode asks, e.g. "red star"."""
    return f"{drawn.colour} {drawn.shape}"


def _drawn(results: Folder, seeds: Sequence[int]) -> Iterator[tuple[str, Scene]]:
    begin("draw", len(seeds))
    for seed in seeds:
        width, height = SIZES[seed % len(SIZES)]
        scene = draw_scene(seed, width=width, height=height)
        key = f"scene_{seed:05d}.png"
        results.write(f"{IMAGES}/{key}", encode_picture(Image.fromarray(scene.pixels), key))
        yield key, scene
        advance("draw", 1)


def _prompt(key: str, scene: Scene) -> bytes:
    """A line of the prompt file: the phrases of the scene, and some that are not in it but close."""
    there = dict.fromkeys(map(colour_and_shape, scene.objects))
    chunks = [*there, *_absent(scene)]
    line = {"file_name": key, "caption": scene.caption, "noun_chunks": chunks}
    return json.dumps(line).encode() + b"\n"


def _absent(scene: Scene) -> list[str]:
    """Phrases that share a colour or a shape with the scene and are not in it, in an order of the scene's own."""
    there = set(map(colour_and_shape, scene.objects))
    words = {word for phrase in there for word in phrase.split()}
    close = [phrase for phrase in PHRASES if phrase not in there and words & set(phrase.split())]
    order = np.random.default_rng(len(scene.caption)).permutation(len(close))
    return [close[i] for i in order[:ABSENT_PHRASES]]
