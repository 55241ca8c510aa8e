"""Importing the client, and the way to its first answer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _measure import alternate_programs, quotients, spread
from _report import Row, Table, ratio
from _server import Server

_ROOT = Path(__file__).parents[2]
_ROUNDS = 17

_IMPORTS = {
    "an interpreter": "pass",
    "import httpx": "import httpx",
    "import AsyncCortecs": "from cortecs_async import AsyncCortecs",
}

_OURS = """
import asyncio
from cortecs_async import AsyncCortecs

async def main():
    async with AsyncCortecs() as client:
        assert await client.models.list()

asyncio.run(main())
"""

_BARE = """
import asyncio, json, os
import httpx

async def main():
    async with httpx.AsyncClient() as client:
        answer = await client.get(os.environ["CORTECS_API_BASE_URL"] + "/models/")
        assert json.loads(answer.content)["models"]

asyncio.run(main())
"""

_ANSWERS = {"first answer, bare httpx": _BARE, "first answer, ours": _OURS}


@contextmanager
def bare_environment() -> Iterator[tuple[str, dict[str, str], str]]:
    """An interpreter that has the package without its extras, its environment, and what it is, in words.

    httpx imports click, rich and pygments, for its command line, where they are installed: beside them it
    would look dear, and we cheap.
    """
    env = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--quiet", str(_ROOT)]
            # The tree must not stand in for what is installed.
            env.pop("PYTHONPATH", None)
            subprocess.run(install, check=True, capture_output=True, env=env)
        except (OSError, subprocess.CalledProcessError):
            words = "in the environment of the benchmarks, since no other could be made: with what it has "
            words += "installed, `import httpx` looks dearer than it is"
            yield sys.executable, dict(os.environ), words
        else:
            yield str(python), env, "in a new environment with the package, without extras, and nothing else"


def row() -> Row:
    """Fresh interpreters."""
    with bare_environment() as (python, env, words), Server() as server:
        samples = alternate_programs(
            _IMPORTS | _ANSWERS, python=python, env={**env, **server.env}, rounds=_ROUNDS
        )
        assert server.counts() == {"models": 2 * (_ROUNDS + 1)}
    of_import = quotients(samples, "import AsyncCortecs", "import httpx")
    of_answer = quotients(samples, "first answer, ours", "first answer, bare httpx")
    lines = []
    for name, values in samples.items():
        found = spread(values)
        lines.append(
            (
                name,
                f"{found.median * 1000:.0f}",
                f"{found.low * 1000:.0f} to {found.high * 1000:.0f}",
                str(found.rounds),
            )
        )
    return Row(
        name="import",
        title="Import and start-up",
        text=f"""
            CPU of fresh interpreters, {words}. The first answer is the honest total: import, a client,
            `client.models.list()`, the end of it, beside the same in bare httpx.

            The import alone is cheap because it leaves httpx for the first client; so what counts is the
            second figure. Slower than a peer, there: on top of httpx ours imports attrs and its own modules
            and builds its decoders.
        """,
        ratios=[
            ratio("import AsyncCortecs / import httpx", of_import, 1.3),
            ratio("first answer, ours / bare httpx", of_answer),
        ],
        tables=[Table(("program", "CPU, ms", "quartiles", "rounds"), lines)],
    )
