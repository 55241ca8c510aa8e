"""Measure the import of the client, and the time to its first response."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _measure import alternate_programs, quotients
from _report import Row, ratio, spread_table
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
        response = await client.get(os.environ["CORTECS_API_BASE_URL"] + "/models/")
        assert json.loads(response.content)["models"]

asyncio.run(main())
"""

_RESPONSES = {"first response, bare httpx": _BARE, "first response, ours": _OURS}


@contextmanager
def bare_environment() -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield an interpreter that has the package without extras, its environment variables, and a description.

    httpx imports click, rich and pygments for its command line if they are installed. That would make httpx
    look more expensive than it is.
    """
    env = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--quiet", str(_ROOT)]
            # Do not import the working tree instead of the installed package.
            env.pop("PYTHONPATH", None)
            subprocess.run(install, check=True, capture_output=True, env=env)
        except (OSError, subprocess.CalledProcessError):
            description = "the environment of the benchmarks, because a new one could not be created: its "
            description += "packages make `import httpx` look more expensive than it is"
            yield sys.executable, dict(os.environ), description
        else:
            yield str(python), env, "a new environment that has only the package without extras"


def rows() -> list[Row]:
    """Measure fresh interpreters."""
    with bare_environment() as (python, env, description), Server() as server:
        samples = alternate_programs(
            _IMPORTS | _RESPONSES, python=python, env={**env, **server.env}, rounds=_ROUNDS
        )
        assert server.counts() == {"models": 2 * (_ROUNDS + 1)}
    imports = quotients(samples, "import AsyncCortecs", "import httpx")
    responses = quotients(samples, "first response, ours", "first response, bare httpx")
    row = Row(
        name="import",
        title="Import and startup",
        text=f"""
            The CPU time of fresh interpreters, in {description}. The first response is the total: import,
            create a client, call `client.models.list()` and close the client, compared with the same in bare
            httpx.

            The import alone is cheap because httpx is imported with the first client, so the second ratio is
            the one that counts. More expensive there: our client imports attrs and its own modules in
            addition to httpx, and builds its decoders.
        """,
        ratios=[
            ratio("import AsyncCortecs / import httpx", imports, 1.3),
            ratio("first response, ours / bare httpx", responses),
        ],
        tables=[spread_table("program", "CPU, ms", samples, 1000)],
    )
    return [row]
