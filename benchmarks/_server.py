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
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any, ClassVar, Self

from cortecs_async.emulator import Emulator, serve_emulator

# The processors that there are, read before this process keeps to one of them.
_PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_NUM_STEPS = 5


class Server:
    """A process with the emulator: a context manager.

    Args:
        ready_after: Seconds from the start of an instance until it runs.
        answer_seconds: Seconds that each answer of an instance takes.
        is_light: The instances' endpoints are no emulator but a server that says always the same, and takes
            a small part of the CPU.

    Attributes:
        env: The variables that point a client at it, with a state directory that is new.
    """

    def __init__(
        self, ready_after: float = 0.0, *, answer_seconds: float = 0.0, is_light: bool = False
    ) -> None:
        self.ready_after = ready_after
        self._options = {"answer_seconds": answer_seconds, "is_light": is_light}
        self.env: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._states = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        # The first of the steps is there from the beginning.
        options = {"step_seconds": self.ready_after / (_NUM_STEPS - 1), **self._options}
        command = [sys.executable, __file__, json.dumps(options), *map(str, _PROCESSORS[:1])]
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

    def span(self) -> tuple[int, float]:
        """How many requests of the endpoints came since the last time, and seconds from first to last."""
        count, seconds = self._ask({"what": "span"})
        return count, seconds

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


class _Light(asyncio.Protocol):
    """An endpoint that does no more than it must."""

    answer_seconds = 0.0
    times: ClassVar[list[float]] = []
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
    _ANSWER = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
    ) + _BODY

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
        asyncio.get_running_loop().call_later(self.answer_seconds, self._answer)

    def _answer(self) -> None:
        assert self._transport is not None
        self._transport.write(self._ANSWER)


def _serve_light(answer_seconds: float) -> str:
    """Serves it in a thread; its URL."""
    _Light.answer_seconds = answer_seconds
    ready: queue.Queue[int] = queue.Queue()

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Light, "127.0.0.1", 0, backlog=2048)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    return f"http://127.0.0.1:{ready.get()}"


class _Answers:
    """What the process says of itself."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._env = emulator.env()
        self._seen = 0

    def to(self, question: dict[str, Any]) -> Any:
        """The answer to a question."""
        match question["what"]:
            case "env":
                return self._env
            case "span":
                return self._span()
            case "existing":
                return len(self._emulator.existing)
            case _:
                routes = (
                    each.route or each.path
                    for each in self._emulator.requests
                    if question["since"] <= each.at <= question["until"]
                )
                return dict(collections.Counter(routes))

    def _span(self) -> tuple[int, float]:
        requests = self._emulator.requests
        times = [each.at for each in requests[self._seen :] if each.route == "chat"] + _Light.times
        self._seen = len(requests)
        _Light.times.clear()
        return len(times), times[-1] - times[0]


async def _serve(*, is_light: bool, **options: float) -> None:
    async with serve_emulator(num_steps=_NUM_STEPS, balance=1e9, **options) as emulator:
        answers = _Answers(emulator)
        if is_light:
            # For the instances that are started from now on; the API stays where it is.
            emulator.root_url = _serve_light(options["answer_seconds"])
        # It serves in a thread: this loop has nothing else to do than to wait for the next question.
        for line in sys.stdin:
            print(json.dumps(answers.to(json.loads(line))), flush=True)


if __name__ == "__main__":
    if sys.argv[2:]:
        os.sched_setaffinity(0, map(int, sys.argv[2:]))
    asyncio.run(_serve(**json.loads(sys.argv[1])))
