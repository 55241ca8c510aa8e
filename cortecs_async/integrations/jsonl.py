"""The files of a batch for `fan_out`: requests in the format of OpenAI's Batch API, and their answers.

`AnswerFile` says what is left to ask, and keeps what was answered; `answer` is the `work` for it.
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
from ._fleet import Outcome

__all__ = ["AnswerFile", "answer"]

_PREFIX = "fleet_req_"
# As every line of answers begins.
_HEAD = f'{{"id": "{_PREFIX}'.encode()


async def answer(
    inst: InstanceHandle, requests: list[dict[str, Any]], *, concurrency: int = 32, timeout: float = 600.0
) -> list[Any]:
    """Answers requests, so many at once: `work` for `fan_out`. Needs the `openai` package on the workers.

    Args:
        inst: The instance.
        requests: Objects with `url` and `body`. Each is asked of the model that runs, whatever it names.
        concurrency: How many at once.
        timeout: Seconds for one attempt.

    Raises:
        ConfigurationError: when the worker's environment has no key for inference, or no `openai`.
    """
    # What gets no answer is tried again by `fan_out`, which may do that against another instance.
    async with inst.openai(max_retries=0, timeout=timeout) as llm:

        async def ask(request: dict[str, Any]) -> object:
            path = str(request["url"]).removeprefix("/v1")
            return await llm.post(path, cast_to=object, body={**request["body"], "model": inst.model})

        results = inst.map(ask, requests, concurrency=concurrency, return_exceptions=True)
        return [each async for each in results]


class AnswerFile:
    """The answers to a file of requests: `with AnswerFile("requests.jsonl", "answers.jsonl") as answers:`.

    What is written survives the end of the process, whatever ends it. Made again, it goes on from there: a
    line that was torn is cut off, and its request asked again. Both files are read before anything is asked,
    and the requests once more as they are taken. In memory it keeps the `custom_id` of every request.

    Args:
        source: The requests, an object a line, with `custom_id`, `url` and `body`.
        target: The answers; new, or of an earlier run.

    Attributes:
        left: How many requests have no answer yet. Error lines are answers.
    """

    def __init__(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        self._source, self._target = Path(source), Path(target)
        self.left: int = 0
        self._answered: set[str] = set()
        self._file: BinaryIO | None = None
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Reads both files.

        Raises:
            BatchFileError: for a line that is no request or no answer, a `custom_id` that is there twice, or
                when another process writes the answers.
            OSError: when the requests cannot be read, or the answers not written.
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
                elif not (line.startswith(_HEAD) or _HEAD.startswith(line)):
                    # It would be cut off, and may be the wrong file.
                    raise BatchFileError("it is no answer", path=str(self._target), line=number)
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
        """The requests without an answer, read as they are taken.

        Raises:
            BatchFileError: as entering does, should they have changed.
            OSError: when they cannot be read.
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
                        f"the custom_id {custom_id!r} is there twice", path=str(self._source), line=number
                    )
                seen.add(custom_id)
                if custom_id not in self._answered:
                    yield request

    def write(self, outcome: Outcome[dict[str, Any]]) -> None:
        """Adds an answer, or what was wrong.

        Raises:
            InvalidArgumentError: outside the block.
            OSError: when it cannot be written.
        """
        if self._file is None:
            raise InvalidArgumentError("write answers in `with AnswerFile(...) as answers:`")
        custom_id = outcome.item["custom_id"]
        line: dict[str, Any] = {
            "id": f"{_PREFIX}{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": None,
            "error": None,
        }
        if outcome.error is None:
            line["response"] = {"status_code": 200, "body": outcome.value}
        else:
            said = {"code": outcome.error.code, "message": outcome.error.message}
            if outcome.error.status is None:
                line["error"] = said
            else:
                line["response"] = {"status_code": outcome.error.status, "body": {"error": said}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self._answered.add(custom_id)
        self.left -= 1


def _read(line: bytes, path: Path, number: int, *names: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        raise BatchFileError("it is not JSON", path=str(path), line=number) from None
    if not isinstance(data, dict) or not isinstance(data.get("custom_id"), str):
        raise BatchFileError("custom_id must be a string", path=str(path), line=number)
    if missing := [name for name in names if name not in data]:
        raise BatchFileError(f"it has no {missing[0]}", path=str(path), line=number)
    return data
