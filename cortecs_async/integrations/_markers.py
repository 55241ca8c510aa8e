"""Names of the pytest plugin's markers. `EMULATOR` and `CLIENT` are also fixtures."""

from typing import Final

EMULATOR: Final = "cortecs_emulator"
CLIENT: Final = "cortecs_client"
FAULT: Final = "cortecs_fault"
