"""`cortecs-async doctor`: whether everything is there that a lease relies on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import click

from .. import AsyncCortecs, __version__
from ..types import Finding
from .options import json_option
from .output import FAILED, clean, output, print_json, run

# What an extra brings, and so tells that it is installed.
_EXTRAS = {
    "openai": ("openai",),
    "aiohttp": ("httpx-aiohttp",),
    "tui": ("textual",),
    "emulator": ("starlette", "uvicorn"),
}


@click.command()
@json_option()
def doctor(as_json: bool) -> None:
    """Check credentials, service, clock, journal and reaper. Starts nothing that is billed.

    Exits with 1 when something is not as it should be.
    """
    findings = run(_diagnose)
    if as_json:
        print_json({
            "ok": all(each.ok for each in findings),
            "findings": findings,
            "versions": _versions(),
            "extras": {name: _extra(name) for name in _EXTRAS},
        })  # fmt: skip
    else:
        _show(findings)
    if not all(each.ok for each in findings):
        sys.exit(FAILED)


async def _diagnose() -> tuple[Finding, ...]:
    async with AsyncCortecs() as client:
        return await client.diagnose()


def _show(findings: tuple[Finding, ...]) -> None:
    versions = _versions()
    width = max(map(len, [*versions, *(each.name for each in findings)])) + 2
    yes, no = _marks()
    console = output()
    for each in findings:
        mark, style = (yes, "green") if each.ok else (no, "bold red")
        console.print(f"[{style}]{mark}[/]", end=" ")
        console.print(clean(f"{each.name:{width}}{each.detail}"), markup=False)
        if each.hint:
            console.print(clean(f"{'':{width + 2}}{each.hint}"), markup=False, style="dim")
    console.print()
    for name, version in versions.items():
        console.print(f"  {name:{width}}{version}", markup=False)
    extras = ", ".join(f"{name} {_extra(name) or 'not installed'}" for name in _EXTRAS)
    console.print(f"  {'extras':{width}}{extras}", markup=False)


def _marks() -> tuple[str, str]:
    """Signs for right and wrong that standard output can carry."""
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


def _extra(name: str) -> str | None:
    """The version of what makes an extra; None when any of it is missing."""
    try:
        return " + ".join(importlib.metadata.version(each) for each in _EXTRAS[name])
    except importlib.metadata.PackageNotFoundError:
        return None
