"""The config file: credentials, an inference API key, and a base URL for each profile.

The file follows the same rules as the state directory: it must be a regular file owned by this user, in a
directory that no other user can write to. In addition, no other user may be able to read it. `login` creates
it with the mode 0600. If the package `keyring` works, the secrets are in the system keyring, and the file
only lists their names.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from ._errors import ConfigurationError
from ._extras import install_command
from ._hints import did_you_mean
from ._keyring import read_entry, remove_entries, store_entries, working_keyring
from ._logging import Event, log
from ._secrets import Hidden, Secret
from ._state_directory import StateFolder

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl

DEFAULT_PROFILE = "default"

# Names that do not need quotes in TOML.
PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]+")

_SECRETS = ("client_secret", "api_key")
_TEXTS = ("client_id", *_SECRETS, "api_base_url")
_KEYS = (*_TEXTS, "keyring")

_HEADER = "# The profiles of cortecs-async, written by `cortecs-async login`.\n"
_PLAIN = "# The secrets are stored in this file as plain text: do not share it.\n"

# Files and keys already listed in a warning.
_named: set[tuple[str, str]] = set()


@frozen(kw_only=True)
class Profile:
    """A profile in the config file. Unset strings are empty.

    Attributes:
        name: Its name.
        file: The config file.
        in_keyring: The names of the secrets stored in the system keyring.
    """

    name: str
    file: Path
    client_id: str = ""
    client_secret: Secret = field(factory=lambda: Secret(""))
    api_key: Secret = field(factory=lambda: Secret(""))
    api_base_url: str = field(default="", repr=False)  # it may have a password, until it is checked
    in_keyring: tuple[str, ...] = ()
    # The secrets the keyring has returned. Reading it may wait for the user.
    _found: dict[str, Secret] = field(factory=dict, init=False, repr=False, eq=False)

    def __str__(self) -> str:
        keyring = f", with {' and '.join(self.in_keyring)} in the keyring" if self.in_keyring else ""
        return f'profile "{self.name}" in {self.file}{keyring}'

    def has(self, name: str) -> bool:
        """Return whether the profile has this value, in the file or in the keyring."""
        return bool(getattr(self, name)) or name in self.in_keyring

    def secret(self, name: str) -> Secret:
        """Return a secret of the profile, or an empty one if it is not set. May wait for the system keyring.

        Raises:
            ConfigurationError: if the keyring does not return it.
        """
        if name not in self.in_keyring:
            value: Secret = getattr(self, name)
            return value
        if name in self._found:
            return self._found[name]
        what, again = name.replace("_", " "), f"log in again: `cortecs-async login --profile {self.name}`"
        if (keyring := working_keyring()) is None:
            raise ConfigurationError(
                f'The {what} of profile "{self.name}" is in the system keyring, but the keyring package is '
                f"not installed or has no backend. Run: {install_command('keyring')}, or {again}."
            )
        found, problem = read_entry(keyring, self.entry(name))
        if problem:
            raise ConfigurationError(
                f'Cannot read the {what} of profile "{self.name}" from the system keyring: {problem}. '
                f"Check the keyring, or {again}."
            )
        self._found[name] = found
        return found

    def entry(self, name: str) -> str:
        """Return the name of a secret in the keyring."""
        return f"{self.name} {self.client_id} {name}"


# --- reading ------------------------------------------------------------------------------------------------


def config_file() -> Path | None:
    """Return the path of the config file: CORTECS_CONFIG_FILE, or the file in the user's config directory.

    Return None if there is no file because the variable is `/dev/null`, or the user does not have a home
    directory.
    """
    chosen = os.environ.get("CORTECS_CONFIG_FILE", "").strip()
    if chosen:
        return None if chosen == os.devnull else Path(os.path.abspath(chosen))  # noqa: PTH100  (keeps no `..`)
    import platformdirs  # noqa: PLC0415  (slow, and not needed by every program)

    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry in passwd
        path = Path(platformdirs.user_config_path("cortecs", appauthor=False), "config.toml")
        return path if path.is_absolute() else None
    return None


def why_no_file() -> tuple[str, str]:
    """Return the reason `config_file` returns None, and what to do."""
    if os.environ.get("CORTECS_CONFIG_FILE", "").strip():
        return f"CORTECS_CONFIG_FILE is {os.devnull}", "Unset it, or set it to a file path."
    return "The home directory could not be determined", "Set CORTECS_CONFIG_FILE to a file path."


def load_profile(name: str | None = None) -> Profile | None:
    """Return a profile in the config file: `name`, or the one in CORTECS_PROFILE, or `default`.

    Returns:
        None if there is no `default` profile and no profile is selected.

    Raises:
        ConfigurationError: if the selected profile does not exist, or the file is not safe to use, cannot be
            read, or has an error.
    """
    named = name or os.environ.get("CORTECS_PROFILE", "").strip()
    path = config_file()
    profiles = {} if path is None else _profiles_of(path, _read(path))
    if path is not None and (found := profiles.get(named or DEFAULT_PROFILE)):
        return found
    if not named:
        return None
    if path is None:
        reason, advice = why_no_file()
        raise ConfigurationError(f'{reason}, so profile "{named}" cannot be used. {advice}')
    near = difflib.get_close_matches(named, profiles, n=1)
    advice = did_you_mean(near) or f"Run `cortecs-async login --profile {named}`."
    raise ConfigurationError(f'{path} has no profile "{named}". {advice}')


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles in the config file. Raises as `load_profile` does."""
    path = config_file()
    return () if path is None else tuple(_profiles_of(path, _read(path)))


