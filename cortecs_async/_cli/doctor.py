"""`cortecs-async doctor`: check the requirements of a lease."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import click

from .. import AsyncCortecs, __version__
from ..types import Finding
from .options import json_option
from .output import print_json, sanitize, stdout_console
from .runtime import FAILED, run_async

# The packages of each extra. It is installed if they are.
_EXTRAS = {
    "openai": ("openai",),
    "aiohttp": ("httpx-aiohttp",),
    "tui": ("textual",),
    "emulator": ("starlette", "uvicorn"),
}


@click.command()
@json_option()
def doctor(as_json: bool) -> None:
    """Check credentials, service, clock, journal and reaper.

    Starts nothing that is billed. Exits with 1 if a check fails.
    """
    findings = run_async(_diagnose)
    is_ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({
            "ok": is_ok,
            "findings": findings,
            "versions": _versions(),
            "extras": {name: _extra_version(name) for name in _EXTRAS},
        })  # fmt: skip
    else:
        _print_findings(findings)
    if not is_ok:
        sys.exit(FAILED)


async def _diagnose() -> tuple[Finding, ...]:
    async with AsyncCortecs() as client:
        return await client.diagnose()


def _print_findings(findings: tuple[Finding, ...]) -> None:
    versions = _versions()
    width = max(map(len, [*versions, *(finding.name for finding in findings)])) + 2
    passed, failed = _marks()
    console = stdout_console()
    for finding in findings:
        mark, style = (passed, "green") if finding.ok else (failed, "bold red")
        console.print(f"[{style}]{mark}[/]", end=" ")
        console.print(sanitize(f"{finding.name:{width}}{finding.detail}"), markup=False)
        if finding.hint:
            console.print(sanitize(f"{'':{width + 2}}{finding.hint}"), markup=False, style="dim")
    console.print()
    extras = ", ".join(f"{name} {_extra_version(name) or 'not installed'}" for name in _EXTRAS)
    for name, version in (*versions.items(), ("extras", extras)):
        console.print(f"  {name:{width}}{version}", markup=False)


def _marks() -> tuple[str, str]:
    """Return the marks for passed and failed, in the encoding of standard output."""
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok ", "BAD"
    return "✓", "✗"


def _versions() -> dict[str, str]:
    return {
        "cortecs-async": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _extra_version(name: str) -> str | None:
    """Return the versions of the packages of an extra. None if one is missing."""
    try:
        return " + ".join(importlib.metadata.version(package) for package in _EXTRAS[name])
    except importlib.metadata.PackageNotFoundError:
        return None
