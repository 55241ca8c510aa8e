"""Draw the pictures of the command line from its real output: `nox -s screens`.

The commands run against the emulator in a pseudo-terminal. pyte interprets their output, and rich draws it.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import itertools
import json
import os
import pty
import re
import select
import signal
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

# pyte's colors that rich names differently.
_COLORS = {"brown": "yellow", "default": None}


def capture(
    command: Sequence[str], *, env: dict[str, str], size: tuple[int, int], until: Callable[[str], object]
) -> pyte.Screen:
    """Run a command until its screen meets a condition. Return that screen and terminate the command."""
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
        process.terminate()
        while process.poll() is None:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    os.read(master, 65536)
                except OSError:
                    break
        os.close(master)
    return screen


def draw(screen: pyte.Screen, title: str, path: Path, rows: int | None = None) -> None:
    """Write a screen, or its first rows, as an SVG file."""
    console = Console(width=screen.columns, record=True, file=io.StringIO(), force_terminal=True)
    last = max(row for row in range(rows or screen.lines) if screen.display[row].strip())
    for row in range(last + 1):
        line = Text(no_wrap=True)
        cells = (screen.buffer[row][column] for column in range(screen.columns))
        for style, run in itertools.groupby(cells, rich_style):
            line.append("".join(cell.data for cell in run), style)
        console.print(line, end="\n")
    path.write_text(without_fonts(console.export_svg(title=title)), encoding="utf-8")
    print(path)


def without_fonts(svg: str) -> str:
    """Remove the fonts that a picture would download."""
    first, *rest = svg.split("@font-face {")
    return first + "".join(part.partition("}")[2] for part in rest)


def rich_style(cell: pyte.screens.Char) -> Style:
    """Convert the style of a cell."""

    def color(name: str) -> str | None:
        name = name.replace("bright", "bright_")
        return f"#{name}" if len(name) == 6 and not name.isalpha() else _COLORS.get(name, name)

    return Style(color=color(cell.fg), bgcolor=color(cell.bg), bold=cell.bold, reverse=cell.reverse)


def write_requests(path: Path, count: int) -> None:
    """Write a file of chat completion requests."""
    with path.open("w") as file:
        for number in range(count):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 16}
            request = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**request, "body": body}) + "\n")


async def main() -> None:
    """Draw all pictures."""
    draw_demo()
    with tempfile.TemporaryDirectory() as folder:
        async with serve_emulator(step_seconds=1.0, answer_seconds=0.2) as emulator:
            env = {**emulator.env(), "CORTECS_STATE_DIR": str(Path(folder, "state"))}
            draw_batch(Path(folder), env)
            draw_watch(emulator, env)
            draw_top(Path(folder), emulator, env)


def draw_demo() -> None:
    """Draw the demo up to its receipt."""
    screen = capture(("demo",), env={}, size=(96, 40), until=lambda text: "What to try next" in text)
    (end,) = (row for row, line in enumerate(screen.display) if line.startswith("What to try next"))
    draw(screen, "python -m cortecs_async demo", FOLDER / "demo.svg", rows=end)


def draw_batch(folder: Path, env: dict[str, str]) -> None:
    """Draw a batch in the middle of its run."""
    source, target = folder / "prompts.jsonl", folder / "answers.jsonl"
    write_requests(source, 20_000)
    files = ("batch", str(source), "-o", str(target))
    screen = capture(
        (*files, "-m", MODEL, "--hardware", HARDWARE, "--instances", "2"),
        env=env,
        size=(96, 12),
        until=lambda text: re.search(r" · 4.%", text),
    )
    title = "cortecs-async batch prompts.jsonl -o answers.jsonl -m ... --instances 2"
    draw(screen, title, FOLDER / "batch.svg")


def draw_watch(emulator: Emulator, env: dict[str, str]) -> None:
    """Draw two starting instances."""
    first = emulator.start_instance(MODEL, HARDWARE)
    time.sleep(1.2)
    second = emulator.start_instance(MODEL, HARDWARE, num_workers=2)
    command = ("watch", first, second)
    screen = capture(command, env=env, size=(110, 12), until=lambda text: "4/5" in text and "3/5" in text)
    draw(screen, f"cortecs-async {' '.join(command)}", FOLDER / "watch.svg")


# Leases an instance, like a reader's program.
TRAIN = f"""
import asyncio
from cortecs_async import AsyncCortecs

async def main():
    async with AsyncCortecs() as client, client.instance("{MODEL}", "{HARDWARE}"):
        await asyncio.sleep(600)

asyncio.run(main())
"""


def draw_top(folder: Path, emulator: Emulator, env: dict[str, str]) -> None:
    """Draw instances with three owners."""
    for instance_id in emulator.existing:
        emulator.delete_instance(instance_id)
    emulator.start_instance("microsoft/phi-4", "NVIDIA_L40S_1")
    acquire = ("start", "Qwen/Qwen2.5-32B-Instruct", "NVIDIA_H100_2", "--max-lifetime", "2h")
    environment = {**os.environ, **env}
    subprocess.run([sys.executable, "-m", "cortecs_async", "-q", *acquire], env=environment, check=True)
    (folder / "train.py").write_text(TRAIN)
    with subprocess.Popen(
        [sys.executable, "train.py"], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    ) as train:
        try:
            screen = capture(
                ("top",), env=env, size=(140, 12), until=lambda text: "train.py" in text and "0.05" in text
            )
        finally:
            train.send_signal(signal.SIGINT)  # the program then releases its instance
    release = ("rm", "--force", *emulator.existing)
    subprocess.run([sys.executable, "-m", "cortecs_async", "-q", *release], env=environment, check=True)
    draw(screen, "cortecs-async top", FOLDER / "top.svg")


if __name__ == "__main__":
    asyncio.run(main())