def _read(path: Path) -> Hidden[str]:
    """Return the text of the config file; an empty text if it does not exist."""
    # On other systems, the owner and the mode of a file cannot be checked.
    if os.name != "posix" or not os.path.lexists(path):
        return Hidden("")
    try:
        with _folder(path) as folder, os.fdopen(folder.open(path.name, os.O_RDONLY), "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise PermissionError(f"other users can read it (mode {mode:o}): chmod 600 {path}")
            return Hidden(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError:
        problem = "not valid UTF-8"
    except OSError as error:
        problem = str(error)
    raise ConfigurationError(
        f"The config file {path} cannot be used: {problem}. To ignore it, set CORTECS_CONFIG_FILE=/dev/null."
    )


def _parse(path: Path, text: Hidden[str]) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  (most programs have no config file)

    try:
        return tomllib.loads(text.reveal())
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # Without the text of the file, which newer versions of Python keep in the error.
        problem, line = str(error), re.search(r"\(at line (\d+)", str(error))
    where = f"{path}, line {line[1]}" if line else f"{path}"
    raise ConfigurationError(f"{where}: {problem.partition(' (at ')[0]}. Fix the file or delete it.")


def _profiles_of(path: Path, text: Hidden[str]) -> dict[str, Profile]:
    data = Hidden(_parse(path, text))
    for name in data.reveal():
        _warn_unknown(path, name, ("profiles",))
    profiles = Hidden(data.reveal().get("profiles", {}))
    if not isinstance(profiles.reveal(), dict):
        raise ConfigurationError(f"{path}: profiles must be tables, as in [profiles.default]")
    return {name: _profile(path, name, profiles) for name in profiles.reveal()}


def _profile(path: Path, name: str, profiles: Hidden[dict[str, Any]]) -> Profile:
    where, values = f"profiles.{name}", Hidden(profiles.reveal()[name])
    if not isinstance(values.reveal(), dict):
        raise ConfigurationError(f"{path}: {where} must be a table, as in [{where}]")
    for key in values.reveal():
        _warn_unknown(path, key, _KEYS, f"{where}.")
    if wrong := [key for key in _TEXTS if not isinstance(values.reveal().get(key, ""), str)]:
        raise ConfigurationError(f"{path}: {where}.{wrong[0]} must be a string in quotes")
    keyring = values.reveal().get("keyring", [])
    if not isinstance(keyring, list) or not all(each in _SECRETS for each in keyring):
        raise ConfigurationError(f"{path}: {where}.keyring must be a list of {' and '.join(_SECRETS)}")
    texts = Hidden({key: values.reveal().get(key, "").strip() for key in _TEXTS})
    return Profile(
        name=name,
        file=path,
        client_id=texts.reveal()["client_id"],
        client_secret=Secret(texts.reveal()["client_secret"]),
        api_key=Secret(texts.reveal()["api_key"]),
        api_base_url=texts.reveal()["api_base_url"],
        in_keyring=tuple(keyring),
    )


def _warn_unknown(path: Path, key: str, known: tuple[str, ...], prefix: str = "") -> None:
    if key in known or (str(path), f"{prefix}{key}") in _named:
        return
    _named.add((str(path), f"{prefix}{key}"))
    near = difflib.get_close_matches(key, known, n=1)
    advice = did_you_mean(near) or f"The known keys are {', '.join(known)}"
    log(Event.CONFIG_UNKNOWN_KEY, file=str(path), key=f"{prefix}{key}", advice=advice)


# --- writing ------------------------------------------------------------------------------------------------


def save_profile(profile: Profile) -> Profile:
    """Write a profile to the config file, and its secrets to the keyring if the keyring works.

    Returns:
        The profile as it was written.

    Raises:
        ConfigurationError: if there is no config file, or it cannot be used or changed.
    """
    with _lock(profile.file):
        text = _read(profile.file)
        former = _profiles_of(profile.file, text).get(profile.name)
        saved = _store_in_keyring(profile)
        values: dict[str, Any] = {key: getattr(saved, key) for key in ("client_id", "api_base_url")}
        values |= {key: getattr(saved, key).reveal() for key in _SECRETS}
        section: Hidden[dict[str, Any]] = Hidden(
            {key: value for key, value in values.items() if value}
            | ({"keyring": list(saved.in_keyring)} if saved.in_keyring else {})
        )
        del values
        try:
            _rewrite(profile.file, profile.name, text, section)
        except BaseException:
            _forget(saved, keep=() if former is None else set(map(former.entry, former.in_keyring)))
            raise
        if former is not None:
            _forget(former, keep=set(map(saved.entry, saved.in_keyring)))
    return saved


def remove_profile(name: str) -> Profile | None:
    """Remove a profile from the config file and its secrets from the keyring. Return the removed profile.

    Raises:
        ConfigurationError: as `save_profile`.
    """
    path = config_file()
    if path is None or not os.path.lexists(path):
        return None
    with _lock(path):
        text = _read(path)
        former = _profiles_of(path, text).get(name)
        if former is not None:
            _rewrite(path, name, text, None)
            _forget(former)
    return former


def _folder(path: Path, *, create: bool = False) -> StateFolder:
    """Return the directory of the config file, possibly the home directory, which has a system parent."""
    return StateFolder(path.parent, create=create, has_own_parent=False)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Allow only one process at a time to change the config file."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(_folder(path, create=True))
        except OSError as error:
            raise ConfigurationError(f"The config file {path} cannot be written: {error}") from None
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(folder.fileno(), fcntl.LOCK_EX)
        yield


def _store_in_keyring(profile: Profile) -> Profile:
    names = tuple(name for name in _SECRETS if getattr(profile, name))
    if not store_entries({profile.entry(name): getattr(profile, name) for name in names}):
        return profile
    emptied: dict[str, Any] = dict.fromkeys(names, Secret(""))
    return evolve(profile, in_keyring=names, **emptied)


def _forget(profile: Profile, keep: Collection[str] = ()) -> None:
    entries = map(profile.entry, profile.in_keyring)
    remove_entries(entry for entry in entries if entry not in keep)


def _rewrite(path: Path, name: str, text: Hidden[str], section: Hidden[dict[str, Any]] | None) -> None:
    """Replace, add, or remove one profile. The rest of the file, with its comments, stays as it is."""
    expected = Hidden(_parse(path, text))
    profiles: dict[str, Any] = expected.reveal().setdefault("profiles", {})
    if section is None:
        del profiles[name]
    else:
        profiles[name] = section.reveal()
    del profiles
    new = Hidden(_with_section(text.reveal(), name, None if section is None else section.reveal()))
    found = Hidden[dict[str, Any]]({})
    with contextlib.suppress(ConfigurationError):  # such as a table that is there twice now
        found = Hidden({"profiles": {}, **_parse(path, new)})
    if found.reveal() != expected.reveal():
        raise ConfigurationError(
            f'Profile "{name}" in {path} cannot be edited automatically. Edit the file by hand.'
        )
    try:
        _replace(path, Hidden(new.reveal().encode()))
    except OSError as error:
        raise ConfigurationError(f"The config file {path} cannot be written: {error}") from None


def _with_section(text: str, name: str, section: Mapping[str, Any] | None) -> str:
    lines = text.splitlines(keepends=True) or [_HEADER]
    own = re.compile(rf"\s*\[\s*profiles\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*\]")
    begin = next((at for at, line in enumerate(lines) if own.match(line)), len(lines))
    end = next((at for at in range(begin + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    while begin + 1 < end < len(lines) and lines[end - 1].lstrip().startswith("#"):
        end -= 1  # a comment that belongs to the next table
    new: list[str] = []
    if section is not None:
        secret_note = [_PLAIN] if any(key in section for key in _SECRETS) else []
        before = ["\n"] if begin == len(lines) else []
        new = [
            *before,
            f"[profiles.{name}]\n",
            *secret_note,
            *(f"{k} = {_toml(v)}\n" for k, v in section.items()),
        ]
        if end < len(lines):
            new.append("\n")
    if begin == len(lines) and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join([*lines[:begin], *new, *lines[end:]])


def _toml(value: str | list[str]) -> str:
    import json  # noqa: PLC0415  (only to write)

    # Every JSON string is a valid TOML string, except for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, data: Hidden[bytes]) -> None:
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    with _folder(path) as folder:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            with os.fdopen(folder.open(temporary, flags), "wb") as file:
                file.write(data.reveal())
                file.flush()
                os.fsync(file.fileno())
            folder.rename(temporary, path.name)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.remove(temporary)
            raise
        os.fsync(folder.fileno())
