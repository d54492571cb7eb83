"""The prompt file of grounding mode, as TAO's users have it."""

import json

import pytest

from tasks.domain.annotations import Record
from tasks.domain.errors import FormatError
from tasks.formats.noun_chunks import load_noun_chunks


def line(file_name="a.jpg", caption="a man walks a dog", noun_chunks=("a man", "a dog")):
    return json.dumps({"file_name": file_name, "caption": caption, "noun_chunks": noun_chunks}) + "\n"


def load(*lines):
    return load_noun_chunks("".join(lines).encode(), "chunks.jsonl")


def problems(*lines):
    with pytest.raises(FormatError) as caught:
        load(*lines)
    return str(caught.value).splitlines()


def test_a_line_is_a_record_of_its_image():
    assert load(line("sub/a.jpg")) == {"sub/a.jpg": (Record(0, "a man walks a dog", ("a man", "a dog")),)}


def test_d9_captions_of_one_image_are_records_numbered_in_the_order_of_the_file():
    records = load(line(caption="one"), line("b.jpg"), line(caption="two"))["a.jpg"]
    assert [(record.caption_id, record.caption) for record in records] == [(0, "one"), (1, "two")]


def test_d15_chunks_keep_their_order_and_the_first_of_equals():
    (record,) = load(line(noun_chunks=["the sky", " a dog ", "a man", "a dog"]))["a.jpg"]
    assert record.phrases == ("the sky", "a dog", "a man")


def test_d11_an_empty_caption_is_a_caption():
    assert load(line(caption=""))["a.jpg"][0].caption == ""


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_passed_over():
    data = b"\xef\xbb\xbf" + line().replace("\n", "\r\n\r\n").encode() + b"  \n"
    assert list(load_noun_chunks(data, "chunks.jsonl")) == ["a.jpg"]


def test_two_spellings_of_a_path_are_one_image():
    assert list(load(line("./sub//a.jpg"), line("sub/a.jpg"))) == ["sub/a.jpg"]


@pytest.mark.parametrize("file_name", ["/etc/a.jpg", "../a.jpg", "sub/../../a.jpg", "s3://bucket/a.jpg", "", "."])
def test_a_path_that_leaves_the_image_folder_is_refused(file_name):
    (_, problem) = problems(line(file_name))
    assert problem == (
        f"  line 1: 'file_name' is {file_name!r}, expected a path below the image folder, as in 'sub/img1.jpg'"
    )


def test_every_bad_line_is_told_with_its_number_and_what_was_expected():
    bad = [
        "{}\n",
        "\n",
        '"text"\n',
        "{not json\n",
        line(caption=7),
        line(noun_chunks="a man"),
        line(noun_chunks=["", "x"]),
    ]
    told = problems(line(), *bad)
    assert told[0] == "chunks.jsonl cannot be read:"
    assert told[1] == "  line 2: has no 'noun_chunks', expected a list there"
    assert told[2] == '  line 4: is "text", expected an object in braces'
    assert told[3].startswith("  line 5: is not JSON (")
    assert told[4] == "  line 6: 'caption' is 7, expected a string"
    assert told[5] == "  line 7: 'noun_chunks' is \"a man\", expected a list"
    assert told[6] == "  line 8: 'noun_chunks' holds '', expected strings that are not blank"
    assert len(told) == 7


def test_bytes_that_are_no_utf_8_are_a_bad_line():
    with pytest.raises(FormatError, match="line 2: is not JSON"):
        load_noun_chunks(line().encode() + b'{"file_name": "\xff"}', "chunks.jsonl")


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n \r\n\n"])
def test_a_file_without_a_single_line_is_refused(data):
    with pytest.raises(FormatError, match=r"chunks\.jsonl has no line; expected one for each image"):
        load_noun_chunks(data, "chunks.jsonl")


def test_a_file_of_another_kind_is_told_in_a_few_lines():
    told = problems(*["{}\n"] * 1000)
    assert (len(told), told[-1]) == (22, "  and 980 more bad lines")
