"""The demo: drawn scenes with known truth, labelled by the same flow as everything else, and compared."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from PIL import Image

from flows.spec_files import read_spec
from tasks.domain.addresses import without_password
from tasks.domain.errors import FormatError, SpecError
from tasks.domain.scenes import COLOURS, SHAPES, Scene, SceneObject, draw_scene
from tasks.domain.spec import ExperimentSpec
from tasks.formats.noun_chunks import load_noun_chunks
from tasks.formats.scene_truth import dump_scene_truth
from tasks.pictures import encode_picture
from tasks.progress import advance, begin
from tasks.storage.folder import Folder, MissingFileError

SCENES = "scenes"
IMAGES = f"{SCENES}/images"
PROMPTS = f"{SCENES}/prompts.jsonl"
CLASS_TRUTH = f"{SCENES}/ground_truth.json"
PHRASE_TRUTH = f"{SCENES}/ground_truth_phrases.json"
FILES = (PROMPTS, CLASS_TRUTH, PHRASE_TRUTH)

PICTURE = re.compile(r"scene_\d{5,}\.png")  # the digits are the seed

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
    grounding mode, `scenes/prompts.jsonl`. The pictures of an earlier demo are deleted. Raises SpecError when there is
    anything else in `scenes/`, before a file is touched.
    """
    earlier = _earlier_pictures(results)
    scenes = list(_drawn(range(seed, seed + count)))
    for key in earlier:
        results.delete_tree(f"{IMAGES}/{key}")
    # The pictures come last: a demo that is interrupted has told which pictures are its own.
    results.write(PROMPTS, b"".join(_prompt(key, scene) for key, scene in scenes))
    results.write(CLASS_TRUTH, dump_scene_truth(scenes, SHAPES, lambda drawn: drawn.class_name))
    results.write(PHRASE_TRUTH, dump_scene_truth(scenes, sorted(PHRASES), colour_and_shape))
    for key, scene in scenes:
        results.write(f"{IMAGES}/{key}", encode_picture(Image.fromarray(scene.pixels), key))


def _earlier_pictures(results: Folder) -> list[str]:
    """The names of the pictures of an earlier demo; raises SpecError for what no demo has written."""
    names = results.names(SCENES)
    if not names:
        return []
    pictures = results.names(IMAGES)
    drawn = _drawn_earlier(results)
    expected = {IMAGES, *(f"{IMAGES}/{key}" for key in drawn), *(FILES if drawn else ())}
    there = [f"{SCENES}/{name}" for name in names] + [f"{IMAGES}/{name}" for name in pictures]
    missing = [path for path in (CLASS_TRUTH, PROMPTS) if path not in there]
    foreign = [path for path in there if path not in expected]
    if missing or foreign:
        found = f"lacks {missing[0]}" if missing else f"holds {foreign[0]}, which no demo has written"
        raise SpecError(
            f"{without_password(results.uri)} {found}: its folder {SCENES} is not one of an earlier demo, whose "
            f"pictures could be drawn anew; set another results_dir, or move {SCENES} away"
        )
    return pictures


def _drawn_earlier(results: Folder) -> list[str]:
    """The pictures that the prompt file of an earlier demo names; none where another file has its name."""
    try:
        keys = list(load_noun_chunks(results.read(PROMPTS), PROMPTS))
    except (MissingFileError, FormatError):
        return []
    return keys if all(map(PICTURE.fullmatch, keys)) else []


def colour_and_shape(drawn: SceneObject) -> str:
    """The phrase that grounding mode asks, e.g. "red star"."""
    return f"{drawn.colour} {drawn.shape}"


def _drawn(seeds: Sequence[int]) -> Iterator[tuple[str, Scene]]:
    begin("draw", len(seeds))
    for seed in seeds:
        width, height = SIZES[seed % len(SIZES)]
        yield f"scene_{seed:05d}.png", draw_scene(seed, width=width, height=height)
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
