"""Write answers to the output in groups. Answers that arrive during one write form the next group."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
from attrs import define, field

from .._aio import threads
from .._aio.synchronization import Broadcast
from .answers import AnswerLine
from .output import Output

# Seconds to collect a group, because waking a thread for each answer would cost as much as the answer.
_GROUP_DELAY = 0.05

# Answers that can wait for the disk. With more of them, workers wait before sending the next request.
_MAX_PENDING = 4096
_MAX_PENDING_BYTES = 32 << 20


@define(eq=False)
class AnswerWriter:
    """Writes answers in groups.

    Args:
        on_written: Called with each group once it is on disk, and with the offset of each line.
    """

    _output: Output
    _on_written: Callable[[list[AnswerLine], list[int]], None]
    _pending: list[AnswerLine] = field(factory=list)
    _pending_bytes: int = 0
    _added: Broadcast = field(factory=Broadcast)
    _written: Broadcast = field(factory=Broadcast)
    _lock: anyio.Lock = field(factory=anyio.Lock)

    def put(self, line: AnswerLine) -> None:
        self._pending.append(line)
        self._pending_bytes += len(line.text)
        if len(self._pending) == 1:
            self._added.notify()

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= _MAX_PENDING or self._pending_bytes >= _MAX_PENDING_BYTES

    async def wait_for_space(self) -> None:
        while self.is_full:
            await self._written.wait()

    async def run(self) -> None:
        while True:
            while not self._pending:
                await self._added.wait()
            await anyio.sleep(_GROUP_DELAY)
            await self.flush()

    async def flush(self) -> None:
        # The lock keeps the groups in order.
        async with self._lock:
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            if not lines:
                return
            begin = await self._write(lines)
            self._written.notify()
            begins: list[int] = []
            for line in lines:
                begins.append(begin)
                begin += len(line.text)
            self._on_written(lines, begins)

    async def finish(self) -> None:
        """Write the last group and check that no other program has removed or changed the output."""
        await self.flush()
        await threads.run_in_thread(self._output.check_unchanged)

    async def _write(self, lines: list[AnswerLine]) -> int:
        claim = threading.Lock()

        def write() -> int:
            return self._output.append(line.text for line in lines) if claim.acquire(blocking=False) else 0

        begin = 0
        try:
            with anyio.CancelScope(shield=True):
                begin = await threads.run_in_thread(write)
        except BaseException:
            # The second cancellation of an asyncio task gets past the shield. If the thread has not started
            # by then, it never will, so put the lines back for the next flush.
            if claim.acquire(blocking=False):
                self._pending[:0] = lines
                self._pending_bytes += sum(len(line.text) for line in lines)
            raise
        return begin
