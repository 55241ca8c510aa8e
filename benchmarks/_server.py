"""The emulator in a process of its own, so that its CPU time is not charged to a client.

`Server` starts the process and queries it. Run as a program, this module is the process. A query is a line of
JSON on its standard input, and the result is a line of JSON on its standard output.
"""

from __future__ import annotations

import asyncio
import collections
import json
import math
import os
import queue
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Self

from _link import Link

from cortecs_async.emulator import Emulator, serve_emulator

# The available processors, before this process is pinned to one of them.
_PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_NUM_STEPS = 5


class Server:
    """A context manager that runs the emulator in its own process.

    Args:
        ready_after: Seconds from the start of an instance until it is running.
        answer_seconds: Seconds that an instance takes to answer a request.
        is_light: Whether the endpoints of the instances are a server that always gives the same answer, and
            takes little CPU time, instead of the emulator.
        spread: With `is_light`: the time to answer varies at random, by up to this share.
        faults: With `is_light`: the statuses of faulty answers, each with its share of all answers.
        round_trip: Seconds for a round trip to the API, as for a server that is far away.

    Attributes:
        env: The environment variables that point a client at the emulator, with a new state directory.
    """

    def __init__(
        self,
        ready_after: float = 0.0,
        *,
        answer_seconds: float = 0.0,
        is_light: bool = False,
        spread: float = 0.0,
        faults: Mapping[str, float] | None = None,
        round_trip: float = 0.0,
    ) -> None:
        self.ready_after = ready_after
        light = {"spread": spread, "faults": dict(faults or {})} if is_light else None
        self._options = {"answer_seconds": answer_seconds, "light": light, "round_trip": round_trip}
        self.env: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._states = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        # A new instance has already taken the first step.
        options = {"step_seconds": self.ready_after / (_NUM_STEPS - 1), **self._options}
        command = [sys.executable, __file__, json.dumps(options), *map(str, _PROCESSORS[:1])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        self.env = {**self._query("env"), "CORTECS_STATE_DIR": self._states.name}
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
        """The body of a request for an access token."""
        return {
            "grant_type": "client_credentials",
            "client_id": self.env["CORTECS_CLIENT_ID"],
            "client_secret": self.env["CORTECS_CLIENT_SECRET"],
        }

    def counts(self, since: float = -math.inf, until: float = math.inf) -> dict[str, int]:
        """Return the number of requests per route between two times of `time.monotonic` (of any process)."""
        counts: dict[str, int] = self._query("counts", since=since, until=until)
        return counts

    def first_request(self, since: float) -> float | None:
        """Return the time of the first request since a time of `time.monotonic`, if there was one."""
        first: float | None = self._query("first_request", since=since)
        return first

    def chat_span(self) -> tuple[int, float]:
        """Return the number of chat requests since the last call, and the seconds from first to last."""
        count, seconds = self._query("chat_span")
        return count, seconds

    def existing(self) -> int:
        """Return the number of existing instances."""
        count: int = self._query("existing")
        return count

    def _query(self, name: str, **arguments: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def pin_to_client_processor() -> None:
    """Pin this process, and the clients it starts, to one processor. A server uses another one.

    Otherwise the CPU time of threads that wait for each other's lock depends on whether a second processor
    happens to be free.
    """
    if len(_PROCESSORS) > 1:
        os.sched_setaffinity(0, _PROCESSORS[-1:])


def clear_environment() -> None:
    """Delete the environment variables that change a measurement: proxies, credentials and addresses."""
    for name in list(os.environ):
        if re.fullmatch(r"(CORTECS|OPENAI)_.*|(all|https?|no)_proxy", name, re.IGNORECASE):
            del os.environ[name]


def _response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _LightEndpoint(asyncio.Protocol):
    """An endpoint that always gives the same answer, or a fault."""

    answer_seconds = 0.0
    spread = 0.0
    faults: ClassVar[dict[str, float]] = {}
    times: ClassVar[list[float]] = []
    _rng = random.Random(1)
    _BODY = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "This is always the same answer."},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18},
        }
    ).encode()
    _ANSWER = _response("200 OK", _BODY)

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, separator, rest = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not separator or length is None or len(rest) < int(length[1]):
            return
        self._data = b""  # one request at a time on each connection
        self.times.append(time.monotonic())
        seconds = self.answer_seconds * self._rng.uniform(1 - self.spread, 1 + self.spread)
        asyncio.get_running_loop().call_later(seconds, self._answer)

    def _answer(self) -> None:
        assert self._transport is not None
        position = self._rng.random()
        for status, share in self.faults.items():
            position -= share
            if position < 0:
                self._transport.write(_response(f"{status} Fault", b'{"error":{"message":"fault"}}'))
                return
        self._transport.write(self._ANSWER)


def _serve_light(answer_seconds: float, spread: float, faults: dict[str, float]) -> str:
    """Serve light endpoints in a thread, and return their URL."""
    _LightEndpoint.answer_seconds = answer_seconds
    _LightEndpoint.spread = spread
    _LightEndpoint.faults = faults
    return _serve_in_thread(
        lambda: asyncio.get_running_loop().create_server(_LightEndpoint, "127.0.0.1", 0, backlog=2048)
    )


def _serve_in_thread(listen: Callable[[], Awaitable[asyncio.Server]]) -> str:
    """Run a server in a thread, and return its URL."""
    ready: queue.Queue[int] = queue.Queue()

    async def serve() -> None:
        server = await listen()
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    return f"http://127.0.0.1:{ready.get()}"


class _Queries:
    """Answers the queries of a `Server`."""

    def __init__(self, emulator: Emulator, round_trip: float) -> None:
        self._emulator = emulator
        self._env = emulator.env()
        if round_trip:
            link = Link(int(emulator.root_url.rpartition(":")[2]), round_trip)
            url = _serve_in_thread(lambda: asyncio.start_server(link, "127.0.0.1", 0))
            self._env["CORTECS_API_BASE_URL"] = emulator.api_base_url.replace(emulator.root_url, url)
        self._num_seen = 0

    def env(self) -> dict[str, str]:
        return self._env

    def existing(self) -> int:
        return len(self._emulator.existing)

    def counts(self, since: float, until: float) -> dict[str, int]:
        requests = (each for each in self._emulator.requests if since <= each.at <= until)
        return dict(collections.Counter(each.route or each.path for each in requests))

    def first_request(self, since: float) -> float | None:
        return next((each.at for each in self._emulator.requests if each.at > since), None)

    def chat_span(self) -> tuple[int, float]:
        requests = self._emulator.requests
        times = [each.at for each in requests[self._num_seen :] if each.route == "chat"]
        times += _LightEndpoint.times
        self._num_seen = len(requests)
        _LightEndpoint.times.clear()
        return len(times), times[-1] - times[0]


async def _serve(*, light: dict[str, Any] | None, round_trip: float, **options: Any) -> None:
    async with serve_emulator(num_steps=_NUM_STEPS, balance=1e9, **options) as emulator:
        queries = _Queries(emulator, round_trip)
        if light is not None:
            # Only new instances use this URL. That of the API does not change.
            emulator.root_url = _serve_light(options["answer_seconds"], **light)
        # The emulator serves in a thread, so this loop may block.
        for line in sys.stdin:
            name, arguments = json.loads(line)
            print(json.dumps(getattr(queries, name)(**arguments)), flush=True)


if __name__ == "__main__":
    if sys.argv[2:]:
        os.sched_setaffinity(0, map(int, sys.argv[2:]))
    asyncio.run(_serve(**json.loads(sys.argv[1])))
