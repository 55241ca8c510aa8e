"""`cortecs-async doctor`: checks, hints, versions and the exit status."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cortecs_async import AsyncCortecs, __version__
from cortecs_async._cli import cli, doctor
from cortecs_async.emulator import serve_emulator
from cortecs_async.types import Finding

GOOD = Finding(name="service", ok=True, detail="https://api.test/v1 responds")
HINTED = Finding(name="journal", ok=True, detail="/state can be written", hint="sweep them")
BAD = Finding(name="token", ok=False, detail="401 [bold]\x1b[2J", hint="check client_id")


@pytest.fixture
def run_doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def run(*args: str, findings: tuple[Finding, ...], **options: Any) -> Result:
        async def diagnose(self: AsyncCortecs) -> tuple[Finding, ...]:
            return findings

        monkeypatch.setattr(AsyncCortecs, "diagnose", diagnose)
        monkeypatch.setattr(platform, "platform", lambda: "this machine")  # or it asks `uname`
        return CliRunner().invoke(cli, ["doctor", *args], **options)

    return run


def test_findings_and_hints_are_printed(run_doctor: Callable[..., Result]) -> None:
    result = run_doctor(findings=(GOOD, HINTED))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[:3] == [
        "✓ service        https://api.test/v1 responds",
        "✓ journal        /state can be written",
        "                 sweep them",
    ]


def test_failed_check_shows_its_hint_and_exits_with_1(run_doctor: Callable[..., Result]) -> None:
    result = run_doctor(findings=(GOOD, BAD))
    assert result.exit_code == 1
    assert "✗ token          401 [bold]\ufffd[2J\n                 check client_id\n" in result.output


def test_versions_and_extras(run_doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "uvicorn":
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name}-1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    output = run_doctor(findings=(GOOD,)).output
    assert __version__ in output
    assert platform.python_version() in output
    assert "openai openai-1.0" in output
    assert "aiohttp aiohttp-1.0" in output
    assert "tui textual-1.0" in output
    assert "emulator not installed" in output  # without uvicorn it does not run


def test_as_json(run_doctor: Callable[..., Result]) -> None:
    result = run_doctor("--json", findings=(GOOD, BAD))
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    found = json.loads(result.output)
    assert found["ok"] is False
    assert found["findings"][1] == {"name": "token", "ok": False, "detail": BAD.detail, "hint": BAD.hint}
    assert found["versions"]["cortecs-async"] == __version__
    assert set(found["extras"]) == {"openai", "aiohttp", "keyring", "tui", "emulator"}


def test_marks_in_an_ascii_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert doctor._marks() == ("ok ", "BAD")


def test_invalid_settings_are_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_API_BASE_URL", "ftp://nowhere")
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: CORTECS_API_BASE_URL must be an absolute http(s) URL")


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_all_checks_pass_against_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_emulator() as emu:
        for name, value in emu.env().items():
            monkeypatch.setenv(name, value)
        findings = await doctor._diagnose()
        assert [each.name for each in findings if not each.ok] == []
        assert (
            next(each for each in findings if each.name == "reaper").detail
            == "starts and reaches the service"
        )
        assert emu.ledger == ()
        secret = emu.client_secret
    assert secret not in repr(findings)
