"""Images from a bucket of a real S3 server, behind a proxy that breaks what it is told to break."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from flows.auto_label import auto_label
from tasks.domain.errors import SpecError
from tasks.domain.spec import validate_spec
from tasks.image_files import FetchError, ImageSource
from tasks.storage.folder import Folder

CAT = (10, 10, 60, 50)
BYTES = bytes(range(256)) * 100


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes any time."""
    made: list[float] = []
    monkeypatch.setattr("tasks.storage.retrying.sleep", made.append)
    return made


def put(s3: Any, *keys: str, data: bytes = b"content") -> None:
    for key in keys:
        Folder(s3.uri, s3.storage_options).write(key, data)
    s3.faults.clear()


def source_of(s3: Any, folder: str = "/images", **options: object) -> ImageSource:
    return ImageSource((f"{s3.uri}{folder}",), {**s3.storage_options, **options})


def read_from(s3: Any) -> list[str]:
    """The keys of the images that the server was asked for, in order."""
    paths = [request.removeprefix("GET ") for request in s3.faults.asked if request.startswith("GET ")]
    keys = [unquote(path.partition("?")[0]).partition("/images/")[2] for path in paths]
    return sorted(key for key in keys if re.search(r"\.png$", key))


def test_objects_of_awkward_names_are_listed_and_read(s3: Any) -> None:
    names = [
        "a b.png",
        "100%.png",
        "%41.png",
        "what?.png",
        "a#1.png",
        "日本 é.png",
        "a+b&c=d;.png",
        "f #2?/%20.png",
        "[x]*.png",
    ]
    for name in names:
        put(s3, f"images/{name}", data=name.encode())
    source = source_of(s3)
    keys = [file.key for file in source.list_images()]
    assert keys == sorted(names)
    assert list(source.read_ahead(keys, workers=4)) == [(name, name.encode()) for name in keys]


def test_a_bucket_is_listed_page_by_page_and_in_order(s3: Any) -> None:
    import s3fs

    names = [f"{number % 7}/{number:04}.png" for number in range(1100)]  # a page has a thousand
    s3fs.S3FileSystem(**s3.storage_options).pipe({f"{s3.bucket}/images/{name}": b"" for name in names})
    s3.faults.clear()
    assert [file.key for file in source_of(s3).list_images()] == sorted(names)
    assert len([request for request in s3.faults.asked if "list-type=2" in request]) == 2


def test_hidden_folders_and_those_of_earlier_runs_are_not_searched(s3: Any) -> None:
    put(s3, "images/1.png", "images/.cache/2.png", "images/out/images_annotated/3.png", "images2/4.png")
    source = ImageSource((f"{s3.uri}/images",), s3.storage_options, (f"{s3.uri}/images/out",))
    assert [file.key for file in source.list_images()] == ["1.png"]


def test_the_version_of_an_object_stays_until_it_changes(s3: Any) -> None:
    put(s3, "images/1.png", "images/2.png")
    before = {file.key: file.version for file in source_of(s3).list_images()}
    put(s3, "images/1.png", data=b"CONTENT")
    after = {file.key: file.version for file in source_of(s3).list_images()}
    assert None not in before.values()
    assert (after["1.png"] != before["1.png"], after["2.png"] == before["2.png"]) == (True, True)


def test_a_named_object_has_the_version_of_a_listed_one(s3: Any) -> None:
    put(s3, "images/a/1.png", "images/2.png")
    source = source_of(s3)
    assert source.list_named(["a/1.png", "2.png"]) == list(source.list_images())
    assert [file.reason for file in source.list_named(["a/2.png"])] == ["is not there"]


def test_an_image_costs_one_request(s3: Any) -> None:
    put(s3, "images/1.png")
    source_of(s3).read("1.png")
    assert [request.partition("?")[0] for request in s3.faults.asked] == [f"GET /{s3.bucket}/images/1.png"]


@pytest.mark.parametrize(
    "faults",
    [
        ["internal error"],
        ["slow down", "bad gateway", "too many requests"],
        ["download cut"] * 3,
        ["answer cut"],
        ["slow"],
    ],
    ids=repr,
)
def test_an_object_comes_whole_after_faults_that_pass(s3: Any, pauses: list[float], faults: Sequence[str]) -> None:
    put(s3, "images/1.png", data=BYTES)
    for fault in faults:
        s3.faults.plan(fault, at="1.png")
    assert source_of(s3).read("1.png") == BYTES
    assert len(s3.faults.struck) == len(faults)


def test_what_may_not_be_read_is_told_at_once(s3: Any, pauses: list[float]) -> None:
    put(s3, "images/1.png")
    s3.faults.plan("access denied", at="1.png")
    with pytest.raises(FetchError, match=r"cannot be read: .*check the permissions"):
        source_of(s3).read("1.png")
    assert (len(s3.faults.struck), pauses) == (1, [])


def test_an_object_that_is_gone_is_told_at_once(s3: Any, pauses: list[float]) -> None:
    with pytest.raises(FetchError, match="is not there"):
        source_of(s3).read("1.png")
    assert pauses == []


