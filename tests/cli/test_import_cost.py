"""What the command line loads before it does anything: people wait for it at each `--help`."""

from __future__ import annotations

from pathlib import Path

import pytest
from _command_line import PROGRAM, environment, serving
from _loaded_modules import check_loaded, loaded_modules
from _world import HARDWARE, MODEL

from cortecs_async._cli import cli

# Slow to load, and needed only by a command that runs or draws something.
SLOW = {
    *("rich", "anyio", "httpx", "httpcore", "attr", "attrs", "cattrs", "asyncio", "ssl", "socket", "dotenv"),
    *("logging", "subprocess", "json", "importlib.metadata", "urllib.request", "typing_extensions"),
    *("textual", "openai", "starlette", "uvicorn", "keyring"),
    *(f"cortecs_async.{name}" for name in ("types", "signals", "_config", "_client", "_aio", "_http")),
    *(f"cortecs_async.{name}" for name in ("_api", "_lease", "_recovery", "_profiles", "_credentials")),
}

# The numbers of modules in addition to those of click, some of them Python's own, which differ by version.
# When the list below was made, they were 20, 30, and 42. The module of each command is small.
AT_MOST = {"--version": 26, "--help": 36, "ls --help": 48}


@pytest.mark.sockets
@pytest.mark.parametrize("arguments", AT_MOST)
def test_the_help_loads_little_in_addition_to_click(arguments: str) -> None:
    modules = loaded_modules(PROGRAM, *arguments.split(), before="import click")
    assert "cortecs_async._cli.main" in modules
    check_loaded(modules, at_most=AT_MOST[arguments], unwanted=SLOW)


@pytest.mark.sockets
def test_the_help_of_each_command_loads_no_client_and_draws_nothing() -> None:
    # All in one interpreter, so that this takes no second for each.
    calls = "\n".join(
        f"try:\n    cli(['{name}', '--help'])\nexcept SystemExit as ended:\n    assert not ended.code"
        for name in cli.summaries
    )
    modules = loaded_modules(f"from cortecs_async._cli import cli\n{calls}", before="import click")
    assert {f"cortecs_async._cli.{name}" for name in ("run", "batch", "watch", "top.command")} <= {*modules}
    check_loaded(modules, at_most=90, unwanted=SLOW)


@pytest.mark.sockets
def test_completion_of_a_commands_name_loads_no_command() -> None:
    variables = {
        "_CORTECS_ASYNC_COMPLETE": "bash_complete",
        "COMP_WORDS": "cortecs-async s",
        "COMP_CWORD": "1",
    }
    before = f"import os, click.shell_completion\nos.environ.update({variables})"
    modules = loaded_modules(PROGRAM, before=before)
    assert "cortecs_async._cli.instances" not in modules
    check_loaded(modules, at_most=26, unwanted=SLOW)


@pytest.mark.sockets
def test_a_list_for_a_pipe_loads_nothing_that_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving() as emulator:
        started = emulator.start_instance(MODEL, HARDWARE)
        for name, value in environment(emulator, tmp_path).items():
            monkeypatch.setenv(name, value)
        modules = loaded_modules(PROGRAM, "ls", before="import click")
        assert started in emulator.existing
    # httpx loads rich and pygments for a command line of its own.
    assert "httpx" in modules
    check_loaded(modules, at_most=1000, unwanted={"rich", "pygments", "dotenv", "textual", "httpx._main"})


@pytest.mark.sockets
def test_an_unwanted_module_is_named() -> None:
    modules = loaded_modules("import json.decoder", before="import click")
    with pytest.raises(AssertionError, match=r"loads json, json\.decoder, .*among:\n"):
        check_loaded(modules, at_most=100, unwanted={"json"})
    with pytest.raises(AssertionError, match=r"instead of at most 1:\n_json\n"):
        check_loaded(modules, at_most=1, unwanted=set())


@pytest.mark.parametrize("name", cli.summaries)
def test_the_table_of_commands_has_their_summaries(name: str) -> None:
    assert (cli.load(name).name, cli.load(name).summary) == (name, cli.summaries[name])
