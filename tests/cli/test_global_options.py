"""The options that work before and after each command, and where `run` stops reading them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from _command_line import call_command
from _world import HARDWARE, MODEL
from click import termui
from click.shell_completion import ShellComplete

from cortecs_async._cli import cli, instances
from cortecs_async._cli.global_options import GLOBAL_OPTIONS
from cortecs_async._cli.run import _COMMAND, is_hardware, run
from cortecs_async.emulator import Emulator


@pytest.mark.parametrize("arguments", [["--json", "ls"], ["ls", "--json"], ["--json", "ls", "--json"]])
def test_json_before_and_after(account: Emulator, arguments: list[str]) -> None:
    assert json.loads(call_command(*arguments).stdout) == []


@pytest.mark.parametrize("arguments", [["-q", "ls"], ["ls", "-q"], ["ls", "--quiet"], ["-q", "ls", "-q"]])
def test_quiet_before_and_after(account: Emulator, arguments: list[str]) -> None:
    assert call_command("ls").stderr == "No instances.\n"
    assert call_command(*arguments).stderr == ""


@pytest.mark.parametrize("arguments", [["-vv", "ls"], ["ls", "-vv"], ["-v", "ls", "-v"]])
def test_verbose_before_and_after(account: Emulator, arguments: list[str]) -> None:
    assert "GET /instances/: 200" in call_command(*arguments).stderr


def test_env_file_before_and_after(
    account: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("CORTECS_FIRST=1\n")
    second.write_text("CORTECS_SECOND=2\n")
    for arguments in (["--env-file", str(first), "ls", "-v"], ["ls", "-v", "--env-file", str(first)]):
        monkeypatch.delenv("CORTECS_FIRST", raising=False)
        assert "CORTECS_FIRST" in call_command(*arguments).stderr
    monkeypatch.delenv("CORTECS_FIRST", raising=False)
    both = call_command("--env-file", str(first), "ls", "-v", "--env-file", str(second)).stderr
    assert "CORTECS_SECOND" in both
    assert "CORTECS_FIRST" not in both


@pytest.mark.parametrize("arguments", [["--json", "stop", "i"], ["stop", "i", "--json"]])
def test_json_of_a_command_without_data_is_a_usage_error(arguments: list[str]) -> None:
    done = call_command(*arguments)
    assert done.exit_code == 2
    assert "Error: `cortecs-async stop` has no --json option." in done.stderr


def test_each_command_takes_each_global_option() -> None:
    names = {name for option in GLOBAL_OPTIONS for name in option.opts}
    for command in map(cli.load, cli.summaries):
        assert names <= {name for param in command.params for name in param.opts}


def split(*arguments: str) -> tuple[dict[str, object], list[str]]:
    with cli.make_context("cortecs-async", ["run"]) as root:
        context = run.make_context("run", list(arguments), parent=root)
        return context.params, context.meta[_COMMAND]


@pytest.mark.parametrize(
    ("arguments", "hardware", "command"),
    [
        ("python x.py -q --max-cost 1", None, "python x.py -q --max-cost 1"),
        ("--max-cost 5 python x.py", None, "python x.py"),
        ("--hardware H python x.py --help", "H", "python x.py --help"),
        ("-- python -- x.py", None, "python -- x.py"),
        ("--max-cost 5 -- -odd", None, "-odd"),
        ("NVIDIA_H100_1 -- python x.py", "NVIDIA_H100_1", "python x.py"),
        ("any-name --max-cost 5 -- python x.py", "any-name", "python x.py"),
        ("NVIDIA_H100_1 --max-cost 5 python x.py -q", "NVIDIA_H100_1", "python x.py -q"),
        ("python x.py -- y", None, "python x.py -- y"),
        ("make", None, "make"),
        ("-", None, "-"),
    ],
)
def test_run_reads_no_option_of_its_command(arguments: str, hardware: str | None, command: str) -> None:
    params, found = split(MODEL, *arguments.split())
    assert (params["hardware"] or params["hardware_type"], found) == (hardware, command.split())


def test_run_takes_options_before_the_model() -> None:
    params, found = split("-q", "--max-cost", "5", MODEL, "python", "-v")
    assert (params["max_cost"], found) == (5.0, ["python", "-v"])


def test_a_mistyped_option_of_run_is_not_part_of_the_command() -> None:
    with pytest.raises(click.NoSuchOption, match="--max-cst"):
        split(MODEL, "--max-cst", "5", "python")


def test_a_program_with_the_name_of_hardware_is_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_hardware(HARDWARE)
    program = tmp_path / HARDWARE
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_hardware(HARDWARE)


@pytest.mark.parametrize("words", [["ls", "--", "/tmp/x"], ["ls", "-x", "--", "tests"]])  # noqa: S108
def test_a_program_in_place_of_the_hardware_is_an_error_that_says_where_dashes_go(words: list[str]) -> None:
    done = call_command("run", MODEL, *words)
    assert done.exit_code == 2
    fixed = f"cortecs-async run {MODEL} -- {' '.join(words)}"
    assert f"ls is a program. Put -- before the command: {fixed}\n" in done.stderr


def test_hardware_in_lower_case_is_no_program() -> None:
    done = call_command("run", MODEL, "nvidia_l40s_1", "echo", "hi")
    assert done.exit_code == 127
    assert "Did you mean the hardware type NVIDIA_L40S_1?" in done.stderr
    assert "hardware type" not in call_command("run", MODEL, "no-such-program").stderr


@pytest.mark.parametrize(
    "arguments",
    [["--profile", "", "ls"], ["ls", "--profile", ""], ["login", "--profile="], ["--profile=", "login"]],
)
def test_a_profile_without_a_name_is_a_usage_error(arguments: list[str]) -> None:
    done = call_command(*arguments)
    assert done.exit_code == 2
    assert 'profile "" is invalid: use letters, digits, - and _' in done.stderr


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        (["ls"], "--pro", ["--profile"]),
        (["ls"], "--j", ["--json"]),
        (["stop"], "--j", []),
        (["login"], "--pro", ["--profile"]),
        (
            ["ls"],
            "-",
            [
                "--status",
                "--json",
                "--help",
                "-h",
                "--env-file",
                "--profile",
                "-q",
                "--quiet",
                "-v",
                "--verbose",
            ],
        ),
    ],
)
def test_completion_offers_the_global_options(words: list[str], incomplete: str, offered: list[str]) -> None:
    complete = ShellComplete(cli, {}, "cortecs-async", "_CORTECS_ASYNC_COMPLETE")
    assert sorted(each.value for each in complete.get_completions(words, incomplete)) == sorted(offered)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt, 130, "Interrupted."),
        (EOFError, 1, "Error: Standard input closed before you answered. Pass --yes to skip the question."),
    ],
)
def test_an_interrupted_prompt(
    account: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
    code: int,
    message: str,
) -> None:
    def ask(_: str) -> str:
        raise error

    account.start_instance(MODEL, HARDWARE)
    monkeypatch.setattr(instances, "_is_terminal", lambda: True)
    monkeypatch.setattr(termui, "visible_prompt_func", ask)
    with pytest.raises(SystemExit) as ended:
        cli.main(["stop", "--all"])
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(f"\n{message}\n")


@pytest.mark.parametrize("port", ["99999", "-1", "65536"])
def test_an_impossible_port_is_a_usage_error(port: str) -> None:
    done = call_command("emulator", "--port", port)
    assert done.exit_code == 2
    assert f"{port} is not in the range 0<=x<=65535" in done.stderr
