"""The table of known defects names every test that stands for one, and no other."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = r"\b(?:D|M|MAL)-\d+b?\b"
ROW = re.compile(rf"^\| ({TAG}) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
DEFECTS = [
    *("M-1", "M-1b", "M-2", "M-3", "M-4", "M-5", "M-6", "M-7"),
    *(f"MAL-{number}" for number in range(1, 23)),
    *(f"D-{number}" for number in range(1, 33)),
]


def tags_of(test: ast.FunctionDef) -> Iterator[str]:
    """The tags in the docstring, and those that the name begins with: `test_m1_m1b_...` has M-1 and M-1b."""
    yield from re.findall(TAG, ast.get_docstring(test) or "")
    for word in takewhile(re.compile(r"[dm]\d+b?").fullmatch, test.name.split("_")[1:]):
        yield f"{word[0].upper()}-{word[1:]}"


def tagged() -> dict[str, set[str]]:
    """The tests of the repository that carry a tag, by tag."""
    found = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for tag in tags_of(node):
                    found[tag].add(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


def rows() -> list[tuple[str, str]]:
    """Every tag of the table, and the cell with its tests."""
    return ROW.findall((ROOT / "docs" / "known_defects.md").read_text(encoding="utf-8"))


TAGGED = tagged()


def test_every_defect_has_a_row_and_every_tag_is_that_of_a_defect():
    assert [tag for tag, _ in rows()] == DEFECTS
    assert set(TAGGED) == set(DEFECTS)


@pytest.mark.parametrize("tag", DEFECTS)
def test_the_tests_of_a_row_are_those_that_carry_its_tag(tag):
    cell = dict(rows())[tag]
    assert sorted(re.findall(r"`(tests/[^`]+)`", cell)) == sorted(TAGGED[tag])
