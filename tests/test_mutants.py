"""Test that the list of mutants matches the current package and tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutants import MUTANTS, PACKAGE, ROOT, Mutant


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_mutant_applies(file: str) -> None:
    source = (ROOT / PACKAGE / file).read_text(encoding="utf-8")
    before = ast.dump(ast.parse(source))
    for mutant in MUTANTS:
        if mutant.file == file:
            assert ast.dump(ast.parse(mutant.applied(source))) != before, mutant.name


@pytest.mark.parametrize("file", sorted({mutant.test.partition("::")[0] for mutant in MUTANTS}))
def test_every_named_test_exists(file: str) -> None:
    named = {mutant.test.partition("::")[2] for mutant in MUTANTS if mutant.test.startswith(f"{file}::")}
    assert named - names_in(ROOT / "tests" / file) == set()


def test_the_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("source", ["", "one = 1\none = 1\n"])
def test_text_that_is_missing_or_repeated_is_an_error(source: str) -> None:
    mutant = Mutant("counts wrong", "_x.py", "one = 1", "one = 2", "test_x.py::test_x")
    with pytest.raises(ValueError, match="not once"):
        mutant.applied(source)


def names_in(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file, as in the part of a pytest id after the file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    classes = [(f"{each.name}::", each.body) for each in body if isinstance(each, ast.ClassDef)]
    return frozenset(
        f"{prefix}{each.name}"
        for prefix, nodes in [("", body), *classes]
        for each in nodes
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    )
