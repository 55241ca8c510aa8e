"""What the commands take from a .env file, and what not."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click
from dotenv import dotenv_values

from .output import insist, say

logger = logging.getLogger("cortecs_async.cli")

_IMPLICIT = Path(".env")

_URL = "CORTECS_API_BASE_URL"
_ACCOUNT = ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET")
_SECRETS = (*_ACCOUNT, "CORTECS_API_KEY", "OPENAI_API_KEY")


def load_env_file(path: Path | None) -> None:
    """Sets what a .env file says of this account and the environment does not.

    Args:
        path: The file; None for `.env` in the working directory, where there is one. Nobody has asked for
            that one, and anybody may have put it there: see `_distrust`.

    Raises:
        click.ClickException: when a file that was asked for cannot be read.
    """
    try:
        # Plain files only: a pipe of that name would never end.
        if path is None and not _IMPLICIT.is_file():
            return
        with _renamed(path or _IMPLICIT):
            said = dotenv_values(path or _IMPLICIT, interpolate=False)
        values = {name: value for name, value in said.items() if value and _is_ours(name)}
        new = {name: value for name, value in values.items() if name not in os.environ}
        if path is None:
            _distrust(new)
        os.environ.update(new)
    except (OSError, ValueError) as error:
        if path is not None:
            raise click.ClickException(f"{path} cannot be read: {error}") from None
        say(f"{_IMPLICIT} is ignored, as it cannot be read: {error}")
        return
    if new:
        logger.info("from %s: %s", path or _IMPLICIT, ", ".join(sorted(new)))


@contextmanager
def _renamed(path: Path) -> Generator[None]:
    """Says what python-dotenv says of lines that it cannot read, with the name of the file."""
    log = logging.getLogger("dotenv.main")

    def refuse(record: logging.LogRecord) -> bool:
        logger.warning("%s: %s", path, record.getMessage())
        return False

    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


def _is_ours(name: str) -> bool:
    # A file must not set anything else, such as the PATH of a command that is run.
    return name.startswith("CORTECS_") or name == "OPENAI_API_KEY"


def _distrust(new: dict[str, str]) -> None:
    """Takes the address of the service out, unless all the secrets that go there are the file's own."""
    is_own = new.keys() >= {*_ACCOUNT} and not any(os.environ.get(name) for name in _SECRETS)
    if _URL in new and not is_own:
        del new[_URL]
        insist(
            f"{_URL} of {_IMPLICIT} is ignored: secrets that are not from there would go to it. "
            f"`--env-file {_IMPLICIT}` takes it"
        )
