"""Work in a task of its own, which any task may stop and wait for."""

from __future__ import annotations

import anyio

from cortecs_async._aio.background import BackgroundTask


async def test_a_task_that_is_stopped_before_it_begins_has_ended() -> None:
    task = BackgroundTask(anyio.sleep_forever)
    task.stop()
    with anyio.fail_after(1):
        await task.join()


async def test_another_task_waits_for_the_end() -> None:
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            ended.append(anyio.current_time())

    async def end() -> None:
        task.stop()
        await task.join()
        ended.append(anyio.current_time())

    ended: list[float] = []
    task = BackgroundTask(work)
    await anyio.sleep(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
    assert ended == [6, 6]
