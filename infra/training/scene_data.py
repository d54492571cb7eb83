"""Scenes as training batches: drawn once into memory-mapped arrays, mirrored at random whenever they are used."""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tasks.domain.scenes import COLOURS, SHAPES, SIZES, Scene, draw_scene

MAX_OBJECTS = 12
# Seeds below 10 000 belong to the demo and to tests, 500 000 and up to validation; training never sees either.
TRAINING_SEED = 1_000_000
VALIDATION_SEED = 500_000
TEST_SEED = 0
_EMPTY_SHARE = 0.03


@dataclass(frozen=True)
class SceneSet:
    """Scenes of one size.

    `pixels` is (N, H, W, 3) uint8, `boxes` (N, 12, 4) float32 xyxy pixels, `attributes` (N, 12, 3) int64 indices into
    SHAPES, COLOURS, SIZES; rows past an image's last object hold attribute -1.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    attributes: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Sample:
    """One image for training: pixels (H, W, 3) uint8, boxes (n, 4) xyxy pixels, attributes (n, 3) indices."""

    pixels: np.ndarray
    boxes: np.ndarray
    attributes: np.ndarray


def attributes_of(scene: Scene) -> np.ndarray:
    """(n, 3) int64 indices of every object's shape, colour and size."""
    rows = [(SHAPES.index(o.shape), COLOURS.index(o.colour), SIZES.index(o.size)) for o in scene.objects]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 3)


def sample_of(scene: Scene) -> Sample:
    """What training needs of a scene."""
    boxes = np.asarray([o.box for o in scene.objects], dtype=np.float32).reshape(-1, 4)
    return Sample(scene.pixels, boxes, attributes_of(scene))


def load_or_draw(folder: Path, first_seed: int, count: int, *, width: int, height: int, workers: int) -> SceneSet:
    """Scenes of seeds `first_seed` to `first_seed + count - 1`, from `folder` if they were drawn before."""
    stem = folder / f"scenes_{width}x{height}_{first_seed}_{count}"
    if not stem.with_suffix(".npz").exists():
        _draw_all(stem, first_seed, count, width, height, workers)
    pixels = np.memmap(stem.with_suffix(".raw"), np.uint8, "r", shape=(count, height, width, 3))
    with np.load(stem.with_suffix(".npz")) as arrays:
        return SceneSet(pixels, arrays["boxes"], arrays["attributes"])


def _draw_all(stem: Path, first_seed: int, count: int, width: int, height: int, workers: int) -> None:
    """Write the pixels first and the labels last: their file says that the pixels are complete."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.memmap(stem.with_suffix(".raw"), np.uint8, "w+", shape=(count, height, width, 3))
    boxes = np.zeros((count, MAX_OBJECTS, 4), dtype=np.float32)
    attributes = np.full((count, MAX_OBJECTS, 3), -1, dtype=np.int64)
    tasks = [(first_seed + index, width, height) for index in range(count)]
    with get_context("spawn").Pool(workers) as pool:
        for index, sample in enumerate(pool.imap(_draw_sample, tasks, chunksize=64)):
            pixels[index] = sample.pixels
            boxes[index, : len(sample.boxes)] = sample.boxes
            attributes[index, : len(sample.boxes)] = sample.attributes
    pixels.flush()
    np.savez(stem.with_suffix(".npz"), boxes=boxes, attributes=attributes)


def _draw_sample(task: tuple[int, int, int]) -> Sample:
    seed, width, height = task
    return sample_of(draw_scene(seed, width=width, height=height))


def batches(sets: list[SceneSet], batch_size: int, rng: np.random.Generator) -> Iterator[list[Sample]]:
    """Endless random batches; the images of one batch have the same size."""
    shares = np.asarray([len(scenes) for scenes in sets]) / sum(len(scenes) for scenes in sets)
    while True:
        scenes = sets[int(rng.choice(len(sets), p=shares))]
        transpose = bool(rng.integers(2))
        samples = [_augmented(scenes, int(i), transpose, rng) for i in rng.integers(len(scenes), size=batch_size)]
        yield [_emptied(sample, rng) if rng.random() < _EMPTY_SHARE else sample for sample in samples]


def _emptied(sample: Sample, rng: np.random.Generator) -> Sample:
    """An image of the same size that shows nothing: one flat colour, with or without strong noise."""
    colour = rng.integers(0, 256, size=3) if rng.random() < 0.5 else np.repeat(rng.choice([0, 255, 128]), 3)
    noise = rng.integers(-128, 128, size=sample.pixels.shape) * rng.choice([0, 0.1, 1])
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
    return Sample(pixels, np.zeros((0, 4), dtype=np.float32), np.zeros((0, 3), dtype=np.int64))


def _augmented(scenes: SceneSet, index: int, transpose: bool, rng: np.random.Generator) -> Sample:
    """The scene mirrored at random; none of the shapes, colours or sizes depends on the direction."""
    kept = scenes.attributes[index, :, 0] >= 0
    pixels, boxes = np.asarray(scenes.pixels[index]), scenes.boxes[index][kept]
    if transpose:
        pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    height, width = pixels.shape[:2]
    if rng.integers(2):
        pixels, boxes = (
            pixels[:, ::-1],
            np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
        )
    if rng.integers(2):
        pixels, boxes = (
            pixels[::-1],
            np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1),
        )
    return Sample(np.ascontiguousarray(pixels), boxes, scenes.attributes[index][kept])
