"""status.json, failures.jsonl and labelmap.json: the small files of a run."""

from datetime import datetime

import pytest

from tasks.domain.errors import FormatError
from tasks.domain.images import Failure
from tasks.formats.failures import dump_failures, load_failures
from tasks.formats.labelmap import dump_labelmap, load_labelmap
from tasks.formats.status import Status, status_line


def test_a_status_line_reads_as_tao_writes_it():
    line = status_line(Status.STARTED, "Starting Data-services Auto-label.", datetime(2026, 3, 7, 9, 5, 2))  # noqa: DTZ001
    assert line == (
        b'{"date":"3/7/2026","time":"9:5:2","status":"STARTED","verbosity":"INFO",'
        b'"message":"Starting Data-services Auto-label."}\n'
    )


def test_failures_are_sorted_lines():
    failures = [Failure("b.jpg", "index", "empty file"), Failure("a.jpg", "infer", "gone")]
    assert dump_failures(failures) == (
        b'{"image":"a.jpg","stage":"infer","reason":"gone"}\n{"image":"b.jpg","stage":"index","reason":"empty file"}\n'
    )


def test_failures_come_back():
    failures = (Failure("Größe\udcff.jpg", "index", 'says "no"\n'), Failure("b.jpg", "infer", ""))
    assert load_failures(dump_failures(failures)) == tuple(sorted(failures))


def test_no_failure_makes_an_empty_file():
    assert (dump_failures([]), load_failures(b"")) == (b"", ())


def test_a_line_that_is_no_failure_is_told_with_its_number():
    with pytest.raises(FormatError, match="line 1: has no 'stage', expected a string there"):
        load_failures(b'{"image": "a.jpg"}')


def test_a_label_map_counts_from_zero():
    assert dump_labelmap(["person", "traffic light"]) == b'{\n "0": "person",\n "1": "traffic light"\n}\n'


def test_a_label_map_comes_back_in_the_order_of_its_labels():
    names = tuple(f"class {i}" for i in range(12))
    assert load_labelmap(dump_labelmap(names)) == names


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": "person"}', b'{"1": "person"}', b'{"0": 1}'])
def test_what_is_no_label_map_is_refused(data):
    with pytest.raises(FormatError, match="a label map"):
        load_labelmap(data)
