"""`cortecs-async help` about an error, and the line below a message that leads to it."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from _command_line import call_command, serving
from _polls import poll_often
from _world import HARDWARE, MODEL
from click.shell_completion import ShellComplete
from click.testing import Result

from cortecs_async import CortecsError, errors
from cortecs_async._cli import cli
from cortecs_async._cli.error_help import public_errors
from cortecs_async._errors import error_class_for
from cortecs_async.emulator import Emulator, Fault

ERRORS = public_errors()


def more(*classes: type[CortecsError]) -> list[str]:
    return [f"More: cortecs-async help {each.__name__}" for each in classes]


def lines_below(done: Result) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("More: ")]


# --- the help -----------------------------------------------------------------------------------------------


def test_every_public_error_has_help() -> None:
    assert ERRORS.keys() >= {name for name in vars(errors) if name.endswith("Error")}
    assert "NotReadyError" in ERRORS


@pytest.mark.parametrize("width", [80, 46])
@pytest.mark.parametrize("name", ERRORS)
def test_the_help_is_the_docstring(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = call_command("help", name).stdout
    text, _, example = shown.partition("\nExample:\n")
    docstring = inspect.cleandoc(ERRORS[name].__doc__ or "")
    assert " ".join(text.split()).startswith(f"{name}: {docstring.partition(chr(10))[0]} Why: ")
    assert "\n\nWhat to do: " in text
    assert "except" in example
    code, _, rest = example.rpartition("\n\n")
    assert code
    assert " ".join(rest.split()).startswith(f"Import it from {ERRORS[name].__module__}.")
    lines = (text + rest).splitlines()
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []


def test_the_help_has_the_attributes_of_the_base_classes() -> None:
    shown = call_command("help", "NotFoundError").stdout
    assert "\nAttributes:\n  method " in shown
    assert " ".join(shown.split()).endswith("Also caught as APIStatusError, RequestError, CortecsError.")
    assert "`***`" in shown
    assert "Also caught as" not in call_command("help", "CortecsError").stdout


@pytest.mark.parametrize(
    "name", ["teardownerror", "TEARDOWNERROR", "cortecs_async.TeardownError", "errors.teardown", "teardown"]
)
def test_a_name_in_other_spellings(name: str) -> None:
    assert call_command("help", name).stdout == call_command("help", "TeardownError").stdout


@pytest.mark.parametrize(
    "name", ["AmbigousStartError", "errors.AmbiguousStartErr", "ambiguousstarterrorerror", "ambiguous"]
)
def test_an_unknown_error_suggests_the_nearest(name: str) -> None:
    done = call_command("help", name)
    assert done.exit_code == 2
    expected = f'Error: "{name}" is not a command or an error. Did you mean AmbiguousStartError?\n'
    assert done.stderr.endswith(expected)


@pytest.mark.parametrize("name", ["nonsense", "xyzzyError"])
def test_a_name_like_no_other_leads_to_the_list(name: str) -> None:
    expected = "is not a command or an error. To list all errors, run `cortecs-async help errors`.\n"
    assert call_command("help", name).stderr.endswith(expected)


def test_all_errors_are_listed() -> None:
    shown = call_command("help", "errors").stdout
    assert [line.split()[0] for line in shown.splitlines() if line[0] != " "] == sorted(ERRORS)


def test_an_error_instead_of_a_command_leads_to_its_help() -> None:
    expected = '"teardownerror" is an error. To explain it, run `cortecs-async help TeardownError`.\n'
    assert call_command("teardownerror").stderr.endswith(expected)
    assert call_command("journal").stderr.endswith('"journal" is not a command.\n')


@pytest.mark.parametrize(
    ("incomplete", "offered"),
    [("not", ["NotFoundError", "NotReadyError"]), ("TEAR", ["TeardownError"]), ("ls", ["ls"])],
)
def test_names_are_completed(incomplete: str, offered: list[str]) -> None:
    found = ShellComplete(cli, {}, "cortecs-async", "_X").get_completions(["help"], incomplete)
    assert [each.value for each in found] == offered
    assert all(each.help for each in found)


def test_commands_are_completed_in_alphabetical_order() -> None:
    found = ShellComplete(cli, {}, "cortecs-async", "_X").get_completions([], "s")
    assert [each.value for each in found] == ["show", "start", "stop", "sweep"]


# --- the line below a message -------------------------------------------------------------------------------


# The others are retried, which takes time here.
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 418, 422])
def test_the_last_line_names_the_class_that_was_raised(status: int, account: Emulator) -> None:
    account.add_fault(Fault("status", route="balance", status=status, times=None))
    done = call_command("balance")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1:] == more(error_class_for(status))
    assert "More: " not in call_command("-q", "balance").stderr
    as_json = call_command("balance", "--json")
    assert (as_json.exit_code, as_json.stdout) == (1, "")
    assert "More: " not in as_json.stderr


def test_the_line_is_dim_on_a_terminal_only(account: Emulator) -> None:
    (line,) = more(errors.BadRequestError)
    assert f"\x1b[2m{line}" in call_command("show", "unknown", color=True).stderr
    assert f"\n{line}\n" in call_command("show", "unknown").stderr


def test_the_line_names_the_program_as_it_was_called(
    account: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/lib/cortecs_async/__main__.py", "show"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "cortecs_async", "show"])
    last = call_command("show", "unknown").stderr.splitlines()[-1]
    assert last == "More: python3 -m cortecs_async help BadRequestError"


def test_several_instances_name_each_class_once(account: Emulator) -> None:
    account.add_fault(Fault("status", route="stop", status=409, times=1))
    one = account.start_instance(MODEL, HARDWARE)
    done = call_command("stop", "--no-wait", one, "unknown", "other")
    assert done.exit_code == 1
    assert sorted(done.stderr.splitlines()[-2:]) == more(errors.BadRequestError, errors.ConflictError)
    assert len(lines_below(done)) == 2


def test_the_base_class_and_usage_errors_are_not_named(account: Emulator) -> None:
    one = account.start_instance(MODEL, HARDWARE)
    for arguments in (["rm", one], ["stop"], ["xyzzy"], ["ls", "--status", "runing"]):
        done = call_command(*arguments)
        assert done.exit_code
        assert lines_below(done) == []


def test_settings_of_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET", "CORTECS_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert lines_below(call_command("balance")) == more(errors.MissingCredentialsError)
    without_key = call_command("run", MODEL, "echo")
    assert without_key.exit_code == 125
    assert without_key.stderr.splitlines()[-1:] == more(errors.ConfigurationError)
    config = tmp_path / "config.toml"
    config.write_text("[")
    config.chmod(0o600)
    monkeypatch.setenv("CORTECS_CONFIG_FILE", str(config))
    assert lines_below(call_command("--profile", "work", "ls")) == more(errors.ConfigurationError)
    assert lines_below(call_command("logout")) == more(errors.ConfigurationError)


@pytest.mark.sockets
def test_run_and_batch_name_the_class_below_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poll_often(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("Why is the sky blue?\n")
    # A refused start fails at once, however slow the machine is.
    with serving(balance=0.0) as served:
        for name, value in served.env().items():
            monkeypatch.setenv(name, value)
        done = call_command("run", "--hardware", HARDWARE, MODEL, "--", "echo")
        assert done.exit_code == 125
        (line,) = lines_below(done)
        assert [line] == more(errors.InsufficientBalanceError)
        assert done.stderr.splitlines()[-1] == line
        batch = ["batch", "in.txt", "--text", "-o", "out.jsonl", "-m", MODEL, "--hardware", HARDWARE]
        done = call_command(*batch)
        assert done.exit_code == 1
        assert lines_below(done) == [line]
        # The command that continues stays last.
        assert done.stderr.splitlines()[-1].startswith("to continue")
        assert "More: " not in call_command("-q", *batch).stderr


def test_an_error_keeps_its_name_when_there_is_no_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    # With `python -OO`.
    monkeypatch.setattr(errors.TeardownError, "__doc__", None)
    assert call_command("help", "TeardownError").stdout.startswith("TeardownError:")
