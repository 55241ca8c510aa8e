"""Simulate random worlds under random faults, on virtual time, and check the promise.

A world has machines with a state directory and a clock each; processes on them, with a client, a journal and
a reaper each, whose programs run leases; sweeps; and another user of the account without a journal, who
starts, stops, restarts and deletes equal instances. The service fails, lags and shows odd things. Processes,
reapers, sweeps and machines are killed at any step. A world is data (`World` in `data`), so that hypothesis
can draw, shrink and print it. `simulate` runs it against the emulator on a fresh event loop. Then the service
works again, though it lags as before, the reapers finish, one sweep runs on each machine, and `checks` checks
the properties that it lists. Each violation is a line of `Outcome.problems`.

The reapers are `Reaper` objects with the real decisions, in tasks on virtual time instead of processes. A
kill stops the requests and the writes of a process and unlocks its journal; its tasks get errors and end.

The simulation leaves out only what no client can decide, because the service has no tags:

- A start whose outcome its process does not know, and an equal instance from elsewhere that appeared between
  the baseline of the start and the end of the search for it: if the own instance does not exist, or is not
  listed within ten seconds (`WINDOW`), there is one start and one instance that matches it. "From elsewhere"
  means of the other user or of another machine, whose journals are not shared. A start is unknown if its
  response was lost, or if its process was killed before it recorded the response, or between record and
  request. The search lasts 300 s, or 1,800 s for `sweep`, which relies on the service's stamps.
- As far as a list lags, or lacks an instance, a baseline lacks instances that exist.
- An instance that appears more than 300 s after its request: it is more likely another user's by then.
- A single candidate that `sweep` finds after more than an hour, if the service has no usable stamps.

`Excuses` in `checks` holds these cases, and `Outcome.tally` counts the worlds with them. A tag (`tag_starts`)
tells equal instances apart, so a tagged start is excused only for an instance with the same tag. One fault is
not drawn, because it is a lie: a refusal in the API's own JSON, other than 500 and 504, of a start that was
carried out.
"""

from __future__ import annotations

from .data import Backend, World, stories, worlds
from .run import simulate, virtual_world

__all__ = ["Backend", "World", "simulate", "stories", "virtual_world", "worlds"]
