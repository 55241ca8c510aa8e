"""Every Python example of the README and of the pages in docs/ runs, in order, on an emulator."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import certifi
import pytest
from _command_line import environment
from _console import typed
from _examples import run_examples
from _polls import poll_often

from cortecs_async import errors
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._faults import FaultKind
from cortecs_async.emulator._routing import ROUTE_NAMES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]


@pytest.fixture
def served(served: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Serve an emulator, and poll often so that the examples finish quickly."""
    poll_often(monkeypatch)
    return served


@pytest.mark.sockets
def test_every_example_runs(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(README)
    assert served.existing == ()
    assert "Why is the sky blue?" in capsys.readouterr().out


@pytest.mark.sockets
def test_the_batch_of_the_readme_runs(served: Emulator, tmp_path: Path) -> None:
    page = README.read_text()
    (request,) = re.findall(r"`(\{.*?\})`", page)
    (command,) = re.findall(r"^python -m cortecs_async batch .*\n", page, re.MULTILINE)
    (tmp_path / "prompts.jsonl").write_text(request)
    typed(command, tmp_path, environment(served, tmp_path))
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert (answer["custom_id"], answer["response"]["status_code"]) == ("sky", 200)
    assert served.existing == ()


@pytest.mark.sockets
def test_the_examples_of_instances_run(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(DOCS / "instances.md")
    assert served.billing == ()
    assert len(served.existing) == 1  # kept with on_exit="stop"
    shown = capsys.readouterr().out
    assert "\nrecommended: NVIDIA_L40S_1\n" in shown
    assert "billed as 1 minute, about 0.03 EUR" in shown
    assert shown.count("running") >= 1


def test_the_first_page_begins_as_the_readme_does() -> None:
    first, other = (
        re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in (README, DOCS / "index.md")
    )
    assert first is not None
    assert other is not None
    assert first[1] == other[1]


@pytest.mark.sockets
def test_the_examples_of_index_run(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    run_examples(DOCS / "index.md")
    assert served.existing == ()
    assert "Why is the sky blue?" in capsys.readouterr().out


@pytest.mark.sockets
def test_the_examples_of_scale_run(served: Emulator) -> None:
    pytest.importorskip("aiohttp")
    run_examples(DOCS / "scale.md")
    assert served.existing == ()
    assert len(served.ledger) == 20


@pytest.mark.sockets
def test_the_examples_of_batch_run(
    served: Emulator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(DOCS / "batch.md")
    assert served.existing == ()
    shown = capsys.readouterr().out
    assert "2 0 0.03 EUR" in shown
    assert shown.count("Why is grass green?") == 2


@pytest.mark.sockets
def test_the_examples_of_client_run(
    served: Emulator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(certifi.where(), "company-ca.pem")
    run_examples(DOCS / "authentication.md")
    run_examples(DOCS / "configuration.md")
    assert served.existing == ()
    shown = capsys.readouterr().out
    assert "200 emulator-request-" in shown
    assert "dict_keys(['base_url', 'api_key'])" in shown


@pytest.mark.sockets
def test_the_examples_of_promise_run(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(DOCS / "crash-safety.md")
    shown = capsys.readouterr().out
    assert "running although the response was lost: instance-10001" in shown
    assert "started: 1 left: 0" in shown


def test_the_tests_that_promise_names_are_there() -> None:
    rows = re.findall(r"^\| [^|]+ \| (.*) \|$", (DOCS / "crash-safety.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`((?:\w+/)?test_\w+\.py)`", row)}
    assert len(named) >= 12
    assert {name for name in named if not (ROOT / "tests" / name).exists()} == set()


def defined_in(path: Path) -> set[str]:
    """Return the names of the functions, classes and methods in a module: `f`, `C`, `C.m`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, FUNCTIONS)}
    return names


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class TestArchitecture:
    PAGE = (DOCS / "architecture.md").read_text()
    PACKAGE = ROOT / "cortecs_async"

    def test_every_file_and_folder_exists(self) -> None:
        named = set(re.findall(r"`([\w/]+(?:/|\.(?:py|md|toml|json)))`", self.PAGE))
        assert len(named) > 20
        assert {
            name for name in named if not ((self.PACKAGE / name).exists() or (ROOT / name).exists())
        } == set()

    def test_every_function_is_where_the_page_says(self) -> None:
        text = " ".join(self.PAGE.split())
        groups = re.findall(r"((?:`[\w.]+`(?: and )?)+) in `([\w/]+\.py)`", text)
        assert len(groups) > 20
        for names, file in groups:
            found = re.findall(r"`([\w.]+)`", names)
            assert set(found) <= defined_in(self.PACKAGE / file), (file, found)

    def test_every_package_is_in_the_picture(self) -> None:
        picture = re.findall(r"```text\n(.*?)```", self.PAGE, re.DOTALL)[0]
        units = {f"{path.name}/" if path.is_dir() else path.name for path in self.PACKAGE.iterdir()}
        assert {each for each in units if each.rstrip("/") not in {"__pycache__", "py.typed"}} == set(
            re.findall(r"\w+(?:/|\.py)", picture)
        )


@pytest.mark.sockets
def test_the_examples_of_emulator_run(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(DOCS / "emulator.md")
    shown = capsys.readouterr().out
    assert "[('stop', None, 'drop'), ('delete', 500, 'status')]" in shown
    assert "lost: instance-10001" in shown
    assert "billed for 3600 seconds" in shown


class TestTheTablesOfEmulator:
    PAGE = (DOCS / "emulator.md").read_text()

    def rows(self, title: str, heading: str) -> list[tuple[set[str], str]]:
        """The names in the first cells of a table, and the second cells."""
        section = self.PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        table = section.partition(f"| {heading} |")[2].partition("\n\n")[0]
        cells = [line.strip("|").split("|") for line in table.splitlines()[2:]]
        return [(set(re.findall(r"`(\w+)`", first)), second.strip()) for first, second, *_ in cells]

    def test_the_options(self) -> None:
        parameters = inspect.signature(Emulator).parameters
        # The page has the most useful ones, and the docstring, which the page links to, has all.
        assert set(parameters) <= self.documented(Emulator)
        rows = self.rows("Options", "option")
        assert len(rows) > 10
        assert set().union(*(names for names, _ in rows)) <= set(parameters)
        for names, default in rows:
            for name, shown in zip(sorted(names), sorted(default.split(", ")), strict=False):
                if re.fullmatch(r"[\d.]+|True", shown):
                    assert shown in {str(parameters[each].default) for each in names}, name

    def test_every_kind_of_fault(self) -> None:
        assert {name for names, _ in self.rows("Faults", "kind") for name in names} == set(
            get_args(FaultKind)
        )

    def test_every_argument_of_a_fault_is_in_its_docstring(self) -> None:
        assert set(inspect.signature(Fault).parameters) <= self.documented(Fault)

    def documented(self, kind: type) -> set[str]:
        """Return the names of the arguments in a docstring."""
        return set(re.findall(r"^    (\w+): ", inspect.getdoc(kind) or "", re.MULTILINE))

    def test_every_route(self) -> None:
        routes = self.PAGE.partition("\nThe routes are ")[2].partition(".\n")[0]
        assert set(re.findall(r"`(\w+)`", routes)) == ROUTE_NAMES


@pytest.mark.sockets
def test_the_examples_of_costs_run(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(DOCS / "costs.md")
    assert served.existing == ()
    assert "billed as 1 minute, about 0.03 EUR" in capsys.readouterr().out


def test_the_billed_times_of_costs_are_those_of_the_emulator() -> None:
    page = (DOCS / "costs.md").read_text()
    rows = re.findall(r"^\| (\d+) (seconds|minutes) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 2
    for number, unit, *costs in rows:
        seconds = int(number) * {"seconds": 1, "minutes": 60}[unit]
        for interval, cost in zip(("per_minute", "per_hour"), costs, strict=True):
            for workers in (1, 2):
                moments = iter([0, seconds, seconds])
                emulator = Emulator(clock=partial(next, moments))
                started = emulator.start_instance(
                    "meta-llama/Llama-3.1-8B-Instruct",
                    "NVIDIA_H100_1",
                    billing_interval=interval,
                    num_workers=workers,
                )
                emulator.stop_instance(started)
                assert f"{emulator.ledger[0].cost / workers:.2f}" == cost


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_and_option_in_a_page_is_one(page: Path) -> None:
    pytest.importorskip("click")
    from cortecs_async._cli import cli  # noqa: PLC0415  (optional)

    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for name, rest in re.findall(
            r"(?:cortecs-async|-m cortecs_async) (?:-q )?(\w+)(.*)$", block, re.MULTILINE
        ):
            known = {each for param in cli.load(name).params for each in param.opts} | {"--help"}
            assert set(re.findall(r"--[a-z-]+", rest.partition(" -- ")[0])) <= known, (name, rest)


def test_a_page_with_examples_has_a_test() -> None:
    with_examples = {page.name for page in PAGES if "```python" in page.read_text()}
    assert with_examples
    for path in (ROOT / "tests").rglob("*.py"):
        with_examples -= {name for name in with_examples if name in path.read_text()}
    assert with_examples == set()


@pytest.mark.parametrize(
    "document",
    [README, *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob(".github/*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if link.startswith("https://"):
            continue
        name, _, title = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        # Sphinx has only the pages in docs/.
        assert not document.is_relative_to(DOCS) or target.resolve().is_relative_to(DOCS), link
        if title.startswith("cortecs_async."):  # the anchor of an object in the API reference
            pkgutil.resolve_name(title)
            continue
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if title else []
        assert not title or title in {
            re.sub(r"[^\w-]", "", each.lower().replace(" ", "-")) for each in headings
        }


def test_the_tree_of_errors_is_the_page_s() -> None:
    every = [value for value in vars(errors).values() if isinstance(value, type)]

    def tree(kind: type[Exception], indent: str = "") -> Iterator[str]:
        yield indent + kind.__name__
        for each in sorted(
            (each for each in every if kind in each.__bases__), key=lambda each: each.__name__
        ):
            yield from tree(each, indent + "    ")

    page = (DOCS / "errors.md").read_text()
    assert "```text\n" + "\n".join(tree(errors.CortecsError)) + "\n```" in page
    for each in every:
        assert issubclass(each, TimeoutError) == bool(re.search("Timeout|Expired|LeaseIdle", each.__name__))


def test_every_group_of_the_navigation_has_at_most_seven_pages() -> None:
    trees = re.findall(
        r"^:caption: (.*?)\n\n(.*?)```", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL
    )
    groups = {caption: pages.split() for caption, pages in trees}
    assert list(groups) == ["Getting started", "Guides", "Integrations", "Reference", "How it works"]
    assert {caption for caption, pages in groups.items() if not 1 < len(pages) <= 7} == set()


# These are read by looking something up.
LOOKED_UP = {"index.md", "api.md", "changelog.md", "faq.md", "glossary.md"}


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("orchestrators/*.md"))], ids=lambda page: page.name
)
def test_a_page_says_what_to_read_next(page: Path) -> None:
    last = page.read_text().rpartition("\n## ")[2]
    assert page.name in LOOKED_UP or (last.startswith("Next\n") and "](" in last)
