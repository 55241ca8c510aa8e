"""What the command line takes from a .env file, what it says when, and standard files that are closed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from _command_line import call_command, environment, serving
from _world import HARDWARE, MODEL
from click.testing import Result

from cortecs_async._cli.environment import load_env_file
from cortecs_async._cli.output import format_time
from cortecs_async.emulator import Emulator

Call = Callable[..., Result]

MAIN = "from cortecs_async.__main__ import main\nmain()"

URL = "CORTECS_API_BASE_URL"
ACCOUNT = "CORTECS_CLIENT_ID=file\nCORTECS_CLIENT_SECRET=file\n"


@pytest.fixture
def call() -> Call:
    return call_command


@pytest.fixture
def emu() -> Iterator[Emulator]:
    with serving() as emulator:
        yield emulator


class TestEnvFile:
    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def _load(
        monkeypatch: pytest.MonkeyPatch, text: str, env: Mapping[str, str], path: Path | None = None
    ) -> dict[str, str]:
        """What the environment is once a file with this text has been read."""
        (path or Path(".env")).write_text(text)
        after = dict(env)
        monkeypatch.setattr(os, "environ", after)
        load_env_file(path)
        return after

    def test_only_what_this_command_line_reads_is_taken_and_the_environment_wins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = f"{ACCOUNT}OPENAI_API_KEY=k\nOPENAI_API_KEY_EXTRA=x\nPATH=/evil\nCORTECS_API_KEY=\n"
        after = self._load(monkeypatch, text, {"CORTECS_CLIENT_ID": "mine"})
        assert after == {
            "CORTECS_CLIENT_ID": "mine",
            "CORTECS_CLIENT_SECRET": "file",
            "OPENAI_API_KEY": "k",
        }

    def test_a_line_that_is_none_is_told_with_the_file(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self._load(monkeypatch, "what is 'this\nOPENAI_API_KEY=k\n", {}, Path("some.env")) == {
            "OPENAI_API_KEY": "k"
        }
        said = [(each.name, each.getMessage()) for each in caplog.records if each.levelname == "WARNING"]
        assert [(name, text.lower()) for name, text in said] == [
            ("cortecs_async.cli", "some.env: python-dotenv could not parse statement starting at line 1")
        ]

    @pytest.mark.parametrize(
        ("text", "env"),
        [
            ("", {"CORTECS_CLIENT_ID": "mine", "CORTECS_CLIENT_SECRET": "mine"}),
            (ACCOUNT, {"CORTECS_CLIENT_SECRET": "mine"}),
            # `run` sends these to where the service says that the instance is.
            (ACCOUNT, {"OPENAI_API_KEY": "mine"}),
            (ACCOUNT, {"CORTECS_API_KEY": "mine"}),
            ("CORTECS_CLIENT_SECRET=file\n", {}),
        ],
    )
    def test_no_secret_of_the_environment_goes_where_the_working_directory_says(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        text: str,
        env: dict[str, str],
    ) -> None:
        hostile = f"{text}{URL}=http://127.0.0.1:7777/v1\n"
        assert URL not in self._load(monkeypatch, hostile, env)
        assert (
            f"Ignoring {URL} of .env: secrets from elsewhere would be sent to it. " in capsys.readouterr().err
        )
        # Who asks for the file gets it.
        assert self._load(monkeypatch, hostile, env, Path("asked.env"))[URL] == "http://127.0.0.1:7777/v1"
        assert self._load(monkeypatch, hostile, {**env, URL: "mine"})[URL] == "mine"
        assert capsys.readouterr().err == ""

    def test_with_all_the_secrets_the_address_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        after = self._load(monkeypatch, f"{ACCOUNT}{URL}=http://127.0.0.1:8808/v1\n", {"OPENAI_API_KEY": ""})
        assert after[URL] == "http://127.0.0.1:8808/v1"

    @pytest.mark.sockets
    def test_verbose_says_what_came_from_where(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        Path(".env").write_text(ACCOUNT)
        monkeypatch.setattr(os, "environ", dict(os.environ))
        said = "Read from .env: CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET\n"
        assert call("-v", "completion", "bash").stderr == said
        monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if v != "file"})
        assert call("completion", "bash").stderr == ""

    @pytest.mark.sockets
    @pytest.mark.parametrize("content", [b"\xff\xfe", b"CORTECS_API_KEY='a\0b'\n"])
    def test_a_broken_one_ends_only_what_asks_for_it(self, call: Call, content: bytes) -> None:
        Path(".env").write_bytes(content)
        shown = call("completion", "bash")
        assert shown.exit_code == 0
        assert shown.stderr.startswith("Ignoring .env, which cannot be read: ")
        assert call("-q", "completion", "bash").stderr == ""
        shown = call("--env-file", ".env", "completion", "bash")
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr.startswith("Error: Cannot read .env: ")

    @pytest.mark.sockets
    def test_a_pipe_of_that_name_holds_nothing_up(self, tmp_path: Path) -> None:
        os.mkfifo(".env")
        done = program(tmp_path, None, "completion", "bash")
        assert done.returncode == 0, done.stderr


@pytest.mark.sockets
def test_quiet_does_not_hide_that_nobody_hands_instances_back(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-q", "completion", "bash").exit_code == 0
    logging.getLogger("cortecs_async.guard").warning("no reaper")
    logging.getLogger("cortecs_async.watch").warning("something else")
    assert capsys.readouterr().err == "no reaper\n"


def program(
    tmp_path: Path, emulator: Emulator | None, *arguments: str, how: str = "", source: str = MAIN
) -> subprocess.CompletedProcess[str]:
    """The command with standard files as a shell opens and closes them."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {how}', sys.executable, "-P", "-c", source, *arguments],
        env=environment(emulator, tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.sockets
class TestStandardFiles:
    @pytest.mark.parametrize(
        ("arguments", "how", "status"),
        [
            (["ls"], ">&-", 0),
            (["ls"], "2>&-", 0),
            (["doctor"], ">&-", 0),
            (["watch"], ">&-", 0),
            (["stop", "--all"], "<&-", 1),
            (["rm", "--all", "--stop"], "<&-", 1),
            (["ls"], "<&- >&- 2>&-", 0),
        ],
    )
    def test_one_that_is_closed_is_no_traceback(
        self, emu: Emulator, tmp_path: Path, arguments: list[str], how: str, status: int
    ) -> None:
        there = emu.start_instance(MODEL, HARDWARE)
        if arguments[0] == "watch":
            emu.stop_instance(there)
        done = program(tmp_path, emu, *arguments, how=how)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert ("Pass --yes" in done.stderr) is (status == 1)

    def test_a_command_runs_without_standard_error(self, emu: Emulator, tmp_path: Path) -> None:
        done = program(tmp_path, emu, "run", MODEL, "--", "readlink", "/proc/self/fd/2", how="2>&-")
        # What it complains about goes to no socket and no file that somebody has opened since.
        assert (done.returncode, done.stdout, done.stderr) == (0, "/dev/null\n", "")
        assert emu.existing == ()

    @pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"]])
    def test_a_full_disk_is_one_line(self, emu: Emulator, tmp_path: Path, arguments: list[str]) -> None:
        emu.start_instance(MODEL, HARDWARE)
        done = program(tmp_path, emu, *arguments, how=">/dev/full")
        assert done.returncode == 1
        assert done.stderr == "Error: [Errno 28] No space left on device\n"
        assert program(tmp_path, emu, *arguments, how=">/dev/full 2>/dev/full").returncode == 1

    def test_an_id_that_cannot_be_written_is_said_elsewhere(self, emu: Emulator, tmp_path: Path) -> None:
        done = program(tmp_path, emu, "-q", "start", MODEL, how=">/dev/full")
        assert done.returncode == 1
        assert done.stderr.startswith(f"{emu.billing[0]} is billed until you stop it.\nError: ")


# As if somebody pressed the keys while the modules are loaded.
IN_AN_IMPORT = """
import sys
from cortecs_async.__main__ import main

class Finder:
    def find_spec(*_):
        raise KeyboardInterrupt

sys.meta_path.insert(0, Finder)
main()
"""

# And where a command is not in its event loop.
IN_A_COMMAND = """
import click
from cortecs_async.__main__ import main

def echo(*args, err=False, real=click.echo):
    if not err:
        raise KeyboardInterrupt
    real(*args, err=err)

click.echo = echo
main()
"""


@pytest.mark.sockets
@pytest.mark.parametrize(("source", "said"), [(IN_AN_IMPORT, ""), (IN_A_COMMAND, "Interrupted.\n")])
def test_ctrl_c_at_any_time_is_130(tmp_path: Path, source: str, said: str) -> None:
    done = program(tmp_path, None, "completion", "bash", source=source)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


def test_moments_beyond_what_dates_have() -> None:
    assert format_time(1_000_000_000).startswith("2001-09-09 ")
    assert format_time(4e11) == "in the far future"
    assert format_time(1e300) == "in the far future"
    assert format_time(float("inf")) == "never"
    assert format_time(-1e300) == "in the far past"
