"""Files for `fan_out`: requests in the format of OpenAI's Batch API, and their answers.

`AnswerFile` reads the requests that have no answer yet and writes the answers. `answer` is the `work` for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from .. import InstanceHandle, InvalidArgumentError
from ..errors import BatchFileError
from ._fan_out import Outcome

__all__ = ["AnswerFile", "answer"]

_ID_PREFIX = "fleet_req_"
# The start of every line of answers.
_LINE_START = f'{{"id": "{_ID_PREFIX}'.encode()


async def answer(
    inst: InstanceHandle, requests: list[dict[str, Any]], *, concurrency: int = 32, timeout: float = 600.0
) -> list[Any]:
    """Answer requests in parallel: the `work` for `fan_out`. Needs the `openai` package on the workers.

    Args:
        inst: The instance.
        requests: Objects with `url` and `body`. The model in a body is replaced by the one that is running.
        concurrency: Requests in parallel.
        timeout: Seconds for one attempt.

    Raises:
        ConfigurationError: If the worker has no inference API key in its environment, or no `openai`.
    """
    # No retries here: `fan_out` tries again, possibly on another instance.
    async with inst.openai(max_retries=0, timeout=timeout) as llm:

        async def ask(request: dict[str, Any]) -> object:
            path = str(request["url"]).removeprefix("/v1")
            return await llm.post(path, cast_to=object, body={**request["body"], "model": inst.model})

        results = inst.map(ask, requests, concurrency=concurrency, return_exceptions=True)
        return [result async for result in results]


class AnswerFile:
    """The answers to a file of requests: `with AnswerFile("requests.jsonl", "answers.jsonl") as answers:`.

    Answers survive the end of the process, however it ends. The next run continues from there: an incomplete
    last line is cut off, and its request is sent again. Both files are read on entry, and the requests once
    more as you take them. The `custom_id` of every request is kept in memory.

    Args:
        source: The requests, one object per line, with `custom_id`, `url` and `body`.
        target: The answers: a new file, or that of an earlier run.

    Attributes:
        left: Number of requests without an answer. Error lines count as answers.
    """

    def __init__(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        self._source, self._target = Path(source), Path(target)
        self.left: int = 0
        self._answered: set[str] = set()
        self._file: BinaryIO | None = None
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Read both files.

        Raises:
            BatchFileError: If a line is not a request or not an answer, a `custom_id` is a duplicate, or
                another process is writing the answers.
            OSError: If the requests cannot be read, or the answers cannot be written.
        """
        with ExitStack() as exits:
            file = exits.enter_context(self._target.open("a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BatchFileError("another process is writing it", path=str(self._target)) from None
            file.seek(0)
            end = 0
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    self._answered.add(_read(line, self._target, number, "response")["custom_id"])
                    end += len(line)
                elif not (line.startswith(_LINE_START) or _LINE_START.startswith(line)):
                    # Do not cut it off: this may be the wrong file.
                    raise BatchFileError("not an answer of `fan_out`", path=str(self._target), line=number)
            file.truncate(end)
            self.left = sum(1 for _ in self.unanswered())
            self._file, self._exits = file, exits.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file = None
        self._exits.close()

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """Yield the requests without an answer, read as you take them.

        Raises:
            BatchFileError: As on entry, if the requests have changed since.
            OSError: If the requests cannot be read.
        """
        seen: set[str] = set()
        with self._source.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                request = _read(line, self._source, number, "url", "body")
                custom_id = request["custom_id"]
                if custom_id in seen:
                    raise BatchFileError(
                        f"duplicate custom_id {custom_id!r}", path=str(self._source), line=number
                    )
                seen.add(custom_id)
                if custom_id not in self._answered:
                    yield request

    def write(self, outcome: Outcome[dict[str, Any]]) -> None:
        """Append the answer of an outcome, or its error.

        Raises:
            InvalidArgumentError: Outside the block.
            OSError: If the answer cannot be written.
        """
        if self._file is None:
            raise InvalidArgumentError("write answers in `with AnswerFile(...) as answers:`")
        custom_id = outcome.item["custom_id"]
        line: dict[str, Any] = {
            "id": f"{_ID_PREFIX}{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": None,
            "error": None,
        }
        if outcome.error is None:
            line["response"] = {"status_code": 200, "body": outcome.value}
        else:
            error = {"code": outcome.error.code, "message": outcome.error.message}
            if outcome.error.status is None:
                line["error"] = error
            else:
                line["response"] = {"status_code": outcome.error.status, "body": {"error": error}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self._answered.add(custom_id)
        self.left -= 1


def _read(line: bytes, path: Path, number: int, *names: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        raise BatchFileError("not valid JSON", path=str(path), line=number) from None
    if not isinstance(data, dict) or not isinstance(data.get("custom_id"), str):
        raise BatchFileError("custom_id must be a string", path=str(path), line=number)
    if missing := [name for name in names if name not in data]:
        raise BatchFileError(f"missing {missing[0]!r}", path=str(path), line=number)
    return data
