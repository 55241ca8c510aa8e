"""The emulator in a process of its own, so that its work is not charged to a client.

`Server` starts it and asks it what it saw; run as a program this module is that process. The two speak
JSON, a line each way, through its standard input and output.
"""

from __future__ import annotations

import asyncio
import collections
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from cortecs_async.emulator import Emulator, serve_emulator

# The processors that there are, read before this process keeps to one of them.
_PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_NUM_STEPS = 5


class Server:
    """A process with the emulator: a context manager.

    Args:
        ready_after: Seconds from the start of an instance until it runs.

    Attributes:
        env: The variables that point a client at it, with a state directory that is new.
    """

    def __init__(self, ready_after: float = 0.0) -> None:
        self.ready_after = ready_after
        self.env: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._states = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        # The first of the steps is there from the beginning.
        step_seconds = self.ready_after / (_NUM_STEPS - 1)
        command = [sys.executable, __file__, str(step_seconds), *map(str, _PROCESSORS[:1])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        self.env = {**self._ask({"what": "env"}), "CORTECS_STATE_DIR": self._states.name}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._states.cleanup()

    @property
    def url(self) -> str:
        """The base URL of the API."""
        return self.env["CORTECS_API_BASE_URL"]

    @property
    def token_request(self) -> dict[str, str]:
        """The body that gets a token."""
        return {
            "grant_type": "client_credentials",
            "client_id": self.env["CORTECS_CLIENT_ID"],
            "client_secret": self.env["CORTECS_CLIENT_SECRET"],
        }

    def counts(self, since: float = -math.inf, until: float = math.inf) -> dict[str, int]:
        """How many requests of each route came between two times of `time.monotonic` of any process."""
        found: dict[str, int] = self._ask({"what": "counts", "since": since, "until": until})
        return found

    def existing(self) -> int:
        """How many instances there are."""
        found: int = self._ask({"what": "existing"})
        return found

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def keep_apart() -> None:
    """Keeps this process and the clients that it starts to one processor; a server keeps to another.

    So neither moves between them, and threads that wait for each other's lock take no more or less CPU by
    the luck of a second processor being free.
    """
    if len(_PROCESSORS) > 1:
        os.sched_setaffinity(0, _PROCESSORS[-1:])


def forget_surroundings() -> None:
    """No proxy, credential or address of the machine gets into what is measured."""
    for name in list(os.environ):
        if re.fullmatch(r"(CORTECS|OPENAI)_.*|(all|https?|no)_proxy", name, re.IGNORECASE):
            del os.environ[name]


def _answer(emulator: Emulator, question: dict[str, Any]) -> Any:
    match question["what"]:
        case "env":
            return emulator.env()
        case "existing":
            return len(emulator.existing)
        case _:
            routes = (
                each.route or each.path
                for each in emulator.requests
                if question["since"] <= each.at <= question["until"]
            )
            return dict(collections.Counter(routes))


async def _serve(step_seconds: float) -> None:
    options = {"step_seconds": step_seconds, "num_steps": _NUM_STEPS, "balance": 1e9}
    async with serve_emulator(**options) as emulator:
        # It serves in a thread: this loop has nothing else to do than to wait for the next question.
        for line in sys.stdin:
            print(json.dumps(_answer(emulator, json.loads(line))), flush=True)


if __name__ == "__main__":
    if sys.argv[2:]:
        os.sched_setaffinity(0, map(int, sys.argv[2:]))
    asyncio.run(_serve(float(sys.argv[1])))
