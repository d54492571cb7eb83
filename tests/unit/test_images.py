"""Laws of shards, image keys and the image index."""

import string
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import FormatError, SpecError
from tasks.domain.images import (
    LONGEST_SHARD,
    Failure,
    Image,
    ImageIndex,
    folders_at_or_below,
    into_shards,
    is_inner_path,
    is_left_out,
    key_prefixes,
    refuse_nested_roots,
)
from tasks.formats.image_index import read_image_index, write_image_index

keys = st.text(min_size=1, max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(1, 2**31)
image_sets = st.sets(keys, max_size=60).map(lambda names: [Image(name, "0" * 64, 1, 1) for name in sorted(names)])
shard_sizes = st.integers(1, 12)


@given(image_sets, shard_sizes)
def test_every_image_is_in_exactly_one_shard_in_the_order_of_keys(images: list[Image], shard_size: int) -> None:
    shards = into_shards(images, shard_size)
    assert [image for shard in shards for image in shard] == sorted(images)


@given(image_sets, shard_sizes)
def test_no_shard_is_empty_or_longer_than_the_longest(images: list[Image], shard_size: int) -> None:
    assert all(1 <= len(shard) <= LONGEST_SHARD * shard_size for shard in into_shards(images, shard_size))


@given(image_sets, keys, st.integers(4, 12))
def test_a_new_image_touches_one_shard(images: list[Image], key: str, shard_size: int) -> None:
    with_new = sorted({*images, Image(key, "0" * 64, 1, 1)})
    before, after = list(into_shards(images, shard_size)), list(into_shards(with_new, shard_size))
    if max(map(len, (*before, *after)), default=0) < LONGEST_SHARD * shard_size:  # no cut was forced
        assert len(set(before) - set(after)) <= 1
        assert len(set(after) - set(before)) <= 2


def test_shards_have_about_the_size_that_was_asked_for() -> None:
    images = [Image(f"{number:06d}.jpg", "0" * 64, 1, 1) for number in range(20_000)]
    shards = list(into_shards(images, 64))
    # The mean of a geometric length cut at four times its mean is 1 - e**-4 of it; 300 shards scatter by 5 %.
    assert 55 < len(images) / len(shards) < 70


def test_a_shard_that_finds_no_end_is_cut() -> None:
    images = [Image(f"{number:06d}.jpg", "0" * 64, 1, 1) for number in range(20_000)]
    assert max(map(len, into_shards(images, 64))) == LONGEST_SHARD * 64


path_letters = st.text(string.ascii_letters + "./\\: ~#%\0é", max_size=12)


@given(path_letters)
def test_an_inner_path_stays_inside_on_posix_and_on_windows(path: str) -> None:
    if is_inner_path(path):
        for flavour in (PurePosixPath, PureWindowsPath):
            assert not flavour(path).is_absolute()
            assert ".." not in flavour(path).parts


@pytest.mark.parametrize(
    "path", ["a.jpg", "a/b c.jpg", "back\\slash.jpg", "a:b.jpg", "new\nline", "~x", "...", "%2e%2e/x"]
)
def test_names_that_only_look_odd_are_inner_paths(path: str) -> None:
    assert is_inner_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "a\\..\\b", "./a", "C:/a", "C:\\a", "\\\\server\\a", "a\0b"],
)
def test_paths_that_could_leave_a_folder_are_no_inner_paths(path: str) -> None:
    assert not is_inner_path(path)


folders = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)


@given(st.lists(folders, min_size=2, max_size=5))
def test_no_key_prefix_begins_another(roots: list[tuple[str, ...]]) -> None:
    try:
        prefixes = key_prefixes(roots)
    except SpecError:
        return
    assert not [(a, b) for i, a in enumerate(prefixes) for j, b in enumerate(prefixes) if i != j and b.startswith(a)]
    assert all(("/".join(root) + "/").endswith(prefix) for root, prefix in zip(roots, prefixes, strict=True))


