"""What is made from the spec's model: the schema and the page."""

import json
from pathlib import Path

import jsonschema
import pytest

from flows import spec_docs
from tasks.domain.spec import ExperimentSpec
from tasks.domain.spec_fields import SpecBlock, blocks_in, is_unused


def read_keys(block: type[SpecBlock]) -> list[str]:
    """The keys of the block, and of those in it, that something here reads."""
    keys = []
    for name, field in block.model_fields.items():
        keys += [name] if not is_unused(field) and not blocks_in(field.annotation) else []
        keys += [key for inner in blocks_in(field.annotation) for key in read_keys(inner)]
    return keys


def described(block: type[SpecBlock]) -> bool:
    used = [field for field in block.model_fields.values() if not is_unused(field)]
    inner = [part for field in used for part in blocks_in(field.annotation)]
    return all(field.description or blocks_in(field.annotation) for field in used) and all(map(described, inner))


def test_the_schema_in_the_repository_is_that_of_the_model() -> None:
    assert spec_docs.SCHEMA_FILE.read_text(encoding="utf-8") == spec_docs.spec_schema()


def test_the_page_in_the_repository_is_that_of_the_model() -> None:
    assert spec_docs.PAGE_FILE.read_text(encoding="utf-8") == spec_docs.spec_page()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(spec_docs.spec_schema()))


def test_every_key_that_is_read_says_what_it_means() -> None:
    assert described(ExperimentSpec)


def test_the_page_has_a_row_for_every_key() -> None:
    page = spec_docs.spec_page()
    assert [key for key in read_keys(ExperimentSpec) if f"\n| `{key}` | " not in page] == []


def test_every_row_of_a_table_has_the_cells_of_its_head() -> None:
    widths: list[int] = []
    for line in spec_docs.spec_page().splitlines():
        if line.startswith("| key"):
            widths = [line.count("|")]
        elif line.startswith("|"):
            widths.append(line.count("|"))
        assert len(set(widths)) <= 1, line


@pytest.fixture
def _files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_docs, "SCHEMA_FILE", tmp_path / "schema.json")
    monkeypatch.setattr(spec_docs, "PAGE_FILE", tmp_path / "spec.md")


@pytest.mark.usefixtures("_files_elsewhere")
def test_a_check_fails_until_the_files_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert [spec_docs.main(["--check"]), spec_docs.main([]), spec_docs.main(["--check"])] == [1, 0, 0]
    assert capsys.readouterr().out.count("is stale") == 2
