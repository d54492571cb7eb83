"""The labels artifact: what a detection hands to whoever goes on with its labels."""

import pytest

from tasks.domain.artifacts import ArtifactRef
from tasks.domain.errors import FormatError
from tasks.formats.label_shards import LabelShards, dump_label_shards, load_label_shards

REFS = tuple(ArtifactRef("annotations", digit * 64, "ab" * 32) for digit in "12")


@pytest.mark.parametrize("labels", [LabelShards((), (), 0), LabelShards(REFS, ("a cat", "ü \ud800"), 7)])
def test_labels_come_back_as_they_were(labels):
    assert load_label_shards(dump_label_shards(labels)) == labels


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"shards":[{"key":1}],"categories":[],"images":0}'])
def test_anything_else_is_refused(data):
    with pytest.raises(FormatError, match="not the labels of a run"):
        load_label_shards(data)
