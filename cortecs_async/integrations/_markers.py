"""Names of the markers of the pytest plugin. `EMULATOR` and `CLIENT` are fixtures as well."""

from typing import Final

EMULATOR: Final = "cortecs_emulator"
CLIENT: Final = "cortecs_client"
FAULT: Final = "cortecs_fault"
