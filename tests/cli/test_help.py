"""The help of the commands: groups, summaries, examples, narrow terminals, and the options in docs/cli.md."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest
from _command_line import call_command

from cortecs_async._cli import cli
from cortecs_async._cli.command import wrap_example

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

NAMES = list(cli.summaries)


def test_the_help_has_each_command_once_with_its_whole_summary() -> None:
    shown = call_command("--help").stdout
    assert "..." not in shown.partition("\n\n")[2]
    flat = " ".join(shown.split())
    for name in NAMES:
        assert flat.count(f" {name} {cli.load(name).summary}") == 1


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_two_examples_that_click_reads(name: str) -> None:
    assert len(cli.load(name).examples) == 2
    for example in cli.load(name).examples:
        (words,) = re.findall(rf"cortecs-async ({name}\b[^|)]*)", example)
        _, *arguments = shlex.split(words.replace('"$', ""))
        with cli.make_context("cortecs-async", [name]) as root:
            cli.load(name).make_context(name, arguments, parent=root)


@pytest.mark.parametrize("width", [80, 46])
@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_the_terminal_and_breaks_no_word(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = call_command("help", *filter(None, [name])).stdout
        lines = shown.splitlines()
        assert [line for line in lines if len(line) > columns and len(line.split()) > 1] == []
        return [word for word in shown.split() if word != "\\"]

    assert words(width) == words(80)


def test_help_of_a_command_is_that_of_its_option() -> None:
    assert call_command("help", "ls").stdout == call_command("ls", "--help").stdout
    assert call_command("help").stdout == call_command("--help").stdout
    unknown = call_command("help", "lss")
    assert unknown.exit_code == 2
    assert 'Error: "lss" is not a command. Did you mean ls?' in unknown.stderr


def test_an_example_wraps_into_a_command_for_a_shell() -> None:
    assert wrap_example("cortecs-async run org/name -- python x.py", 24) == [
        "cortecs-async run \\",
        "org/name -- python \\",
        "x.py",
    ]


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [("list", "ls"), ("delete", "rm"), ("instances", "ls"), ("sart", "start"), ("Stop", "stop")],
)
def test_an_unknown_command_suggests_the_nearest(typed: str, suggested: str) -> None:
    done = call_command(typed)
    assert done.exit_code == 2
    assert f'Error: "{typed}" is not a command. Did you mean {suggested}?' in done.stderr


def test_an_unknown_command_like_no_other_suggests_nothing() -> None:
    assert call_command("xyzzy").stderr.endswith('Error: "xyzzy" is not a command.\n')


def test_an_unknown_option_suggests_the_nearest() -> None:
    assert "Did you mean '--status'?" in call_command("ls", "--statu", "running").stderr


def options_section() -> str:
    """Return the section of the page that lists all options, as the help describes them."""
    shared = "Every command that prints data also has `--json`."
    parts = ["## All options", "", shared, "", _list("cortecs-async", cli)]
    for name in sorted(NAMES):
        if options := _list(name, cli.load(name)):
            parts += ["", options]
    return "\n".join(parts) + "\n"


def _list(name: str, documented: click.Command) -> str:
    context = click.Context(documented, show_default=True)
    records = [each.get_help_record(context) for each in documented.params if isinstance(each, click.Option)]
    items = [
        f"- `{names.removesuffix(' RANGE')}`: {' '.join(text.split())}"
        for names, text in filter(None, records)
    ]
    if documented is not cli:
        items = [each for each in items if not each.startswith("- `--json`")]
    wrapped = [textwrap.fill(each, 120, subsequent_indent="  ", break_on_hyphens=False) for each in items]
    return "\n".join([f"**{name}**", "", *wrapped]) if items else ""


def test_the_page_has_all_options_in_the_words_of_the_help() -> None:
    # To update the page, replace this section with what `options_section` returns.
    _, heading, rest = PAGE.read_text().partition("## All options\n")
    assert heading + rest.partition("\n## Next\n")[0] == options_section()


@pytest.mark.parametrize(
    "arguments",
    [["run", "org/name", "--idle-timeout", "5m", "--", "true"], ["start", "m", "--idle-timeout=5m"]],
)
def test_an_idle_timeout_that_cannot_work_is_explained(arguments: list[str]) -> None:
    done = call_command(*arguments)
    assert done.exit_code == 2
    assert "No process sees all requests to the instance" in done.stderr
