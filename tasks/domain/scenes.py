"""Seeded pictures of coloured shapes with exact boxes and masks: for the demo, and to train the bundled detector.

A seed gives the same bytes on every machine: randomness is drawn as integers from one NumPy generator, shapes are
algebraic or half-plane tests, and no array passes through sin, exp or a sum whose last bit depends on the processor.
Lengths are fractions of the image's shorter side, so a scene looks alike at every size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES: tuple[str, ...] = ("small", "large")

# Chosen by eye on contact sheets (2026-11-22): far apart in hue or lightness, and apart from the greyish backgrounds.
_RGB = {
    "red": (214, 30, 36),
    "orange": (246, 130, 14),
    "yellow": (244, 222, 42),
    "green": (32, 150, 54),
    "blue": (30, 84, 214),
    "purple": (140, 44, 170),
    "white": (246, 246, 246),
    "black": (22, 22, 24),
}
# Diameter as a fraction of the shorter side; between 0.165 and 0.25 lies nothing, so the size is never a guess.
_DIAMETER = {"small": (0.125, 0.165), "large": (0.25, 0.38)}
_MAX_OBJECTS = 12
# An object with less of it in sight than this is not placed: its shape could not be told.
_MIN_VISIBLE = 0.7
_PLACEMENT_TRIES = 12
_SUBSAMPLES = 3  # coverage of a pixel is counted on 3x3 points

_Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape, described by the part of it that is in sight.

    `box` is (x0, y0, x1, y1) in pixels, half-open: the tightest around `mask`, which is (H, W) bool.
    """

    shape: str
    colour: str
    size: str
    box: tuple[float, float, float, float]
    mask: np.ndarray

    @property
    def class_name(self) -> str:
        """The shape alone, e.g. "star"."""
        return self.shape

    @property
    def phrase(self) -> str:
        """Size, colour and shape, e.g. "small red star"."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture, (H, W, 3) uint8 RGB, its objects from back to front, and a sentence that names them."""

    pixels: np.ndarray
    objects: tuple[SceneObject, ...]
    caption: str


@dataclass(frozen=True)
class _Placed:
    """A shape that has its place: its window in the image, and the share of every pixel there that it covers."""

    shape: str
    colour: str
    size: str
    window: tuple[slice, slice]
    coverage: np.ndarray  # (h, w) float32 in [0, 1]
    mask: np.ndarray  # (H, W) bool, visible or not


def draw_scene(seed: int, *, width: int = 160, height: int = 160) -> Scene:
    """The scene of this seed: a textured background with 1 to 12 shapes, lit, blurred and noisy.

    `width` and `height` are in pixels; from about 96 on, small shapes can be told apart.
    """
    rng = np.random.default_rng(seed)
    canvas = _background(rng, height, width)
    _scatter_clutter(rng, canvas)
    placed = _place_objects(rng, height, width)
    for item in placed:
        _paint(rng, canvas, item)
    objects = tuple(_describe(item, visible) for item, visible in zip(placed, _visible_masks(placed), strict=True))
    return Scene(_photograph(rng, canvas), objects, _caption(objects))


# Shapes: is a point inside? x and y are (h, w) float64 in the frame where the shape fits the unit circle; y grows down.


