"""The same images and spec give the same bytes, whatever the hash seed, the batches, the shards and the threads."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tasks.domain.scenes import draw_scene

pytestmark = pytest.mark.prefect

DELIVERED = ("annotations.json", "final_annotation.jsonl")
SIZES = ((200, 150), (150, 200), (300, 150), (160, 160), (97, 211))
NAMES = ("woman", "man", "fire truck", "truck")
CORNERS = ((5, 5), (50, 10), (8, 60), (52, 80))

# (PYTHONHASHSEED, batch_size, shard_size, num_workers); the first is what the others are compared with.
PLACES = (("0", 1, 64, 1), ("1", 4, 1, 0), ("4711", 5, 3, 8))

BUNDLED = Path(__file__).parents[2] / "tasks" / "models" / "bundled" / "grounding_dino_scenes"
MODES = {
    "detection": [f"grounding_dino.dataset.class_names={json.dumps(NAMES)}"],
    "grounding": ["grounding_dino.dataset.noun_chunk_path=prompts.jsonl"],
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory, paint_picture) -> Path:
    """Twelve pictures of five sizes with objects of many scores, and one or two captions for each."""
    folder = tmp_path_factory.mktemp("painted")
    prompts = []
    for i in range(12):
        key = f"{'ab'[i % 2]}/{i}.png"
        objects = [
            (name, (40 + (i * 37 + k * 53) % 200) / 255, (x, y, x + 30, y + 15))
            for k, (name, (x, y)) in enumerate(zip(NAMES, CORNERS, strict=True))
        ]
        paint_picture(folder / "images" / key, objects[: 1 + i % 4], SIZES[i % len(SIZES)])
        captions = [("a woman and a man", NAMES[:2]), ("two trucks", NAMES[:1:-1])][: 1 + i % 2]
        prompts += [{"file_name": key, "caption": text, "noun_chunks": chunks} for text, chunks in captions]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return folder


@pytest.fixture
def deliver(autolabel):
    """Runs a spec at a place with a cache of its own: the bytes that are delivered."""

    def delivered(folder: Path, keys: list[str], place: tuple[str, int, int, int]) -> dict[str, bytes]:
        seed, batch_size, shard_size, workers = place
        results = folder / f"results {'-'.join(map(str, place))}"
        shutil.rmtree(results, ignore_errors=True)
        (folder / "spec.yaml").write_text("autolabel_type: grounding_dino\n")
        where = [f"batch_size={batch_size}", f"shard_size={shard_size}", f"num_workers={workers}"]
        dataset = [f"results_dir={results.name}", "grounding_dino.dataset.image_dir=images"]
        arguments = ["-e", "spec.yaml", *dataset, *where, "grounding_dino.visualize=false", *keys]
        done = autolabel("generate", *arguments, cwd=folder, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        return {name: (results / name).read_bytes() for name in DELIVERED}

    return delivered


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_hash_seed_batches_shards_and_threads_change_no_byte(mode, painted, deliver):
    thresholds = "[{conf_threshold: 0.7}, {conf_threshold: 0.5}, {conf_threshold: 0.3}]"
    keys = ["grounding_dino.checkpoint=fake", f"grounding_dino.iteration_scheduler={thresholds}", *MODES[mode]]
    first, *others = [deliver(painted, keys, place) for place in PLACES]
    assert len(json.loads(first["annotations.json"])["annotations"]) > 10
    assert [other == first for other in others] == [True, True]


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLED / "model.safetensors").exists(), reason="no detector is bundled with this checkout")
def test_batches_and_shards_change_no_byte_of_what_a_real_detector_finds(tmp_path, deliver):
    # A copy: the digest of the checkpoint is in every key, and it must be one for both runs.
    shutil.copytree(BUNDLED, tmp_path / "checkpoint")
    (tmp_path / "images").mkdir()
    for seed, (width, height) in enumerate([(160, 160), (192, 160), (160, 192), (160, 160)]):
        pixels = draw_scene(seed, width=width, height=height).pixels
        Image.fromarray(pixels).save(tmp_path / "images" / f"{seed}.png")
    keys = [
        "grounding_dino.checkpoint=checkpoint",
        "grounding_dino.dataset.class_names=[circle, square, star, ring]",
        "grounding_dino.iteration_scheduler=[{conf_threshold: 0.4}, {conf_threshold: 0.1}]",
    ]
    alone = deliver(tmp_path, keys, ("0", 1, 64, 1))
    assert json.loads(alone["annotations.json"])["annotations"]
    assert deliver(tmp_path, keys, ("1", 4, 2, 4)) == alone
