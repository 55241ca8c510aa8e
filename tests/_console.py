"""Follows a page as its reader does: saves the programs, types the commands, and looks at what they show."""

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
# Ports, the numbers of instances and times are those of whoever types it.
_OWN = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=instance-)\d+|\b[\d.]+(?= s\b)")


@frozen
class Step:
    """A block of a page: `python` is a file to be saved, `sh` is to be typed, `text` is what that shows."""

    kind: str
    text: str
    file: str = ""


def sections(page: Path) -> dict[str, list[Step]]:
    """The blocks of a page by the titles of its sections, those before the first without one."""
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
    """Takes the steps of a section; the number of shown texts that were compared.

    A program's file is the last that is named before it. `# press Ctrl-C` behind a command does that once the
    command has shown a line. `sleep` replaces the command of that name. Standard error is not compared,
    except for commands that show nothing else.
    """
    compared, shown = 0, ""
    for step in steps:
        if step.kind == "python":
            (directory / step.file).write_text(step.text, encoding="utf-8")
        elif step.kind == "sh":
            first, *rest = re.split(r"^sleep (\d+)\n", step.text, flags=re.MULTILINE)
            shown = typed(first, directory, env)
            for seconds, commands in zip(rest[::2], rest[1::2], strict=True):
                sleep(float(seconds))
                shown += typed(commands, directory, env)
        else:
            assert _OWN.sub("N", shown).splitlines() == _OWN.sub("N", step.text).splitlines(), shown
            compared += 1
    return compared


def typed(command: str, directory: Path, env: Mapping[str, str]) -> str:
    """What a command shows, in which `python` is the interpreter of the test."""
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=directory,
        env={**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            shown = ""
            if "# press Ctrl-C" in command:
                assert process.stdout is not None
                shown = process.stdout.readline()
                os.killpg(process.pid, signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return shown + output + _said(errors)


def _said(errors: str) -> str:
    """What commands say to people, without tracebacks and the shell's own words."""
    return "".join(line for line in errors.splitlines(keepends=True) if line == "No instances.\n")
