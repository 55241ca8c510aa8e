"""What is published: the version, the page on a package index, and the files that a repository needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from cortecs_async import __version__

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def description() -> str:
    """Return the page on a package index, as hatch-fancy-pypi-readme makes it."""
    settings = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    page, end = settings["fragments"]
    text: str = (ROOT / page["path"]).read_text().partition(page["end-before"])[0] + end["text"]
    for each in settings["substitutions"]:
        text, number = re.subn(each["pattern"], each["replacement"], text)
        assert number, f"matches nothing: {each['pattern']}"
    return text


def test_the_page_on_an_index_has_no_link_that_leads_nowhere_there() -> None:
    assert re.findall(r"\]\((?!https://)[^)]*\)", description()) == []


def test_the_page_on_an_index_installs_from_the_index() -> None:
    assert re.findall(r"pip install '(.*?)'", description()) == [
        "cortecs-async[demo]",
        "cortecs-async[cli,openai]",
    ]
    assert "checkout" not in description()


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


def test_the_pages_name_the_versions_of_python_that_are_tested() -> None:
    declared = [each.rpartition(" ")[2] for each in PYPROJECT["project"]["classifiers"] if ":: 3." in each]
    (row,) = re.findall(r"^\| Python \| (.*) \|$", (ROOT / "docs/installation.md").read_text(), re.MULTILINE)
    assert row == f"{declared[0]} or later (tested: {declared[0]} to {declared[-1]})"
    for page in ("README.md", "docs/quickstart.md"):
        assert f"Python {row}" in " ".join((ROOT / page).read_text().split())
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert f"python: {declared}".replace("'", '"') in workflow


def test_the_pages_in_the_repository_install_from_the_checkout() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert [page.name for page in pages if "cortecs-async[" in page.read_text()] == []


def test_the_workflow_runs_sessions_that_exist() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    for named in re.findall(r"nox -s (.*)", workflow):
        assert set(named.split()) <= sessions
    for file in re.findall(r"(?:python -P |run: )([.\w]+/[\w./]+)", workflow):
        assert (ROOT / file).is_file(), file
