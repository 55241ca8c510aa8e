"""Draws the pictures of the command line from what it really shows: `nox -s screens`.

The commands run on the emulator, in a terminal of their own; pyte is that, and rich draws what stands on it.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from cortecs_async.emulator import Emulator, serve_emulator

FOLDER = Path(__file__).parent
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HARDWARE = "NVIDIA_H100_1"

# pyte's names of colours that rich calls otherwise.
_COLOURS = {"brown": "yellow", "default": None}

Condition = Callable[[str], bool]


def show(
    command: Sequence[str], *, env: dict[str, str], size: tuple[int, int], until: Condition, keys: str = ""
) -> pyte.Screen:
    """What a command has on its screen when a condition is fulfilled; it is ended then, in order."""
    columns, rows = size
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "cortecs_async", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **env, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        start_new_session=True,
    ) as process:
        os.close(slave)
        deadline = time.monotonic() + 60
        while not until("\n".join(screen.display)):
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(screen.display))
            if select.select([master], [], [], 0.05)[0]:
                stream.feed(os.read(master, 65536))
        if keys:
            os.write(master, keys.encode())
        else:
            process.terminate()
        while process.poll() is None:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    os.read(master, 65536)
                except OSError:
                    break
        os.close(master)
    return screen


def draw(screen: pyte.Screen, title: str, path: Path) -> None:
    """Writes what stands on a screen as a picture."""
    console = Console(width=screen.columns, record=True, file=io.StringIO(), force_terminal=True)
    last = max(row for row in range(screen.lines) if screen.display[row].strip())
    for row in range(last + 1):
        line = Text(no_wrap=True)
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            line.append(cell.data, style_of(cell))
        console.print(line, end="\n")
    # Fonts of the reader's own, so that the picture asks nobody for anything.
    svg = console.export_svg(title=title)
    path.write_text("".join(part for part in strip_fonts(svg)), encoding="utf-8")
    print(path)


def strip_fonts(svg: str) -> list[str]:
    """The picture without the fonts that it would fetch."""
    parts = svg.split("@font-face {")
    return [parts[0], *(part.partition("}")[2] for part in parts[1:])]


def style_of(cell: pyte.screens.Char) -> Style:
    """A cell's style, as rich has it."""

    def colour(name: str) -> str | None:
        name = name.replace("bright", "bright_")
        return f"#{name}" if len(name) == 6 and not name.isalpha() else _COLOURS.get(name, name)

    return Style(color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, reverse=cell.reverse)


def write_input(path: Path, count: int) -> None:
    """A file of so many chat completions."""
    with path.open("w") as file:
        for number in range(count):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 16}
            request = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**request, "body": body}) + "\n")


async def main() -> None:
    """Draws all of them."""
    with tempfile.TemporaryDirectory() as folder:
        async with serve_emulator(step_seconds=1.0, answer_seconds=0.2) as emulator:
            env = {**emulator.env(), "CORTECS_STATE_DIR": str(Path(folder, "state"))}
            batch(Path(folder), env)
            watch(emulator, env)


def batch(folder: Path, env: dict[str, str]) -> None:
    """Draws a batch in the middle of its run."""
    source, target = folder / "prompts.jsonl", folder / "answers.jsonl"
    write_input(source, 20_000)
    command = (
        "batch",
        str(source),
        "-o",
        str(target),
        "-m",
        MODEL,
        "--hardware",
        HARDWARE,
        "--instances",
        "2",
    )
    screen = show(command, env=env, size=(96, 12), until=lambda text: re.search(r" · 4. %", text) is not None)
    title = "cortecs-async batch prompts.jsonl -o answers.jsonl -m ... --instances 2"
    draw(screen, title, FOLDER / "batch.svg")


def watch(emulator: Emulator, env: dict[str, str]) -> None:
    """Draws two instances on their way."""
    first = emulator.start_instance(MODEL, HARDWARE)
    time.sleep(1.2)
    second = emulator.start_instance(MODEL, HARDWARE, num_workers=2)
    screen = show(
        ("watch", first, second), env=env, size=(110, 12), until=lambda text: "4/5" in text and "3/5" in text
    )
    draw(screen, f"cortecs-async watch {first} {second}", FOLDER / "watch.svg")


if __name__ == "__main__":
    asyncio.run(main())
