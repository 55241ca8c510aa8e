"""`cortecs-async doctor`: check the requirements of a lease."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import cortecs_async

from .command import cli_command
from .options import json_option
from .output import print_json, sanitize, wrap
from .runtime import FAILED, run_async
from .wording import to_command_line

if TYPE_CHECKING:
    from ..types import Finding

# The packages in each extra. An extra counts as installed if its packages are.
_EXTRAS = {
    "openai": ("openai",),
    "aiohttp": ("aiohttp",),
    "keyring": ("keyring",),
    "tui": ("textual",),
    "emulator": ("starlette", "uvicorn"),
}


@cli_command(examples=("cortecs-async doctor", "cortecs-async doctor --json"))
@json_option()
def doctor(as_json: bool) -> None:
    """Check your credentials, inference API key, and clock, the service, the journal, and the reaper.

    Does not start anything billable. Exits with 1 if a check fails.
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
    from attrs import evolve  # noqa: PLC0415  (loaded with the client)

    client = cortecs_async.AsyncCortecs()  # not entered, because missing credentials would raise an error
    try:
        findings = await client.diagnose()
    finally:
        await client.aclose()
    return tuple(
        evolve(each, detail=to_command_line(each.detail), hint=to_command_line(each.hint))
        for each in findings
    )


def _print_findings(findings: tuple[Finding, ...]) -> None:
    from .tables import stdout_console  # noqa: PLC0415  (slow to import)

    versions = _versions()
    width = max(map(len, [*versions, *(finding.name for finding in findings)])) + 2
    passed, failed = _marks()
    console = stdout_console()
    for finding in findings:
        mark, style = (passed, "green") if finding.ok else (failed, "bold red")
        console.print(f"[{style}]{mark}[/]", end=" ")
        indent = " " * (width + 2)

        def wrapped(text: str, indent: str = indent) -> str:
            lines = (wrap(line, console.width, indent) for line in sanitize(text).splitlines())
            return "\n".join(lines)

        detail = wrapped(finding.detail).removeprefix(indent)
        console.print(f"{finding.name:{width}}{detail}", markup=False, soft_wrap=True)
        if finding.hint:
            console.print(wrapped(finding.hint), markup=False, style="dim", soft_wrap=True)
    console.print()
    extras = ", ".join(f"{name} {_extra_version(name) or 'not installed'}" for name in _EXTRAS)
    for name, version in (*versions.items(), ("extras", extras)):
        lines = wrap(version, console.width, f"  {name:{width}}", " " * (width + 2))
        console.print(lines, markup=False, soft_wrap=True)


def _marks() -> tuple[str, str]:
    """Return the marks for passed and failed, in the encoding of standard output."""
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok ", "BAD"
    return "✓", "✗"


def _versions() -> dict[str, str]:
    return {
        "cortecs-async": cortecs_async.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _extra_version(name: str) -> str | None:
    """Return the versions of an extra's packages, or None if one is missing."""
    import importlib.metadata  # noqa: PLC0415  (slow to import)

    try:
        return " + ".join(importlib.metadata.version(package) for package in _EXTRAS[name])
    except importlib.metadata.PackageNotFoundError:
        return None
