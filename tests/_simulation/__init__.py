"""Simulate random worlds under random faults, on virtual time, and check the promise.

A world has machines, each with a state directory and a clock. It has processes on them, each with a client, a
journal, and a reaper, whose programs run leases. It also has sweeps, and another user of the account without
a journal, who starts, stops, restarts, and deletes identical instances. The service fails, lags, and shows
odd data. Processes, reapers, sweeps, and machines are killed at any step. A world is data (`World` in
`data`), so that hypothesis can draw, shrink, and print it. `simulate` runs it against the emulator on a fresh
event loop. At the end, the service works again, though it lags as before, the reapers finish, and one sweep
runs on each machine. Then `checks` checks the properties that it lists. Each violation is a line in
`Outcome.problems`.

The reapers are `Reaper` objects with the real decisions, in tasks on virtual time instead of processes. A
kill stops a process's requests and writes and unlocks its journal. Its tasks get errors and end.

The simulation leaves out only the cases that no client can decide, because the service has no tags:

- A start with an outcome unknown to its process, and an identical instance from elsewhere that appeared
  between the start's baseline and the end of the search for it: if the start's own instance does not exist,
  or is not listed within ten seconds (`WINDOW`), there is one start and one instance that matches it. "From
  elsewhere" means from the other user or another machine, whose journals are not shared. A start's outcome is
  unknown if its response was lost, or if its process was killed before it recorded the response or between
  record and request. The search lasts 300 s, or 1,800 s for `sweep`, which relies on the service's
  timestamps.
- If a list lags or omits an instance, existing instances are missing from a baseline.
- An instance that appears more than 300 s after its request: by then, it more likely belongs to another user.
- A single candidate that `sweep` finds after more than an hour, if the service has no usable timestamps.

`Excuses` in `checks` holds these cases, and `Outcome.tally` counts the worlds with them. A tag (`tag_starts`)
distinguishes identical instances, so a tagged start is excused only for an instance with the same tag. One
fault is not drawn, because the service would be lying: rejecting a start in the API's own JSON, except with
500 or 504, after carrying it out.
"""

from __future__ import annotations

from .data import Backend, World, stories, worlds
from .run import simulate, virtual_world

__all__ = ["Backend", "World", "simulate", "stories", "virtual_world", "worlds"]
