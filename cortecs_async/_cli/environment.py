"""The environment variables of the command line, and the .env file that can set them."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from .. import ConfigurationError
from .output import LibraryError, print_note, print_warning

CREDENTIALS = ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET")
INFERENCE_KEYS = ("CORTECS_API_KEY", "OPENAI_API_KEY")

_URL = "CORTECS_API_BASE_URL"
_DEFAULT_FILE = Path(".env")

logger = logging.getLogger("cortecs_async.cli")


def check_inference_key() -> None:
    """Check that an inference API key is set before anything is billed.

    Only a running instance can show whether the key is valid.

    Raises:
        ConfigurationError: If there is no key, or it is clearly invalid.
    """
    from .._credentials import resolve_sources  # noqa: PLC0415  (slow to import)

    sources, _ = resolve_sources(client_id=None, client_secret=None, provider=None, profile=None)
    if problem := sources.inference_key_problem():
        raise ConfigurationError(problem)


def use_profile(name: str) -> None:
    """Use a profile instead of the environment variables.

    Raises:
        click.ClickException: If the profile cannot be used.
    """
    from .._profiles import load_profile  # noqa: PLC0415  (slow to import)

    try:
        profile = load_profile(name)
    except ConfigurationError as error:
        raise LibraryError(error) from None
    os.environ["CORTECS_PROFILE"] = name
    replaced = [*CREDENTIALS]
    if profile is not None and profile.api_base_url:
        replaced.append(_URL)
    if profile is not None and profile.has("api_key"):
        replaced.extend(INFERENCE_KEYS)
    for variable in replaced:
        os.environ.pop(variable, None)


def load_env_file(path: Path | str | None) -> None:
    """Set the variables from a .env file that are not set in the environment.

    Args:
        path: The file, or None to use `.env` in the working directory if it exists. From that file, only
            credentials are set, because any other person or program may have put it there.

    Raises:
        click.ClickException: If a requested file cannot be read.
    """
    path = None if path is None else Path(path)
    try:
        # Plain files only, because reading a named pipe would never end.
        if path is None and not _DEFAULT_FILE.is_file():
            return
        from dotenv import dotenv_values  # noqa: PLC0415  (slow to import)

        with _parser_warnings_name(path or _DEFAULT_FILE):
            values = dotenv_values(path or _DEFAULT_FILE, interpolate=False)
        new = {
            name: value
            for name, value in values.items()
            if value and _is_allowed(name) and name not in os.environ
        }
        if path is None:
            _drop_untrusted(new)
        os.environ.update(new)
    except (OSError, ValueError) as error:
        if path is not None:
            raise click.ClickException(f"Cannot read {path}: {error}") from None
        print_note(f"Ignoring {_DEFAULT_FILE}, which cannot be read: {error}")
        return
    if new:
        logger.info("Read from %s: %s", path or _DEFAULT_FILE, ", ".join(sorted(new)))


@contextmanager
def _parser_warnings_name(path: Path) -> Generator[None]:
    """Log warnings from python-dotenv with the file's name."""
    parser_logger = logging.getLogger("dotenv.main")

    def relog(record: logging.LogRecord) -> bool:
        logger.warning("%s: %s", path, record.getMessage())
        return False

    parser_logger.addFilter(relog)
    try:
        yield
    finally:
        parser_logger.removeFilter(relog)


def _is_allowed(name: str) -> bool:
    # A file must not set anything else, such as the PATH for the command of `run`.
    return name.startswith("CORTECS_") or name == "OPENAI_API_KEY"


def _drop_untrusted(new: dict[str, str]) -> None:
    """Remove everything except credentials and the base URL.

    The base URL is removed too, unless the file contains all secrets that would be sent there.
    """
    others = sorted(new.keys() - {*CREDENTIALS, *INFERENCE_KEYS, _URL})
    for name in others:
        del new[name]
    if others:
        print_warning(
            f"Ignoring {', '.join(others)} in {_DEFAULT_FILE}: only credentials are read from it. "
            f"To use the whole file, pass --env-file {_DEFAULT_FILE}."
        )
    environment_has_secrets = any(os.environ.get(name) for name in (*CREDENTIALS, *INFERENCE_KEYS))
    if _URL in new and (environment_has_secrets or not new.keys() >= {*CREDENTIALS}):
        del new[_URL]
        print_warning(
            f"Ignoring {_URL} in {_DEFAULT_FILE}: secrets from elsewhere would be sent to that URL. "
            f"To use it, pass --env-file {_DEFAULT_FILE}."
        )
