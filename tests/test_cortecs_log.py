"""CORTECS_LOG, and what the command line makes of it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest
from _command_line import call_command

from cortecs_async import AsyncCortecs, errors
from cortecs_async._logging import set_up_log

PROGRAM = """
import asyncio, logging, sys
from cortecs_async import AsyncCortecs

async def main():
    for _ in range(2):
        async with AsyncCortecs() as client:
            await client.user.balance()

exec(sys.argv[1])
asyncio.run(main())
"""


def logged(level: str | None, *, before: str = "") -> list[str]:
    """The lines on standard error of a program that asks for its balance twice."""
    environ = {name: value for name, value in os.environ.items() if name != "CORTECS_LOG"}
    if level is not None:
        environ["CORTECS_LOG"] = level
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, before],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "emulator-secret" not in ended.stderr
    return ended.stderr.splitlines()


@pytest.mark.sockets
@pytest.mark.usefixtures("served")
class TestPrograms:
    def test_every_request_on_standard_error(self) -> None:
        lines = logged("debug")
        assert sum("DEBUG cortecs_async.http: GET /user/balance: 200" in line for line in lines) == 2

    def test_less_at_a_higher_level_and_nothing_without(self) -> None:
        assert logged("warning") == []
        assert logged(None) == []

    def test_an_application_that_logs_sees_each_line_once(self) -> None:
        lines = logged("debug", before="logging.basicConfig(format='mine: %(message)s')")
        assert sum("GET /user/balance: 200" in line for line in lines) == 2
        assert all(line.startswith("mine: ") for line in lines)

    def test_what_the_program_says_wins(self) -> None:
        assert logged("debug", before="logging.getLogger('cortecs_async').setLevel('WARNING')") == []

    @pytest.mark.parametrize(
        ("options", "level", "shown"),
        [
            ([], None, False),
            ([], "debug", True),
            (["-q"], "debug", False),
            (["-v"], "debug", False),  # what happens, not every request
            (["-vv"], "warning", True),
        ],
    )
    def test_the_command_line(
        self, monkeypatch: pytest.MonkeyPatch, options: list[str], level: str | None, *, shown: bool
    ) -> None:
        if level is not None:
            monkeypatch.setenv("CORTECS_LOG", level)
        assert ("GET /models/: 200" in call_command(*options, "models").stderr) is shown


@pytest.fixture
def logger() -> logging.Logger:
    """The package's logger, which nobody has set up."""
    logger = logging.getLogger("cortecs_async")
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])
    return logger


@pytest.mark.parametrize("written", ["INFO", " info\n", "Info"])
def test_however_it_is_written(logger: logging.Logger, written: str) -> None:
    set_up_log({"CORTECS_LOG": written})
    assert logger.level == logging.INFO
    assert not logger.handlers  # pytest's are at the root


def test_another_word_is_told_at_once(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_LOG", "verbose")
    with pytest.raises(errors.ConfigurationError, match=r"debug, info, .*, not 'verbose'"):
        AsyncCortecs()
    assert logger.level == logging.NOTSET


def test_a_handler_of_its_own(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "propagate", False)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    for _ in range(3):
        set_up_log({"CORTECS_LOG": "info"})
    assert len(logger.handlers) == 1
    logging.getLogger("cortecs_async.lease").info("hello")
    assert shown.getvalue().endswith(" INFO cortecs_async.lease: hello\n")
