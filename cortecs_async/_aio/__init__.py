"""What anyio leaves to us on asyncio and trio: tasks, scopes, Ctrl-C, threads and clocks."""
