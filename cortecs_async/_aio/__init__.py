"""What anyio does not cover on asyncio and trio: tasks, scopes, Ctrl-C, threads and clocks."""
