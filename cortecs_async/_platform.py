"""Differences between systems: flags missing on Windows, and why leases do not work there.

The package is tested on Linux. macOS provides the same features, except for the ones checked with `hasattr`
and `getattr`. Windows does not have `fork`, `flock`, or signals between processes, so there is no reaper and
no journal. On Windows, every module can be imported and requests work, but leases raise a `GuardError`.

It also provides `os` for the modules that the reaper imports at its start.

Checks of `sys.platform` are placed where they are needed, because type checkers understand them only there.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING or sys.platform == "win32":
    import os as os  # noqa: PLC0414  (for other modules)
else:
    # The system calls alone. Importing all of `os` would take a tenth of the CPU time of the reaper's start.
    import posix as os

# For `os.open`; 0, which has no effect, on systems without the flag. Only Windows has O_BINARY.
O_BINARY: int = getattr(os, "O_BINARY", 0)
O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

NO_LOCKS = "file locks are not supported on Windows; use WSL"
NO_REAPER = "the reaper does not run on Windows"
