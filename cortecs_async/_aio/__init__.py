"""Additions to anyio on asyncio and trio: tasks, scopes, Ctrl-C, threads, and clocks."""