@pytest.mark.parametrize(
    ("roots", "prefixes"),
    [
        ([("data", "train")], [""]),
        ([("data", "train"), ("data", "val")], ["train/", "val/"]),
        ([("a", "images"), ("b", "images"), ("c",)], ["a/images/", "b/images/", "c/"]),
        ([("d", "x"), ("a", "y"), ("x", "y")], ["d/x/", "a/y/", "x/y/"]),
    ],
)
def test_key_prefixes_are_as_short_as_they_can_be(roots: list[tuple[str, ...]], prefixes: list[str]) -> None:
    assert key_prefixes(roots) == prefixes


@pytest.mark.parametrize("roots", [[("a",), ("a",)], [("a", "b"), ("a",)], [("x",), ("q", "r", "x", "x"), ("x", "x")]])
def test_roots_that_hold_the_same_images_twice_are_refused(roots: list[tuple[str, ...]]) -> None:
    with pytest.raises(SpecError, match="labelled twice"):
        refuse_nested_roots(["/".join(root) for root in roots], roots)


def test_the_same_place_under_two_names_is_told_by_both_names() -> None:
    with pytest.raises(SpecError, match="image root b is the same folder as a:"):
        refuse_nested_roots(["a", "b"], [("data", "x"), ("data", "x")])


@given(folders, st.lists(folders, max_size=5))
def test_folders_below_a_root_are_told_relative_to_it(root: tuple[str, ...], places: list[tuple[str, ...]]) -> None:
    inside = {"/".join((*root, relative)).rstrip("/") for relative in folders_at_or_below(root, places)}
    below = {"/".join(place) for place in places if ("/".join(place) + "/").startswith("/".join(root) + "/")}
    assert inside == below


@pytest.mark.parametrize("folder", [".git", "a/.cache", "out", "cache", "images_annotated", "auto_label0"])
def test_hidden_and_excluded_folders_and_those_made_by_runs_are_left_out(folder: str) -> None:
    assert is_left_out(folder, frozenset({"", "out"}))


@pytest.mark.parametrize("folder", ["..", "a.b", "outer", "a/out", "a/cache", "auto_label", "images_annotated2"])
def test_other_folders_are_searched(folder: str) -> None:
    assert not is_left_out(folder, frozenset({"", "out"}))


images = st.builds(Image, keys, digests, sizes, sizes)
failures = st.builds(Failure, keys, st.just("index"), st.text())


@given(st.sets(images), st.sets(failures))
def test_an_image_index_survives_its_file(found: set[Image], failed: set[Failure]) -> None:
    index = ImageIndex(tuple(sorted(found)), tuple(sorted(failed)))
    assert read_image_index(write_image_index(index)) == index


@given(st.sets(images), st.sets(failures))
def test_an_image_index_has_one_line_for_each_file(found: set[Image], failed: set[Failure]) -> None:
    index = ImageIndex(tuple(sorted(found)), tuple(sorted(failed)))
    assert write_image_index(index).count(b"\n") == len(found) + len(failed)


def test_the_lines_of_an_image_index_read_as_documented() -> None:
    index = ImageIndex((Image("é/1.jpg", "0" * 64, 640, 480),), (Failure("a\n.jpg", "index", "is empty"),))
    assert write_image_index(index).decode().splitlines() == [
        r'{"image":"a\n.jpg","reason":"is empty","stage":"index"}',
        f'{{"height":480,"image":"é/1.jpg","sha256":"{"0" * 64}","width":640}}',
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{",
        '{"image": "a"}',
        '{"image": 1, "stage": "index", "reason": "x"}',
        f'{{"image": "a", "sha256": "{"0" * 64}", "width": true, "height": 1}}',
        f'{{"image": "a", "sha256": "{"0" * 64}", "width": 0, "height": 1}}',
        '{"image": "a", "sha256": "?", "width": 1, "height": 1}',
    ],
)
def test_a_line_that_is_no_image_and_no_failure_is_named_by_its_number(line: str) -> None:
    good = b'{"image":"a","reason":"x","stage":"index"}\n'
    with pytest.raises(FormatError, match="line 2"):
        read_image_index(good + line.encode() + b"\n" + good)
