"""Run the Python blocks in a page's section in a separate process, and return a result.

The sections set environment variables and defaults of their frameworks. A framework may also send telemetry
when the interpreter exits.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _world import MODEL

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import serve_emulator

DOCS = Path(__file__).parent.parent / "docs"
# Some frameworks take a long time to import on a busy machine.
TIMEOUT = 600.0


def run_section(page: str, heading: str, *, show: str) -> Any:
    """Run the blocks under a page's heading on an emulator, then evaluate an expression.

    Args:
        page: The page in docs/.
        heading: The heading of the section. Its blocks share their variables, and have `client` and `inst`.
        show: The expression. Its value is converted to JSON and back.

    Raises:
        AssertionError: If the section fails, warns about unclosed resources, leaves an instance, or connects
            to any other host.
    """
    with tempfile.TemporaryDirectory() as scratch:
        hosts, result = Path(scratch, "hosts"), Path(scratch, "result")
        done = subprocess.run(
            [sys.executable, "-W", "default::ResourceWarning", __file__, page, heading, show, hosts, result],
            env={
                **os.environ,
                "HOME": scratch,  # some frameworks write to it
                "CORTECS_STATE_DIR": f"{scratch}/state",
                "PYTHONPATH": str(Path(__file__).parent),  # PYTHONSAFEPATH would leave it out
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # Includes exceptions in threads and warnings from the garbage collector.
        assert re.search("Traceback|unclosed", done.stderr) is None, done.stderr
        assert set(hosts.read_text().split()) == {"127.0.0.1"}, hosts.read_text()
        return json.loads(result.read_text())


def blocks(page: str, heading: str) -> list[str]:
    """Return the Python blocks under a heading, each padded to its line numbers on the page."""
    text = Path(DOCS, page).read_text()
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"{page} has no section {heading}"
    found = list(re.finditer(r"^```python\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL))
    assert found, f"section {heading} of {page} has no Python"
    return ["\n" * text.count("\n", 0, section.start(1) + block.start(1)) + block[1] for block in found]


def main(page: str, heading: str, show: str, hosts: str, result: str) -> None:
    """Run the process."""
    record_hosts(hosts)
    with serve_emulator(step_seconds=0.01) as emulator:
        os.environ.update(emulator.env())
        shown = asyncio.run(run_blocks(page, heading, show))
        assert {each.status for each in emulator.requests if each.route == "chat"} == {200}
        assert emulator.existing == ()
    Path(result).write_text(json.dumps(shown))


async def run_blocks(page: str, heading: str, show: str) -> Any:
    """Run the blocks and return the value of `show`."""
    async with AsyncCortecs() as client, client.instance(MODEL) as inst:
        names: dict[str, Any] = {"client": client, "inst": inst}
        for source in blocks(page, heading):
            # With the full path, because some frameworks read the source of a function.
            code = compile(source, str(DOCS / page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            pending = eval(code, names)  # noqa: S307
            if inspect.isawaitable(pending):
                await pending
        return eval(show, names)  # noqa: S307


def record_hosts(path: str) -> None:
    """Record every host that is looked up or connected to, until the end of the process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and arguments[0] is not None:
            os.write(file, f"{arguments[0]}\n".encode())
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            os.write(file, f"{arguments[1][0]}\n".encode())

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
