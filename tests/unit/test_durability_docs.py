"""docs/durability.md names a test for every promise: the tests are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/\S+?)::(\w+)`", (ROOT / "docs" / "durability.md").read_text(encoding="utf-8"))))


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_shows_a_promise_is_there(path, name):
    assert name in functions_of(path)


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED if not path.endswith("test_two_runs.py")}))
def test_every_test_of_durability_shows_a_promise(path):
    assert {name for name in functions_of(path) if name.startswith("test_")} == {
        name for at, name in NAMED if at == path
    }
