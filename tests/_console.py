"""Follow a page like a reader: save its programs, run its commands, and compare their output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`(\w+\.py)`")
# Ports, instance numbers, and times differ in each run.
_VARIABLE = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=instance-)\d+|\b[\d.]+(?= s\b)")


@frozen
class Step:
    """A code block on a page: `python` is a file to save, `sh` are commands, `text` is their output."""

    kind: str
    text: str
    file: str = ""


def sections(page: Path) -> dict[str, list[Step]]:
    """Return the code blocks on a page by section title, or by the page's first line."""
    found: dict[str, list[Step]] = {}
    for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        title = part.partition("\n")[0]
        found[title] = list(_steps(part))
    return found


def _steps(part: str) -> Iterator[Step]:
    end = 0
    for fence in _FENCE.finditer(part):
        names = _FILE.findall(part[end : fence.start()])
        end = fence.end()
        yield Step(fence[1], fence[2], names[-1] if names else "")


def follow(steps: list[Step], directory: Path, env: Mapping[str, str], sleep: Callable[[float], None]) -> int:
    """Follow the steps of a section and return the number of compared outputs.

    A program's file name is the last one named before it. If `# press Ctrl-C` follows a command, that happens
    once the command has printed a line. `sleep` replaces the command of that name. From standard error, only
    the note about an empty account is compared.
    """
    compared, output = 0, ""
    for step in steps:
        if step.kind == "python":
            (directory / step.file).write_text(step.text, encoding="utf-8")
        elif step.kind == "sh":
            first, *rest = re.split(r"^sleep (\d+)\n", step.text, flags=re.MULTILINE)
            output = typed(first, directory, env)
            for seconds, commands in zip(rest[::2], rest[1::2], strict=True):
                sleep(float(seconds))
                output += typed(commands, directory, env)
        else:
            expected = _VARIABLE.sub("N", step.text).splitlines()
            assert _VARIABLE.sub("N", output).splitlines() == expected, output
            compared += 1
    return compared


def typed(commands: str, directory: Path, env: Mapping[str, str]) -> str:
    """Run shell commands and return their output. `python` is the test's interpreter."""
    with subprocess.Popen(
        ["bash", "-c", commands],
        cwd=directory,
        env={**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            first_line = ""
            if "# press Ctrl-C" in commands:
                assert process.stdout is not None
                first_line = process.stdout.readline()
                os.killpg(process.pid, signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    # Without tracebacks and messages from the shell.
    notes = "".join(line for line in errors.splitlines(keepends=True) if line == "No instances.\n")
    return first_line + output + notes
