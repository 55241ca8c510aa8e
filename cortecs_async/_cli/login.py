"""`cortecs-async login` and `logout`: store and remove credentials in the config file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

import cortecs_async

from ..errors import ConfigurationError, RequestError
from .command import cli_command
from .options import profile_name
from .output import LibraryError, print_note, print_warning
from .runtime import run_async

if TYPE_CHECKING:
    from .. import Secret
    from .._profiles import Profile

Command = TypeVar("Command", bound=Callable[..., Any])

_NOT_STORED = "Nothing was stored."

# The path of token requests. Once such a request succeeds, the credentials are valid.
_TOKEN = "/oauth2/token"  # noqa: S105  (a path)


def _check_name(context: click.Context, _option: click.Parameter, value: str | None) -> str:
    # `cortecs-async --profile NAME login` means the same.
    from .._profiles import DEFAULT_PROFILE  # noqa: PLC0415  (slow to import)

    return profile_name(value or context.find_root().params.get("profile") or DEFAULT_PROFILE)


def _profile_option(text: str) -> Callable[[Command], Command]:
    return click.option(
        "--profile",
        "name",
        metavar="NAME",
        callback=_check_name,
        help=f"{text}  [default: default]",
    )


@cli_command(examples=("cortecs-async login", "cortecs-async login --profile work"))
@_profile_option("Name of the profile.")
@click.option("--no-check", is_flag=True, help="Store the credentials without testing them.")
def login(name: str, no_check: bool) -> None:
    """Store your credentials for all programs of this user.

    Asks for the client id, the client secret, and your inference API key (optional), tests the
    credentials, and stores them as a profile in the config file. If standard input is not a terminal, it
    reads three lines: client id, client secret, and inference API key. If the keyring package is
    installed and usable, the secrets are stored in the system keyring.
    """
    from .._profiles import Profile, config_file, save_profile, why_no_file  # noqa: PLC0415  (slow to import)

    path = config_file()
    if path is None:
        reason, advice = why_no_file()
        raise click.ClickException(f"Cannot store a profile: {reason}. {advice}")
    client_id, client_secret, api_key = _ask()
    profile = Profile(
        name=name,
        file=path,
        client_id=client_id,
        client_secret=client_secret,
        api_key=api_key,
        api_base_url=os.environ.get("CORTECS_API_BASE_URL", "").strip(),
    )
    _check_values(profile)
    run_async(_try, profile, not no_check)
    try:
        saved = save_profile(profile)
    except ConfigurationError as error:
        raise LibraryError(error) from None
    _print_result(saved)


@cli_command(examples=("cortecs-async logout", "cortecs-async logout --profile work"))
@_profile_option("Name of the profile to remove.")
def logout(name: str) -> None:
    """Remove a stored profile and its secrets."""
    from .._profiles import profile_names, remove_profile  # noqa: PLC0415  (slow to import)

    try:
        removed = remove_profile(name)
        names = () if removed else profile_names()
    except ConfigurationError as error:
        raise LibraryError(error) from None
    if removed is None:
        others = f"Existing profiles: {', '.join(names)}." if names else "There are no profiles."
        raise click.ClickException(f'There is no profile "{name}". {others}')
    print_note(f'Removed profile "{name}" from {removed.file}.')


def _ask() -> tuple[str, Secret, Secret]:
    """Ask for client id, client secret, and inference API key. Other users could see arguments."""
    from .. import Secret  # noqa: PLC0415  (slow to import)

    if not sys.stdin.isatty():
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError:
            raise click.ClickException(f"Standard input is not UTF-8 text. {_NOT_STORED}") from None
        lines = [*(line.strip() for line in text.splitlines()), "", "", ""]
        return lines[0], Secret(lines[1]), Secret(lines[2])
    click.echo("Create your credentials on your account page on cortecs.ai.", err=True)
    return (
        click.prompt("Client id", err=True).strip(),
        Secret(click.prompt("Client secret", hide_input=True, err=True).strip()),
        Secret(
            click.prompt(
                "Inference API key (empty for none)",
                hide_input=True,
                default="",
                show_default=False,
                err=True,
            ).strip()
        ),
    )


def _check_values(profile: Profile) -> None:
    from .._credentials import FoundKey, resolve_sources  # noqa: PLC0415  (slow to import)

    if not (profile.client_id and profile.client_secret):
        what = "client secret" if profile.client_id else "client id"
        raise click.ClickException(
            f"Missing {what}. Pass three lines on standard input: client id, client secret, and inference "
            "API key (may be empty)."
        )
    try:
        sources, _ = resolve_sources(
            client_id=profile.client_id, client_secret=profile.client_secret, provider=None, profile=None
        )
    except ConfigurationError as error:
        raise LibraryError(error, f"{error} {_NOT_STORED}") from None
    if profile.api_key and (problem := sources.key_problem(FoundKey(profile.api_key, ""))):
        raise click.ClickException(f"{problem} {_NOT_STORED}")


async def _try(profile: Profile, is_sent: bool) -> None:
    """Check the base URL. If `is_sent`, request a token with these credentials too."""
    client = cortecs_async.AsyncCortecs(
        profile.client_id,
        profile.client_secret,
        api_base_url=profile.api_base_url or None,
        max_retries=1,
        guard="off",
        journal="off",
    )
    async with client:
        try:
            if is_sent:
                await client.user.balance()
        except RequestError as error:
            if error.path == _TOKEN:
                error.add_note(
                    f"{_NOT_STORED} To store the credentials without testing them, pass --no-check."
                )
                raise


def _print_result(profile: Profile) -> None:
    from .._profiles import DEFAULT_PROFILE  # noqa: PLC0415  (loaded with the profile)
    from .environment import CREDENTIALS, INFERENCE_KEYS  # noqa: PLC0415  (only to run it)

    print_note(f'Stored profile "{profile.name}" in {profile.file}.')
    if profile.in_keyring:
        print_note("The secrets are in the system keyring.")
    else:
        print_note("The secrets are in this file as plain text; only you can read it.")
        import importlib.util  # noqa: PLC0415  (only here)

        from .._extras import install_command  # noqa: PLC0415  (only for advice)

        if importlib.util.find_spec("keyring") is None:
            print_note(
                f"To store them in the system keyring, run: {install_command('keyring')}, then run "
                "`cortecs-async login` again."
            )
    if profile.api_base_url:
        print_note(f"The profile uses the base URL {profile.api_base_url}, from CORTECS_API_BASE_URL.")
    if profile.name != DEFAULT_PROFILE:
        print_note(
            f"To use it, pass --profile {profile.name}, set CORTECS_PROFILE={profile.name} (used only if "
            f'{" and ".join(CREDENTIALS)} are not set), or write AsyncCortecs(profile="{profile.name}").'
        )
    others = INFERENCE_KEYS if profile.has("api_key") else ()
    if names := [name for name in (*CREDENTIALS, *others) if os.environ.get(name, "").strip()]:
        print_warning(
            f"Set in the environment: {', '.join(names)}. These variables take precedence over the profile. "
            f"To use the profile, pass --profile {profile.name} or profile=, or unset them."
        )
