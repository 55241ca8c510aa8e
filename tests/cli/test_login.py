"""`cortecs-async login`, `logout` and `--profile`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from _command_line import PROGRAM, Terminal, call_command, environment
from click.testing import Result

from cortecs_async import Secret
from cortecs_async._profiles import load_profile
from cortecs_async.emulator import Emulator

HUSH = "t0p-s3cret"
SENT = f"id\n{HUSH}\n"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the config file. Changes of the environment are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("CORTECS_CONFIG_FILE", str(path))
    return path


def login(*arguments: str, sent: str | bytes = SENT) -> Result:
    return call_command("login", *arguments, input=sent)


def test_credentials_are_stored_without_being_shown(file: Path) -> None:
    done = login("--no-check", sent=f"id\n{HUSH}\nsk-{HUSH}\n")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith(
        f'Stored profile "default" in {file}.\nThe secrets are in this file as plain text'
    )
    assert HUSH not in done.output
    found = load_profile()
    assert found is not None
    assert (found.client_id, found.client_secret, found.api_key) == ("id", Secret(HUSH), Secret(f"sk-{HUSH}"))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("", "Missing client id. Pass three lines on standard input: client id, "),
        ("id\n", "Missing client secret."),
        (f"{SENT}your-key-here\n", "The inference API key that you entered is a placeholder"),
        (f"{SENT}{HUSH}\n", "The inference API key that you entered is your client secret"),
        (b"id\n\xff\n", "Standard input is not UTF-8 text. Nothing was stored."),
    ],
)
def test_nothing_is_stored_that_cannot_be_right(file: Path, sent: str | bytes, expected: str) -> None:
    done = login("--no-check", sent=sent)
    assert done.exit_code == 1
    assert expected in done.stderr
    assert HUSH not in done.output
    assert not file.exists()


def test_invalid_name_is_a_usage_error() -> None:
    assert login("--profile", "a b").exit_code == 2


def test_without_a_config_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_CONFIG_FILE", os.devnull)
    done = login("--no-check")
    assert done.exit_code == 1
    assert done.stderr.startswith(
        "Error: Cannot store a profile: CORTECS_CONFIG_FILE is /dev/null. Unset it, or set"
    )
    done = call_command("--profile", "work", "ls")
    assert 'CORTECS_CONFIG_FILE is /dev/null, so profile "work" cannot be used. Unset it' in done.stderr


def test_variables_that_take_precedence_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_ID", "other")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    done = login("--no-check", "--profile", "work")
    assert "Set in the environment: CORTECS_CLIENT_ID. These variables take precedence" in done.stderr
    done = login("--no-check", "--profile", "work", sent=f"{SENT}sk-1\n")
    assert "Set in the environment: CORTECS_CLIENT_ID, OPENAI_API_KEY. " in done.stderr
    assert "pass --profile work or profile=, or unset them." in done.stderr
    assert 'AsyncCortecs(profile="work")' in done.stderr


def test_logout_removes_the_profile() -> None:
    assert call_command("--profile", "work", "login", "--no-check", input=SENT).exit_code == 0
    done = call_command("logout")
    assert done.exit_code == 1
    assert 'There is no profile "default". Existing profiles: work.' in done.stderr
    assert call_command("logout", "--profile", "work").exit_code == 0
    assert "There are no profiles." in call_command("logout", "--profile", "work").stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("client_id", "\udcff", "client_id is not valid Unicode text"),
        ("api_base_url", "http://user:t0p-s3cret@x", "cannot contain a user name or password"),
    ],
)
def test_values_are_checked_without_a_request_too(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    values = {"client_id": "id", "api_base_url": "", name: value}
    monkeypatch.setenv("CORTECS_API_BASE_URL", values["api_base_url"])
    monkeypatch.setattr(
        "cortecs_async._cli.login._ask", lambda: (values["client_id"], Secret(HUSH), Secret(""))
    )
    done = login("--no-check")
    assert done.exit_code == 1
    assert expected in done.stderr
    assert HUSH not in done.output
    assert not file.exists()


def test_unknown_profile_is_an_error() -> None:
    login("--no-check", "--profile", "work")
    done = call_command("--profile", "wrok", "ls")
    assert (done.exit_code, done.stdout) == (1, "")
    assert 'no profile "wrok". Did you mean work?' in done.stderr


def test_typed_secrets_do_not_go_to_the_address_of_a_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        "CORTECS_CLIENT_ID=x\nCORTECS_CLIENT_SECRET=x\nCORTECS_API_BASE_URL=http://127.0.0.1:9/v1\n"
    )
    login("--no-check")
    found = load_profile("default")
    assert found is not None
    assert found.api_base_url == ""
    # The profile replaces the variables of the file, and its address.
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "cortecs_async._cli.account.call_api", lambda *_, **__: seen.update(os.environ) or ((), None)
    )
    call_command("--profile", "default", "models")
    assert seen["CORTECS_PROFILE"] == "default"
    assert not {"CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET", "CORTECS_API_BASE_URL"} & seen.keys()


@pytest.mark.sockets
class TestWithAService:
    @pytest.fixture
    def emulator(self, file: Path, served: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
        for name in served.env().keys() - {"CORTECS_API_BASE_URL"}:
            monkeypatch.delenv(name)
        monkeypatch.setenv("CORTECS_CONFIG_FILE", str(file))
        return served

    def test_credentials_are_tried(self, file: Path, emulator: Emulator) -> None:
        done = login()
        assert done.exit_code == 1
        assert "Nothing was stored." in done.stderr
        assert HUSH not in done.output
        assert not file.exists()
        done = login(sent=f"{emulator.client_id}\n{emulator.client_secret}\n{emulator.api_key}\n")
        assert done.exit_code == 0, done.stderr
        assert emulator.api_base_url in done.stderr
        assert [each.route for each in emulator.requests].count("token") == 2

    def test_profile_is_used(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        login(
            "--profile", "work", sent=f"{emulator.client_id}\n{emulator.client_secret}\n{emulator.api_key}\n"
        )
        monkeypatch.delenv("CORTECS_API_BASE_URL")
        monkeypatch.setenv("CORTECS_CLIENT_ID", "wrong")
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", "wrong")
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        done = call_command("--profile", "work", "doctor", "--json")
        assert done.exit_code == 0, done.output
        findings = {each["name"]: each["detail"] for each in json.loads(done.stdout)["findings"]}
        assert 'profile "work" in ' in findings["credentials"]
        assert 'found in profile "work" in ' in findings["inference key"]

    def test_terminal_shows_no_secret(self, emulator: Emulator, file: Path, tmp_path: Path) -> None:
        env = {**environment(emulator, tmp_path), "CORTECS_CONFIG_FILE": str(file)}
        with Terminal(PROGRAM, "login", env=env) as terminal:
            for prompt, text in (
                ("Client id: ", emulator.client_id),
                ("Client secret: ", emulator.client_secret),
                ("(empty for none): ", emulator.api_key),
            ):
                terminal.until(lambda shown, prompt=prompt: prompt in shown)  # type: ignore[misc]
                terminal.press(f"{text}\n")
            assert terminal.wait() == 0
        assert emulator.client_secret not in terminal.text
        assert emulator.api_key not in terminal.text
        found = load_profile()
        assert found is not None
        assert found.client_secret == Secret(emulator.client_secret)