def test_a_listing_goes_on_after_faults_that_pass(s3: Any, pauses: list[float]) -> None:
    put(s3, "images/1.png")
    for fault in ("slow down", "download cut", "answer cut"):
        s3.faults.plan(fault, at="list-type=2")
    assert [file.key for file in source_of(s3).list_images()] == ["1.png"]


def test_no_message_has_a_secret_in_it(s3: Any, pauses: list[float]) -> None:
    put(s3, "images/1.png")
    s3.faults.plan("access denied", times=2)
    told = []
    for use in (lambda: next(source_of(s3).list_images()), lambda: source_of(s3).read("1.png")):
        with pytest.raises((SpecError, FetchError)) as caught:
            use()
        told.append(str(caught.value))
    with pytest.raises(SpecError, match="cannot be listed") as caught:
        next(source_of(s3, secret="hunter2hunter2").list_images())  # noqa: S106 - wrong on purpose
    told += [str(caught.value), repr(source_of(s3)), repr(source_of(s3).addresses)]
    assert [s3.secret in text or s3.key in text or "hunter2" in text for text in told] == [False] * 5


def test_a_bucket_that_is_not_there_is_an_error_of_the_spec(s3: Any) -> None:
    with pytest.raises(SpecError, match=r"nowhere/images cannot be listed: .*check image_dir"):
        next(ImageSource(("s3://nowhere/images",), s3.storage_options).list_images())


# Whole runs


def label(image_dir: str, results: Path, **storage_options: object) -> Any:
    spec = {
        "autolabel_type": "grounding_dino",
        "results_dir": str(results),
        "storage_options": storage_options,
        "grounding_dino": {
            "checkpoint": "fake",
            "visualize": False,
            "iteration_scheduler": [{"conf_threshold": 0.5}, {"conf_threshold": 0.3}],
            "dataset": {"image_dir": image_dir, "class_names": ["cat"]},
        },
    }
    return auto_label(validate_spec(spec)).images


@pytest.fixture
def folder(tmp_path: Path, s3: Any, paint_picture: Callable[..., Path]) -> Path:
    """A folder with seven pictures, which are in the bucket, too."""
    for number, name in enumerate([*(f"{number:02}.png" for number in range(6)), "sub folder/#1 100%.png"]):
        path = paint_picture(tmp_path / "images" / name, [("cat", 0.4 + 0.1 * (number % 5), CAT)] if number else [])
        put(s3, f"images/{name}", data=path.read_bytes())
    return tmp_path / "images"


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_a_run_on_a_bucket_leaves_the_bytes_of_a_run_over_the_folder(folder: Path, s3: Any, tmp_path: Path) -> None:
    label(str(folder), tmp_path / "local")
    label(f"{s3.uri}/images", tmp_path / "remote", **s3.storage_options)
    assert (tmp_path / "remote/annotations.json").read_bytes() == (tmp_path / "local/annotations.json").read_bytes()
    s3.faults.clear()
    label(f"{s3.uri}/images", tmp_path / "remote", **s3.storage_options)
    assert read_from(s3) == []


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_every_image_ends_in_one_state_and_the_next_run_labels_exactly_the_missing(
    folder: Path, s3: Any, tmp_path: Path, pauses: list[float]
) -> None:
    label(str(folder), tmp_path / "expected")
    results = tmp_path / "results"
    s3.faults.plan("internal error", times=2, at="00.png")
    s3.faults.plan("download cut", times=2, at="03.png")
    s3.faults.plan("access denied", times=9, at="01.png")
    s3.faults.plan("slow down", times=99, at="02.png")
    first = label(f"{s3.uri}/images", results, **s3.storage_options)
    failures = [json.loads(line) for line in (results / "failures.jsonl").read_text().splitlines()]
    assert [failure["image"] for failure in failures] == ["01.png", "02.png"]
    assert all(failure["reason"] for failure in failures)
    assert (first.labelled + first.empty, first.failed) == (5, 2)
    s3.faults.clear()
    again = label(f"{s3.uri}/images", results, **s3.storage_options)
    assert (again.failed, set(read_from(s3))) == (0, {"01.png", "02.png"})
    assert (results / "annotations.json").read_bytes() == (tmp_path / "expected/annotations.json").read_bytes()
    texts = "".join(path.read_text() for path in results.rglob("*.json*"))
    assert (s3.secret in texts, s3.key in texts) == (False, False)


@pytest.mark.prefect
@pytest.mark.usefixtures("server")
def test_a_run_over_a_bad_line_leaves_the_same_bytes(
    folder: Path, s3: Any, tmp_path: Path, pauses: list[float]
) -> None:
    label(str(folder), tmp_path / "expected")
    s3.faults.mix(seed=7, share=0.3)
    label(f"{s3.uri}/images", tmp_path / "results", **s3.storage_options)
    expected = (tmp_path / "expected/annotations.json").read_bytes()
    assert (len(s3.faults.struck) > 0, (tmp_path / "results/annotations.json").read_bytes()) == (True, expected)
