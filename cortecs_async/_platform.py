"""What differs between systems: flags that Windows lacks, and why it has no leases.

The package is tested on Linux. macOS has all that Linux has here, except what the callers of `hasattr` and
`getattr` handle. Windows has neither `fork` nor `flock` nor signals between processes, so no reaper and no
journal: there, every module imports, and requests work, but leases raise a `GuardError`.

Checks of `sys.platform` stand where they are needed, because only there do type checkers follow them.
"""

from __future__ import annotations

import os

# For `os.open`; 0, which changes nothing, where a system lacks the flag. Only Windows has O_BINARY.
O_BINARY: int = getattr(os, "O_BINARY", 0)
O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

NO_LOCKS = "file locks are not supported on Windows; use WSL"
NO_REAPER = "the reaper does not run on Windows"