def _half_planes(x: np.ndarray, y: np.ndarray, sides: int, inradius: float) -> np.ndarray:
    """How many of the `sides` half-planes at distance `inradius` from the centre hold each point: (h, w) int."""
    count = np.zeros(x.shape, dtype=np.int64)
    for side in range(sides):
        cos, sin = _direction(side / sides)
        count += x * sin + y * cos <= inradius
    return count


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(x * x + y * y <= 0.9)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(abs(x), abs(y)) <= 0.74)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(_half_planes(x, y, sides=3, inradius=0.5) == 3)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pentagram: the points that at most one of the five lines leaves outside."""
    return np.asarray(_half_planes(x, y, sides=5, inradius=0.33) >= 4)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two discs side by side above the wedge that touches both; the wedge also fills the gap below their centres."""
    side = abs(x)
    discs = (side - 0.45) * (side - 0.45) + (y + 0.3) * (y + 0.3) <= 0.22
    wedge = side * 0.749 + y * 0.6626 <= 0.6096
    return np.asarray(discs | wedge & ((y >= 0.011) | (side <= 0.45) & (y >= -0.3)))


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.asarray((long <= 0.9) & (short <= 0.28))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = x * x + y * y
    return np.asarray((squared <= 0.92) & (squared >= 0.3))


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bite = (x - 0.5) * (x - 0.5) + y * y
    return np.asarray((x * x + y * y <= 0.95) & (bite >= 0.62))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A thin stick: clutter, never an object."""
    return np.asarray((abs(x) <= 1) & (abs(y) <= 0.12))


_INSIDE: dict[str, _Inside] = dict(
    zip(SHAPES, (_circle, _square, _triangle, _star, _heart, _cross, _ring, _moon), strict=True)
)


# Placing


def _place_objects(rng: np.random.Generator, height: int, width: int) -> list[_Placed]:
    """Shapes in drawing order, none of them with less than `_MIN_VISIBLE` in sight once all are drawn."""
    placed: list[_Placed] = []
    for _ in range(int(rng.integers(1, _MAX_OBJECTS + 1))):
        for _ in range(_PLACEMENT_TRIES):
            candidate = _random_object(rng, height, width)
            if _fits(placed, candidate):
                placed.append(candidate)
                break
    return placed


def _random_object(rng: np.random.Generator, height: int, width: int) -> _Placed:
    shape, colour, size = (words[int(rng.integers(len(words)))] for words in (SHAPES, COLOURS, SIZES))
    low, high = _DIAMETER[size]
    radius = _uniform(rng, low, high) * min(height, width) / 2
    centre = (_uniform(rng, radius, width - radius), _uniform(rng, radius, height - radius))
    window, coverage = _cover(_INSIDE[shape], centre, radius, _uniform(rng, 0, 1), height, width)
    mask = np.zeros((height, width), dtype=bool)
    mask[window] = coverage >= 0.5
    return _Placed(shape, colour, size, window, coverage, mask)


def _fits(placed: Sequence[_Placed], candidate: _Placed) -> bool:
    """Whether every shape stays in sight, and the candidate does not melt into one of its own colour."""
    if any(np.any(item.mask & candidate.mask) for item in placed if item.colour == candidate.colour):
        return False
    together = [*placed, candidate]
    return all(
        int(visible.sum()) >= _MIN_VISIBLE * int(item.mask.sum()) > 0
        for item, visible in zip(together, _visible_masks(together), strict=True)
    )


def _visible_masks(placed: Sequence[_Placed]) -> list[np.ndarray]:
    """What of each shape is not behind a later one: (H, W) bool each, in the same order."""
    visible: list[np.ndarray] = []
    hidden: np.ndarray | bool = False
    for item in reversed(placed):
        visible.append(item.mask & np.logical_not(hidden))
        hidden = item.mask | hidden
    return visible[::-1]


def _cover(
    inside: _Inside, centre: tuple[float, float], radius: float, turn: float, height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window (rows, columns) around a shape and how much of each pixel in it the shape covers: (h, w) float32."""
    rows = slice(max(0, math.floor(centre[1] - radius)), min(height, math.ceil(centre[1] + radius) + 1))
    columns = slice(max(0, math.floor(centre[0] - radius)), min(width, math.ceil(centre[0] + radius) + 1))
    cos, sin = _direction(turn)
    dx = (_subpixels(columns) - centre[0])[None, :] / radius
    dy = (_subpixels(rows) - centre[1])[:, None] / radius
    hits = inside(dx * cos + dy * sin, dy * cos - dx * sin)  # (3h, 3w)
    h, w = rows.stop - rows.start, columns.stop - columns.start
    counts = hits.reshape(h, _SUBSAMPLES, w, _SUBSAMPLES).sum(axis=(1, 3))
    return (rows, columns), (counts / _SUBSAMPLES**2).astype(np.float32)


def _subpixels(pixels: slice) -> np.ndarray:
    """The coordinates of `_SUBSAMPLES` points in each pixel of the slice, evenly spaced: (3n,) float64."""
    steps = np.arange((pixels.stop - pixels.start) * _SUBSAMPLES)
    return np.asarray(pixels.start + (steps + 0.5) / _SUBSAMPLES)


def _direction(turn: float) -> tuple[float, float]:
    """Cosine and sine of a share of a full turn, rounded so that every platform's mathematical library agrees."""
    angle = 2 * math.pi * turn
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


