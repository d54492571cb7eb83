"""Decoding gives the upright RGB pixels of the first frame, or the reason why not."""

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tasks.domain.errors import ImageError
from tasks.image_files import MOST_PIXELS, Probe, decode, probe

# How the upright picture has to be turned for storage so that obeying the EXIF orientation gives it back.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(STORED[orientation](UPRIGHT), kind, exif=exif, **options)


LOSSLESS: dict[str, Callable[[int], bytes]] = {
    "PNG": lambda orientation: turned("PNG", orientation),
    "WebP": lambda orientation: turned("WEBP", orientation, lossless=True),
    "TIFF": lambda orientation: turned("TIFF", orientation),
    "TIFF by libtiff": lambda orientation: turned("TIFF", orientation, compression="tiff_lzw"),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_d12_orientation_is_applied_exactly_once(kind: str, orientation: int) -> None:
    data = LOSSLESS[kind](orientation)
    np.testing.assert_array_equal(decode(data), UPRIGHT)
    assert (probe(data).width, probe(data).height) == (9, 5)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(UPRIGHT, "PNG", exif=exif)), UPRIGHT)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    levels = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert decode(encoded(levels, kind))[0].tolist() == [[level >> 8] * 3 for level in levels[0].tolist()]


def test_16_bit_grey_is_read_in_either_byte_order() -> None:
    levels = np.array([[0, 256, 0xFFFF]], dtype=">u2")
    data = encoded(Image.frombuffer("I;16B", (3, 1), levels.tobytes()), "TIFF")
    assert decode(data)[0, :, 0].tolist() == [0, 1, 255]


def test_alpha_is_dropped_and_the_pixels_below_it_are_kept() -> None:
    alpha = np.linspace(0, 255, UPRIGHT[..., 0].size, dtype=np.uint8).reshape(5, 9, 1)
    np.testing.assert_array_equal(decode(encoded(np.concatenate([UPRIGHT, alpha], axis=2), "PNG")), UPRIGHT)


def test_the_alpha_of_a_palette_is_dropped() -> None:
    palette = Image.fromarray(UPRIGHT).quantize(8)
    data = encoded(palette, "PNG", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(decode(data), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    data = encoded(Image.new(mode, (4, 3), 1), "TIFF")
    for read in (decode, probe):
        with pytest.raises(ImageError, match="convert it to 8 or 16 bits"):
            read(data)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_the_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (16, 8), (250, 0, 0)), Image.new("RGB", (16, 8), (0, 0, 250))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(decode(data).mean(axis=(0, 1)) - (250, 0, 0)).max() < 6  # JPEG and palettes are not exact


def test_a_file_that_pillow_would_hand_to_another_program_is_refused() -> None:
    data = encoded(Image.fromarray(UPRIGHT), "EPS")
    with pytest.raises(ImageError, match="is none of JPEG"):
        decode(data)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(ImageError, match="is empty"):
        probe(b"")


def test_a_reason_is_the_same_every_time() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(ImageError) as caught:
            probe(b"no image at all")
        reasons.add(str(caught.value))
    assert len(reasons) == 1


def test_half_an_image_is_refused_whatever_another_library_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(np.tile(UPRIGHT, (20, 20, 1)), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        probe(data[: len(data) // 2])


def test_more_pixels_than_the_limit_are_refused_whatever_another_library_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = encoded(Image.new("1", (MOST_PIXELS // 8192 + 1, 8192)), "PNG")
    with pytest.raises(ImageError, match="scale it down"):
        probe(data)


def test_the_warnings_of_other_libraries_are_still_heard() -> None:
    probe(encoded(UPRIGHT, "PNG"))
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


def test_images_are_decoded_in_threads_without_a_warning() -> None:
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xaa" * 12  # points nowhere, which Pillow warns of
    data = encoded(UPRIGHT, "JPEG", exif=exif)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: decode(data).shape, range(64))) == {UPRIGHT.shape}


def test_pixels_may_be_written_to() -> None:
    pixels = decode(encoded(UPRIGHT, "PNG"))
    pixels[:] = 0
    assert pixels.flags.c_contiguous


def test_the_digest_is_that_of_the_bytes() -> None:
    data = encoded(UPRIGHT, "PNG")
    assert probe(data).sha256 == hashlib.sha256(data).hexdigest()


SEEDS = [
    encoded(UPRIGHT, "JPEG"),
    turned("JPEG", 6),
    encoded(UPRIGHT, "PNG"),
    encoded(Image.fromarray(UPRIGHT).quantize(8), "PNG", transparency=bytes([0, 128, 255])),
    encoded(UPRIGHT, "BMP"),
    encoded(UPRIGHT, "GIF"),
    encoded(UPRIGHT, "WEBP"),
    encoded(UPRIGHT, "TIFF"),
]
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)


@given(st.sampled_from(SEEDS), edits, st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_whatever_the_bytes_probe_and_decode_agree(data: bytes, edits: list[tuple[float, int]], kept: float) -> None:
    damaged = bytearray(data)
    for place, byte in edits:
        damaged[int(place * len(damaged))] = byte
    cut = bytes(damaged[: max(1, round(len(damaged) * kept))]) if kept < 0.5 else bytes(damaged)
    assert outcome(probe, cut) == outcome(decode, cut)


def outcome(read: Callable[[bytes], Any], data: bytes) -> tuple[int, int] | str:
    try:
        found = read(data)
    except ImageError as error:
        return str(error)
    return (found.width, found.height) if isinstance(found, Probe) else (found.shape[1], found.shape[0])
