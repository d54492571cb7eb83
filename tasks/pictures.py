"""Pictures of labels: boxes, masks, names and scores drawn onto an image, for people to look at."""

import colorsys
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks.domain.annotations import Annotation
from tasks.domain.boxes import Box, box_area
from tasks.domain.errors import ImageError
from tasks.domain.masks import DrawnLabel, Mask
from tasks.domain.matching import shared_area
from tasks.formats.rle import decode_segmentation

Colour: TypeAlias = tuple[int, int, int]

# The numbers below were chosen by eye (2026-11-22) on scenes of 160 pixels, photos of 640, and slides with 80 cells.
SHORTEST_SIDE = 400  # pixels; a smaller image is enlarged, so that names fit beside its boxes,
LONGEST_SIDE = 2000  # but not so far that a narrow strip grows without end
FONT_SHARE = 0.024  # of the square root of the picture's area
SMALLEST_FONT = 12  # pixels
LINE_SHARE = 0.004  # of the square root of the picture's area
TEXT_SHARE = 0.5  # of the picture's width; a longer phrase is cut
HIDDEN_TAB = 4.0  # a hidden name weighs as much as so many hidden boxes
LONGEST_NAME = 255  # bytes; ext4, XFS, NTFS and APFS agree on it
HUES = 24  # more cannot be told apart
TINT = 0.45  # of the colour of the phrase in the pixels of a mask
OUTLINE_SHARE = 1 / 12  # of the square root of a mask's area at most, so that small ones are not all outline
SHADE = 0.5  # of black on the inner side of a mask's outline
MOST_HIDDEN = 1.0  # labels, in shares: a name that would hide more is left out where a mask tells by its colour

# Anything else becomes PNG: no browser shows TIFF, GIF has 256 colours, BMP is not compressed.
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def picture_name(key: str) -> str:
    """The path of an image's picture: its key, with `.png` behind it where that is no JPEG, PNG or WebP.

    A name that is too long for a file then loses its end for a digest of the whole.
    """
    path = PurePosixPath(key)
    if path.suffix.lower() in _FORMATS:
        return key
    name = f"{path.name}.png"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        digest = hashlib.sha256(path.name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        start = path.name.encode("utf-8", "surrogatepass")[: LONGEST_NAME - 24].decode("utf-8", "ignore")
        name = f"{start}-{digest}.png"
    return str(path.with_name(name))


def encode_picture(picture: Image.Image, name: str) -> bytes:
    """The bytes of the picture in the format that the suffix of `name`, from `picture_name`, stands for.

    Raises:
        ImageError: The format cannot hold it: WebP ends at 16 383 pixels a side, JPEG at 65 500.
    """
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=_FORMATS[PurePosixPath(name).suffix.lower()], quality=90)
    except (OSError, ValueError) as error:
        raise ImageError(f"has no picture of {picture.width} x {picture.height} pixels: {error}") from error
    return buffer.getvalue()


