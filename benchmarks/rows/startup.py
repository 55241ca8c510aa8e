"""Measure the import of the client, and the time to its first response."""

from __future__ import annotations

from _measure import alternate_commands, env_without_source, installed, quotients
from _report import Row, ratio, spread_table
from _server import Server

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


def row() -> Row:
    """Measure fresh interpreters."""
    python = installed() / "python"
    with Server() as server:
        samples = alternate_commands(
            {name: [python, "-P", "-c", source] for name, source in (_IMPORTS | _RESPONSES).items()},
            env={**env_without_source(), **server.env},
            rounds=_ROUNDS,
        )
        assert server.counts() == {"models": 2 * (_ROUNDS + 1)}
    imports = quotients(samples, "import AsyncCortecs", "import httpx")
    responses = quotients(samples, "first response, ours", "first response, bare httpx")
    return Row(
        name="import",
        title="Import and startup",
        text="""
            The CPU time of fresh interpreters, in a new environment that has only the package without extras.
            The first response is the total: import, create a client, call `client.models.list()` and close
            the client, compared with the same in bare httpx.

            The import alone is cheap because httpx is imported with the first client, so the second ratio is
            the one that counts. There, our client imports attrs and its own modules in addition to httpx, and
            builds its decoders.
        """,
        ratios=[
            ratio("import AsyncCortecs / import httpx", imports, 0.5),
            ratio("first response, ours / bare httpx", responses, 1.1),
        ],
        tables=[spread_table("program", "CPU, ms", samples, 1000)],
    )
