"""CORTECS_LOG: the log of this package on standard error, without a line of code."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ._errors import ConfigurationError

VARIABLE = "CORTECS_LOG"

_LEVELS = ("debug", "info", "warning", "error", "critical")


def set_up_log(environ: Mapping[str, str]) -> None:
    """Does what CORTECS_LOG says, unless the program has set a level itself; a handler only if there is none.

    Raises:
        ConfigurationError: when it is no level.
    """
    wanted = environ.get(VARIABLE, "").strip().lower()
    del environ  # a traceback that shows locals would show every secret in it
    if not wanted:
        return
    if wanted not in _LEVELS:
        raise ConfigurationError(f"{VARIABLE} must be one of {', '.join(_LEVELS)}, not {wanted[:80]!r}")
    logger = logging.getLogger("cortecs_async")
    if logger.level != logging.NOTSET:
        return
    logger.setLevel(wanted.upper())
    # An application that logs has a handler at the root, which would show everything twice.
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