def draw_annotations(pixels: NDArray[np.uint8], annotations: Sequence[Annotation | DrawnLabel]) -> Image.Image:
    """The image with its labels: masks or else boxes, and at each the phrase and score on a tab in the phrase's colour.

    A mask is tinted and outlined in that colour, in place of the box around it: in a crowd, boxes cross what they are
    about. A small image is enlarged by a whole number, to a shorter side of `SHORTEST_SIDE`. Labels with higher scores
    lie on top and have the first choice of a place. Where labels with masks stand close, the first of a phrase has its
    name, and others only where it hides little.

    Args:
        pixels: (H, W, 3) RGB of the upright image.
        annotations: Their boxes in pixels of that image, their masks of its size.
    """
    height, width = pixels.shape[:2]
    scale = max(1, min(-(-SHORTEST_SIDE // min(height, width)), LONGEST_SIDE // max(height, width)))
    picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    labels = sorted(map(_as_drawn, annotations), key=_best_first)
    line = max(2, round(LINE_SHARE * _extent(picture)))
    boxes = np.array([label.box for label in labels], dtype=np.float64).reshape(-1, 4) * scale  # (N, 4)
    draw, font = ImageDraw.Draw(picture, "RGBA"), _font(picture)
    tabs = _place_tabs(_tabs(labels, font, picture.width), boxes, picture.size)
    for label, box in reversed(list(zip(labels, boxes.tolist(), strict=True))):
        if label.mask is None:
            _draw_box(draw, box, colour_of(label.phrase), line)
        else:
            _draw_mask(picture, label.mask, colour_of(label.phrase), scale, line)
    for tab in reversed(tabs):
        _draw_tab(draw, tab, font)
    return picture


def colour_of(phrase: str) -> Colour:
    """The colour of a phrase (RGB, 0 to 255): a hue by its hash, so the same in every picture of every run."""
    digest = hashlib.sha256(phrase.encode("utf-8", "surrogatepass")).digest()
    lightness = (0.42, 0.58)[digest[4] % 2]
    red, green, blue = colorsys.hls_to_rgb(int.from_bytes(digest[:4], "big") % HUES / HUES, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever has the higher contrast by the relative luminance of WCAG 2.2."""
    linear = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Both contrasts are equal where (L + 0.05) / 0.05 = 1.05 / (L + 0.05).
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _as_drawn(label: Annotation | DrawnLabel) -> DrawnLabel:
    return label if isinstance(label, DrawnLabel) else DrawnLabel(label.phrase, label.box, label.score)


def _best_first(label: DrawnLabel) -> tuple[bool, float, str, Box, str]:
    """The order of labels in a picture; those without a score come last."""
    code = label.mask.counts if label.mask else ""
    return label.score is None, -(label.score or 0.0), label.phrase, label.box, code


def _draw_mask(picture: Image.Image, mask: Mask, colour: Colour, scale: int, line: int) -> None:
    """Tint the pixels of the mask, each `scale` x `scale` large, and draw its outline with a thin shade, all inside it.

    So the outlines of neighbours lie side by side, and two of one colour can be told apart.
    """
    shape, left, top = _shape_of(mask)
    shape = shape.repeat(scale, axis=0).repeat(scale, axis=1)  # (h, w)
    line = max(1, min(line, round(OUTLINE_SHARE * scale * math.sqrt(mask.area))))
    inside = _eroded(shape, line)
    shaded = inside & ~_eroded(inside, max(1, line // 3))
    for part, paint, share in ((inside, colour, TINT), (shaded, (0, 0, 0), SHADE), (shape & ~inside, colour, 1.0)):
        opacity = part.astype(np.uint8) * np.uint8(round(255 * share))
        picture.paste(paint, (left * scale, top * scale), Image.fromarray(opacity))


def _shape_of(mask: Mask) -> tuple[NDArray[np.bool_], int, int]:
    """The mask cut to its pixels (h, w), and where its upper left corner lies: left and top."""
    segmentation = {"size": [mask.height, mask.width], "counts": mask.counts}
    pixels = decode_segmentation(segmentation, mask.height, mask.width)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    shape = np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return shape, int(columns[0]), int(rows[0])


def _eroded(shape: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """The pixels of the shape (h, w) with none outside of it within `by` pixels, straight or diagonally: (h, w)."""
    height, width = shape.shape
    padded = np.pad(shape, by)
    rows = reduce(np.logical_and, (padded[start : start + height] for start in range(2 * by + 1)))  # (h, w + 2 by)
    return reduce(np.logical_and, (rows[:, start : start + width] for start in range(2 * by + 1)))


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, line: int) -> None:
    """The outline of a box inside its edges, with a thin shade on both sides that holds on any background."""
    left, top, right, bottom = box
    # Pillow counts the last pixel in; boxes are half-open.
    outline = (round(left), round(top), max(round(left), round(right) - 1), max(round(top), round(bottom) - 1))
    draw.rectangle(outline, outline=(0, 0, 0, 110), width=line + 1)
    draw.rectangle(outline, outline=colour, width=line)


@dataclass(frozen=True)
class _Tab:
    """A label's text, its size in pixels, where its upper left corner lies, and whether it may be left out."""

    text: str
    colour: Colour
    width: int
    height: int
    optional: bool
    left: int = 0
    top: int = 0


def _tabs(labels: Sequence[DrawnLabel], font: ImageFont.FreeTypeFont, picture_width: int) -> list[_Tab]:
    phrases = [label.phrase for label in labels]
    return [
        _tab(label, font, picture_width, optional=label.mask is not None and phrases.index(label.phrase) < i)
        for i, label in enumerate(labels)
    ]


def _tab(label: DrawnLabel, font: ImageFont.FreeTypeFont, picture_width: int, *, optional: bool) -> _Tab:
    text = _fitting_text(label, font, TEXT_SHARE * picture_width)
    height = sum(font.getmetrics())
    return _Tab(text, colour_of(label.phrase), math.ceil(font.getlength(text)) + height // 2, height, optional)


def _fitting_text(label: DrawnLabel, font: ImageFont.FreeTypeFont, longest: float) -> str:
    """Phrase and score, if there is one, on one line; a phrase longer than `longest` pixels loses its end."""
    # Lone surrogates, which JSON can hold, cannot be drawn.
    phrase = " ".join(label.phrase.split()).encode("utf-8", "replace").decode()
    score = "" if label.score is None else f" {label.score:.2f}"
    text = f"{phrase}{score}"
    while phrase and font.getlength(text) > longest:
        phrase = phrase[:-1].rstrip()
        text = f"{phrase}\N{HORIZONTAL ELLIPSIS}{score}"
    return text


def _place_tabs(tabs: Sequence[_Tab], boxes: NDArray[np.float64], picture: tuple[int, int]) -> list[_Tab]:
    """The tabs, each at the place around its box where it hides least; earlier ones choose first.

    An optional one that would hide more than `MOST_HIDDEN` everywhere is left out.
    """
    placed = np.empty((0, 4))
    result: list[_Tab] = []
    for i, tab in enumerate(tabs):
        places = _places(boxes[i], tab, picture)
        hidden = _hidden(places, placed, np.delete(boxes, i, axis=0))
        if tab.optional and hidden.min() > MOST_HIDDEN:
            continue
        best = places[np.argmin(hidden)]
        placed = np.vstack([placed, best])
        result.append(replace(tab, left=int(best[0]), top=int(best[1])))
    return result


def _places(box: NDArray[np.float64], tab: _Tab, picture: tuple[int, int]) -> NDArray[np.float64]:
    """Where a tab can lie at its box, the best places first, all inside the picture: (8, 4)."""
    left, top, right, bottom = box.round()
    above, below, flush_right = top - tab.height, bottom, right - tab.width
    corners = [(left, above), (flush_right, above), (left, below), (flush_right, below)]
    corners += [(right, top), (left - tab.width, top), (left, top), (flush_right, bottom - tab.height)]
    size = np.array([tab.width, tab.height])
    top_left = np.clip(np.array(corners), 0, np.maximum(np.array(picture) - size, 0))  # (8, 2)
    return np.hstack([top_left, top_left + size])


def _hidden(places: NDArray[np.float64], tabs: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each place (P, 4) would hide of other tabs, which hurts most, and of other boxes, as shares: (P,)."""
    of_tabs = (shared_area(places, tabs) / np.maximum(box_area(tabs), 1.0)).sum(axis=1)
    of_boxes = (shared_area(places, boxes) / np.maximum(box_area(boxes), 1.0)).sum(axis=1)
    return HIDDEN_TAB * of_tabs + of_boxes  # type: ignore[no-any-return]


def _draw_tab(draw: ImageDraw.ImageDraw, tab: _Tab, font: ImageFont.FreeTypeFont) -> None:
    draw.rectangle((tab.left, tab.top, tab.left + tab.width - 1, tab.top + tab.height - 1), fill=tab.colour)
    draw.text((tab.left + tab.height // 4, tab.top), tab.text, fill=_text_colour(tab.colour), font=font, anchor="la")


def _extent(picture: Image.Image) -> float:
    """The side in pixels of a square with the picture's area."""
    return math.sqrt(picture.width * picture.height)


def _font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that no system needs to have one."""
    return ImageFont.load_default(max(SMALLEST_FONT, round(FONT_SHARE * _extent(picture))))  # type: ignore[return-value]
