"""Measure the command line, compared with the import of click and with a script."""

from __future__ import annotations

import asyncio
import os

from _measure import alternate_commands, env_without_source, installed, quotients
from _report import Row, ratio, spread_table
from _server import MODEL, Server

from cortecs_async import AsyncCortecs

_ROUNDS = 11
_NUM_INSTANCES = 3

_HELP = ("--version", "--help", "ls --help", "run --help")

_CLICK = "import click"
_SCRIPT = "`ls` by hand"
_SCRIPT_ALONE = "`ls` by hand, without click and rich installed"

_LIST = """
import json, os
import httpx

url = os.environ["CORTECS_API_BASE_URL"]
body = {
    "grant_type": "client_credentials",
    "client_id": os.environ["CORTECS_CLIENT_ID"],
    "client_secret": os.environ["CORTECS_CLIENT_SECRET"],
}
with httpx.Client() as client:
    token = json.loads(client.post(url + "/oauth2/token", json=body).raise_for_status().content)
    headers = {"Authorization": "Bearer " + token["access_token"]}
    response = json.loads(client.get(url + "/instances/", headers=headers).raise_for_status().content)
for each in response["instances"]:
    print(each["instance_id"], each["instance_args"]["model_id"], each["instance_status"]["status"])
"""


async def start_instances() -> None:
    """Start instances for `ls` to list."""
    async with AsyncCortecs(guard="off", journal="off") as client:
        for _ in range(_NUM_INSTANCES):
            await client.instances.start(MODEL)


def row() -> Row:
    """Measure fresh processes."""
    programs, python_alone = installed("[cli]"), installed() / "python"
    with Server() as server:
        os.environ.update(server.env)
        asyncio.run(start_instances())
        python = (programs / "python", "-P", "-c")
        before = server.counts()
        samples = alternate_commands(
            {
                _CLICK: [*python, "import click"],
                **{f"`{each}`": [programs / "cortecs-async", *each.split()] for each in (*_HELP, "ls")},
                _SCRIPT: [*python, _LIST],
                _SCRIPT_ALONE: [python_alone, "-P", "-c", _LIST],
            },
            env=env_without_source(),
            rounds=_ROUNDS,
        )
        counts = {route: count - before.get(route, 0) for route, count in server.counts().items()}
        # The same requests by the command and by the two scripts.
        num_requests = 3 * (_ROUNDS + 1)
        assert counts == {"start": 0, "token": num_requests, "list": num_requests}, counts
    return Row(
        name="cli",
        title="The command line",
        text=f"""
            The CPU time of `cortecs-async` in a new environment that has the package with its `cli` extra,
            compared with `python -c "import click"` there. `ls` lists {_NUM_INSTANCES} instances to a pipe,
            compared with a script that sends the same two requests with httpx, parses the responses with
            `json.loads`, and prints a line per instance.

            httpx imports click, rich and pygments for its own command line if they are installed, as they are
            with the `cli` extra. Without them, the script is cheaper.
        """,
        ratios=[
            *(
                ratio(f"{each} / import click", quotients(samples, f"`{each}`", _CLICK), 2.0)
                for each in _HELP
            ),
            ratio("ls / by hand with httpx and json", quotients(samples, "`ls`", _SCRIPT), 1.3),
            ratio("ls / by hand, without click and rich", quotients(samples, "`ls`", _SCRIPT_ALONE)),
        ],
        tables=[spread_table("command", "CPU, ms", samples, 1000)],
    )