# Painting. The canvas is (H, W, 3) float32, 0 to 255.


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two muted colours mixed by a random texture."""
    textures = (_gradient, _patches, _stripes, _checks)
    share = textures[int(rng.integers(len(textures)))](rng, height, width)[..., None]  # (H, W, 1)
    return np.asarray(_muted(rng) * (1 - share) + _muted(rng) * share, dtype=np.float32)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A greyish colour, neither dark nor bright: (3,) float32."""
    return np.asarray(rng.integers(95, 165) + rng.integers(-16, 17, size=3), dtype=np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance along a random direction, from 0 to at most 1: (H, W) float32."""
    cos, sin = _direction(_uniform(rng, 0, 1))
    x = np.arange(width)[None, :] / width - 0.5
    y = np.arange(height)[:, None] / height - 0.5
    return np.asarray(0.5 + (x * cos + y * sin) / math.sqrt(2), dtype=np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _ramp(rng, height, width)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    wave = _ramp(rng, height, width) * np.float32(rng.integers(4, 24)) % 1
    return np.asarray(np.clip(abs(wave - 0.5) * 6 - 1, 0, 1))


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = int(rng.integers(4, 17))
    x, y = np.arange(width) * cells // width, np.arange(height) * cells // height
    return np.asarray((x[None, :] + y[:, None]) % 2, dtype=np.float32)


def _patches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth random patches: a coarse grid of random values, interpolated linearly."""
    cells = int(rng.integers(4, 17))
    grid = rng.integers(0, 256, size=(cells + 1, cells + 1)).astype(np.float32) / 256
    return _stretch(_stretch(grid, height).T, width).T


def _stretch(grid: np.ndarray, length: int) -> np.ndarray:
    """The rows of an (n + 1, m) grid interpolated linearly to `length` rows."""
    place = np.arange(length, dtype=np.float32) * np.float32((len(grid) - 1) / length)
    low = place.astype(np.int64)
    share = (place - low)[:, None]
    return np.asarray(grid[low] * (1 - share) + grid[low + 1] * share)


def _scatter_clutter(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Up to 16 thin muted sticks, lying behind every object."""
    height, width = canvas.shape[:2]
    for _ in range(int(rng.integers(0, 17))):
        radius = _uniform(rng, 0.03, 0.12) * min(height, width)
        centre = (_uniform(rng, 0, width), _uniform(rng, 0, height))
        window, coverage = _cover(_bar, centre, radius, _uniform(rng, 0, 1), height, width)
        _blend(canvas, window, coverage, _muted(rng) + np.float32(rng.integers(-40, 41)))


def _paint(rng: np.random.Generator, canvas: np.ndarray, item: _Placed) -> None:
    """Draw one shape in its colour, slightly off and shaded from one side."""
    colour = np.asarray(_RGB[item.colour], dtype=np.float32) + rng.integers(-10, 11, size=3).astype(np.float32)
    shade = 0.86 + 0.28 * _ramp(rng, *item.coverage.shape)[..., None]
    _blend(canvas, item.window, item.coverage, colour * shade)


def _blend(canvas: np.ndarray, window: tuple[slice, slice], coverage: np.ndarray, colour: np.ndarray) -> None:
    share = coverage[..., None]
    canvas[window] = canvas[window] * (1 - share) + colour * share


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """What a camera makes of the canvas: uneven light, a soft lens, a noisy sensor; (H, W, 3) uint8."""
    light = _uniform(rng, 0.78, 1.0) + _uniform(rng, 0, 0.25) * _ramp(rng, *canvas.shape[:2])[..., None]
    picture = canvas * light.astype(np.float32)
    for _ in range(int(rng.integers(0, 3))):
        picture = _soften(_soften(picture).transpose(1, 0, 2)).transpose(1, 0, 2)
    grain = rng.integers(-128, 128, size=picture.shape) + rng.integers(-128, 128, size=(*picture.shape[:2], 1))
    picture = picture + grain.astype(np.float32) * np.float32(_uniform(rng, 0, 0.08))
    return np.asarray(np.clip(np.rint(picture), 0, 255), dtype=np.uint8)


def _soften(picture: np.ndarray) -> np.ndarray:
    """The picture with every row replaced by a (1, 2, 1)/4 average of itself and its neighbours."""
    padded = np.concatenate([picture[:1], picture, picture[-1:]])
    return np.asarray((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high), from integers: a generator's own floats may differ in the last bit between builds."""
    return low + (high - low) * (int(rng.integers(1 << 24)) / (1 << 24))


# Describing


def _describe(item: _Placed, visible: np.ndarray) -> SceneObject:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return SceneObject(item.shape, item.colour, item.size, box, visible)


def _caption(objects: Sequence[SceneObject]) -> str:
    """Each distinct phrase once, in drawing order: "a small red star, a large blue ring and a large white moon"."""
    phrases = [f"a {phrase}" for phrase in dict.fromkeys(item.phrase for item in objects)]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
