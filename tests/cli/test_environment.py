"""The .env file, the log options, standard streams that are closed or full, and Ctrl-C."""

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

from cortecs_async._cli.environment import CREDENTIALS, INFERENCE_KEYS, load_env_file
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
        """Load a file with this text. Return the environment after that."""
        (path or Path(".env")).write_text(text)
        after = dict(env)
        monkeypatch.setattr(os, "environ", after)
        load_env_file(path)
        return after

    def test_only_our_variables_are_read_and_the_environment_wins(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = f"{ACCOUNT}OPENAI_API_KEY=k\nOPENAI_API_KEY_EXTRA=x\nPATH=/evil\nCORTECS_API_KEY=\n"
        after = self._load(monkeypatch, text, {"CORTECS_CLIENT_ID": "mine"})
        assert after == {
            "CORTECS_CLIENT_ID": "mine",
            "CORTECS_CLIENT_SECRET": "file",
            "OPENAI_API_KEY": "k",
        }

    def test_invalid_line_is_logged_with_the_file_name(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self._load(monkeypatch, "what is 'this\nOPENAI_API_KEY=k\n", {}, Path("some.env")) == {
            "OPENAI_API_KEY": "k"
        }
        logged = [(each.name, each.getMessage()) for each in caplog.records if each.levelname == "WARNING"]
        assert [(name, text.lower()) for name, text in logged] == [
            ("cortecs_async.cli", "some.env: python-dotenv could not parse statement starting at line 1")
        ]

    @pytest.mark.parametrize(
        ("text", "env"),
        [
            ("", {"CORTECS_CLIENT_ID": "mine", "CORTECS_CLIENT_SECRET": "mine"}),
            (ACCOUNT, {"CORTECS_CLIENT_SECRET": "mine"}),
            # `run` sends these to the address that the service returns.
            (ACCOUNT, {"OPENAI_API_KEY": "mine"}),
            (ACCOUNT, {"CORTECS_API_KEY": "mine"}),
            ("CORTECS_CLIENT_SECRET=file\n", {}),
        ],
    )
    def test_url_of_the_working_directory_gets_no_secrets_of_the_environment(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        text: str,
        env: dict[str, str],
    ) -> None:
        hostile = f"{text}{URL}=http://127.0.0.1:7777/v1\n"
        assert URL not in self._load(monkeypatch, hostile, env)
        assert (
            f"Ignoring {URL} in .env: secrets from elsewhere would be sent to that URL. "
            in capsys.readouterr().err
        )
        # Used if the file is asked for.
        assert self._load(monkeypatch, hostile, env, Path("asked.env"))[URL] == "http://127.0.0.1:7777/v1"
        assert self._load(monkeypatch, hostile, {**env, URL: "mine"})[URL] == "mine"
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("env", [{}, {"CORTECS_CLIENT_ID": "mine", "CORTECS_CLIENT_SECRET": "mine"}])
    def test_file_of_the_working_directory_sets_only_credentials(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str]
    ) -> None:
        keys = "CORTECS_API_KEY=k\nOPENAI_API_KEY=k\n"
        hostile = f"{ACCOUNT}{keys}CORTECS_STATE_DIR=.\nCORTECS_LOG=debug\nCORTECS_NEW=x\nHOME=.\n"
        after = self._load(monkeypatch, hostile, env)
        assert after.keys() == {*CREDENTIALS, *INFERENCE_KEYS}
        assert capsys.readouterr().err == (
            "Ignoring CORTECS_LOG, CORTECS_NEW, CORTECS_STATE_DIR in .env: only credentials are read from "
            "it. To use the whole file, pass --env-file .env.\n"
        )
        # Used if the file is asked for.
        assert self._load(monkeypatch, hostile, env, Path("asked.env"))["CORTECS_STATE_DIR"] == "."
        # Without a warning if it has no effect.
        self._load(monkeypatch, "CORTECS_STATE_DIR=.\n", {"CORTECS_STATE_DIR": "mine"})
        assert capsys.readouterr().err == ""

    @pytest.mark.sockets
    def test_cloned_repository_does_not_choose_what_is_deleted(
        self, call: Call, emu: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, home = tmp_path / "data", tmp_path / "home"
        data.mkdir()
        home.mkdir()
        (data / f"{1:032x}.jsonl").write_text('{"prompt": "Hello"}\n')
        (data / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
        Path("journal").symlink_to(data)
        Path(".env").write_text("CORTECS_STATE_DIR=.\n")
        before = sorted(tmp_path.rglob("*"))
        for password in (emu.client_secret, "wrong"):
            # Also with the file, which a user may trust.
            for options in ([], ["--env-file", ".env"]):
                for command in ("ls", "orphans", "sweep", "doctor"):
                    env = {**emu.env(), "CORTECS_CLIENT_SECRET": password, "HOME": str(home)}
                    monkeypatch.setattr(os, "environ", env)
                    call(*options, command)
        assert [each for each in sorted(tmp_path.rglob("*")) if ".local" not in str(each)] == before

    def test_url_is_used_if_the_file_has_all_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        after = self._load(monkeypatch, f"{ACCOUNT}{URL}=http://127.0.0.1:8808/v1\n", {"OPENAI_API_KEY": ""})
        assert after[URL] == "http://127.0.0.1:8808/v1"

    @pytest.mark.sockets
    def test_verbose_names_the_variables_of_the_file(
        self, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(".env").write_text(ACCOUNT)
        monkeypatch.setattr(os, "environ", dict(os.environ))
        expected = "Read from .env: CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET\n"
        assert call("-v", "completion", "bash").stderr == expected
        monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if v != "file"})
        assert call("completion", "bash").stderr == ""

    @pytest.mark.sockets
    @pytest.mark.parametrize("content", [b"\xff\xfe", b"CORTECS_API_KEY='a\0b'\n"])
    def test_unreadable_file_is_an_error_only_if_asked_for(self, call: Call, content: bytes) -> None:
        Path(".env").write_bytes(content)
        shown = call("completion", "bash")
        assert shown.exit_code == 0
        assert shown.stderr.startswith("Ignoring .env, which cannot be read: ")
        assert call("-q", "completion", "bash").stderr == ""
        shown = call("--env-file", ".env", "completion", "bash")
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr.startswith("Error: Cannot read .env: ")

    @pytest.mark.sockets
    def test_named_pipe_is_ignored(self, tmp_path: Path) -> None:
        os.mkfifo(".env")
        done = program(tmp_path, None, "completion", "bash")
        assert done.returncode == 0, done.stderr


@pytest.mark.sockets
def test_quiet_shows_that_there_is_no_reaper(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-q", "completion", "bash").exit_code == 0
    logging.getLogger("cortecs_async.guard").warning("no reaper")
    logging.getLogger("cortecs_async.watch").warning("something else")
    assert capsys.readouterr().err == "no reaper\n"


def program(
    tmp_path: Path, emulator: Emulator | None, *arguments: str, how: str = "", source: str = MAIN
) -> subprocess.CompletedProcess[str]:
    """Run the command with standard streams that a shell redirects or closes."""
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
class TestStandardStreams:
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
    def test_closed_stream_causes_no_traceback(
        self, emu: Emulator, tmp_path: Path, arguments: list[str], how: str, status: int
    ) -> None:
        there = emu.start_instance(MODEL, HARDWARE)
        if arguments[0] == "watch":
            emu.stop_instance(there)
        done = program(tmp_path, emu, *arguments, how=how)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert ("Pass --yes" in done.stderr) is (status == 1)

    def test_command_runs_without_standard_error(self, emu: Emulator, tmp_path: Path) -> None:
        done = program(tmp_path, emu, "run", MODEL, "--", "readlink", "/proc/self/fd/2", how="2>&-")
        # Its errors do not go to a socket or file that was opened later.
        assert (done.returncode, done.stdout, done.stderr) == (0, "/dev/null\n", "")
        assert emu.existing == ()

    @pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"]])
    def test_full_disk_is_a_one_line_error(self, emu: Emulator, tmp_path: Path, arguments: list[str]) -> None:
        emu.start_instance(MODEL, HARDWARE)
        done = program(tmp_path, emu, *arguments, how=">/dev/full")
        assert done.returncode == 1
        assert done.stderr == "Error: [Errno 28] No space left on device\n"
        assert program(tmp_path, emu, *arguments, how=">/dev/full 2>/dev/full").returncode == 1

    def test_id_that_cannot_be_written_goes_to_stderr(self, emu: Emulator, tmp_path: Path) -> None:
        done = program(tmp_path, emu, "-q", "start", MODEL, how=">/dev/full")
        assert done.returncode == 1
        assert done.stderr.startswith(f"{emu.billing[0]} is billed until you stop it.\nError: ")


# A user without an entry in passwd, as in some containers. Their home directory may also be that of root.
NO_HOME = """
import os, pwd

def getpwuid(_):
    raise KeyError("uid not found")

pwd.getpwuid = getpwuid
del os.environ["CORTECS_STATE_DIR"]
"""


@pytest.mark.sockets
@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_without_a_home_directory_everything_works_that_needs_no_journal(
    emu: Emulator, tmp_path: Path, home: str | None
) -> None:
    source = NO_HOME + (f"os.environ['HOME'] = {home!r}\n" if home else "") + MAIN
    for command in (["balance"], ["ls"], ["models"], ["run", MODEL, "--", "true"]):
        done = program(tmp_path, emu, *command, source=source)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if "CORTECS_STATE_DIR" in line]
        assert len(lines) == (command[0] == "run"), done.stderr
    assert emu.existing == ()
    done = program(tmp_path, emu, "doctor", source=source)
    assert done.returncode == 1
    assert done.stdout.count("CORTECS_STATE_DIR") == 1
    if home is None:
        for command in (["sweep"], ["orphans"]):
            done = program(tmp_path, emu, *command, source=source)
            assert done.returncode == 1
            line, more = done.stderr.splitlines()
            assert more == "More: cortecs-async help JournalError"
            assert "the home directory could not be determined. Set CORTECS_STATE_DIR" in line


# Ctrl-C while the modules are imported.
IN_AN_IMPORT = """
import sys
from cortecs_async.__main__ import main

class Finder:
    def find_spec(*_):
        raise KeyboardInterrupt

sys.meta_path.insert(0, Finder)
main()
"""

# Ctrl-C in a command, outside its event loop.
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
@pytest.mark.parametrize(("source", "expected"), [(IN_AN_IMPORT, ""), (IN_A_COMMAND, "Interrupted.\n")])
def test_ctrl_c_at_any_time_exits_with_130(tmp_path: Path, source: str, expected: str) -> None:
    done = program(tmp_path, None, "completion", "bash", source=source)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", expected)


def test_times_beyond_the_range_of_dates() -> None:
    assert format_time(1_000_000_000).startswith("2001-09-09 ")
    assert format_time(4e11) == "in the far future"
    assert format_time(1e300) == "in the far future"
    assert format_time(float("inf")) == "never"
    assert format_time(-1e300) == "in the far past"
