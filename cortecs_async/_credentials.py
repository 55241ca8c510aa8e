"""Find a client's credentials and inference API key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from attrs import field, frozen

from ._errors import ConfigurationError, MissingCredentialsError
from ._secrets import (
    INFERENCE_KEY_VARIABLES,
    CredentialProvider,
    Credentials,
    Hidden,
    Secret,
    credentials_problem,
    has_line_break,
    remember_inference_key,
    to_secret,
)

if TYPE_CHECKING:
    from ._profiles import Profile

_ID, _SECRET = "CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"
_WORDS = {"client_id": "client id", "client_secret": "client secret"}
_BASE_URL = "api_base_url (CORTECS_API_BASE_URL)"

# The packages with which programs use the endpoints of their instances.
_INFERENCE_PACKAGES = ("openai", "langchain_openai", "pydantic_ai")

# Placeholders for a key in examples, and variables that were not expanded.
_PLACEHOLDER = r"<.*|.*>|\$.*|your\b.*|your[-_].*|x{3,}|.*\.\.\.|change[-_ ]?me|none|null"


class FoundKey(NamedTuple):
    """An inference API key and its origin.

    Attributes:
        origin: The name of the argument or variable, or the profile, for display, or an empty string if the
            key was typed in.
    """

    value: Secret
    origin: str


@frozen(kw_only=True, eq=False)
class Sources:
    """The sources of a client's credentials and inference API key.

    Attributes:
        origin: The origin of the credentials, for display.
        missing: The reason there are no credentials, or an empty string if there are some.
        missing_names: `client_id` and `client_secret`, if they are missing.
        profile: The profile in use, or None if the credentials come from elsewhere.
        is_named: Whether the program selected the profile, which then takes precedence over the environment.
        is_anonymous: Whether the client was created with `anonymous=True`.
        credentials: The credentials, unless a provider must be called for them.
    """

    origin: str = ""
    missing: str = ""
    missing_names: tuple[str, ...] = ()
    profile: Profile | None = None
    is_named: bool = False
    is_anonymous: bool = False
    credentials: Credentials | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raise an error if there are no credentials."""
        if self.missing:
            profile = self.profile.name if self.profile is not None else ""
            raise MissingCredentialsError(self.missing, missing=self.missing_names, profile=profile)

    def api_base_url(self) -> str:
        """Return the base URL from the environment or the profile, or an empty string for the default."""
        variable = _variable("CORTECS_API_BASE_URL")
        own = self.profile.api_base_url if self.profile is not None else ""
        return (own or variable) if self.is_named else (variable or own)

    @property
    def url_name(self) -> str:
        """The name of the base URL from the environment or the profile, for errors."""
        own = self.profile is not None and self.profile.api_base_url == self.api_base_url()
        return f"the base URL of {self.profile}" if own and self.api_base_url() else "CORTECS_API_BASE_URL"

    def url_origin(self, url: str) -> str:
        """Return the origin of this base URL, or an empty string for the default or an argument."""
        if self._has_url(url):
            return str(self.profile)
        return "CORTECS_API_BASE_URL" if _variable("CORTECS_API_BASE_URL").rstrip("/") == url else ""

    def _has_url(self, url: str) -> bool:
        return self.profile is not None and self.profile.api_base_url.rstrip("/") == url

    def url_place(self, url: str) -> str:
        """Return the place where the user can correct this base URL."""
        return f"the base URL of {self.profile}" if self._has_url(url) else _BASE_URL

    def credentials_advice(self, url: str) -> str:
        """Return the advice for when the service at this base URL rejects the credentials."""
        place = self.url_place(url)
        if self.profile is None:
            is_provided = self.origin == "credential_provider"
            what = self.origin if is_provided else f"client_id and client_secret ({_ID}, {_SECRET})"
            return f"Check {what}, and {place}."
        also = "" if self._has_url(url) else f" and {place}"
        return f"Check {self.profile}{also}, or run `{_login(self.profile)}`."

    def inference_key(self, given: Hidden[str | Secret | None]) -> FoundKey:
        """Return the inference API key: the argument, or the key from the environment or the profile.

        The argument is hidden, because a traceback that shows locals would show it.

        Raises:
            ConfigurationError: if there is no key, or it cannot be valid.
        """
        found = next(self._keys(_given_key(given)), None)
        if found is None:
            raise ConfigurationError(_NO_KEY)
        if problem := self.key_problem(found):
            raise ConfigurationError(problem)
        remember_inference_key(found.value)
        return found

    def inference_key_problem(self) -> str:
        """Return the reason there is no usable inference API key, or an empty string if there is one.

        May wait for the system keyring.
        """
        try:
            found = next(self._keys(Secret("")), None)
        except ConfigurationError as error:  # from the keyring
            return str(error).rstrip(".")
        if found is not None:
            return self.key_problem(found)
        # The key in a profile is used only together with the profile's credentials.
        return f"{_NO_KEY_SET}, or store it with `{_login(self.profile)}`" if self.profile else _NO_KEY_SET

    def inference_key_origin(self) -> str:
        """Return the origin of the inference API key, or an empty string if there is none."""
        if self.is_named and self.profile is not None and self.profile.has("api_key"):
            return str(self.profile)
        variable = next(filter(_variable, INFERENCE_KEY_VARIABLES), "")
        has_own = self.profile is not None and self.profile.has("api_key")
        return variable or (str(self.profile) if has_own else "")

    def _keys(self, given: Secret) -> Iterator[FoundKey]:
        """Yield the keys that are set, in order of precedence."""
        if given:
            yield FoundKey(given, "api_key=")
        if self.is_named:
            yield from self._key_of_profile()
        for name in INFERENCE_KEY_VARIABLES:
            # Stripped, because a key read from a file often ends with a line break.
            if key := Secret(_variable(name)):
                yield FoundKey(key, name)
        if not self.is_named:
            yield from self._key_of_profile()

    def _key_of_profile(self) -> Iterator[FoundKey]:
        if self.profile is not None and (key := self.profile.secret("api_key")):
            yield FoundKey(key, str(self.profile))

    def key_problem(self, found: FoundKey) -> str:
        """Return the reason a key cannot be valid, without showing the key, or an empty string."""
        key = found.value.reveal()
        what = f"The inference API key {f'from {found.origin}' if found.origin else 'that you entered'}"
        if has_line_break(key):
            return f"{what} contains a line break."
        if not (key.isascii() and key.isprintable()):
            return f"{what} contains characters that are not allowed in an HTTP header."
        if any(character in key for character in " \"'"):
            # From a file in which the quotes were kept, or a whole header.
            return f"{what} contains a space or a quotation mark. Set it to the key only."
        if re.fullmatch(_PLACEHOLDER, key, re.IGNORECASE):
            return f"{what} is a placeholder. Set it to your inference API key from cortecs.ai."
        for name, credential in self._credentials():
            if found.value == credential:
                return f"{what} is your {_WORDS[name]}. Create an inference API key on cortecs.ai."
        return ""

    def _credentials(self) -> Iterator[tuple[str, Secret]]:
        """Yield the credentials, which users sometimes mistake for the key."""
        for name, variable in (("client_id", _ID), ("client_secret", _SECRET)):
            if value := Secret(_variable(variable)):
                yield name, value
        if self.credentials is not None:
            yield "client_id", Secret(self.credentials.client_id)
            yield "client_secret", self.credentials.client_secret


_NO_KEY = (
    "No inference API key. Pass api_key=, or set CORTECS_API_KEY or OPENAI_API_KEY. Create the key "
    "on cortecs.ai. client_id and client_secret are only for provisioning."
)
_NO_KEY_SET = (
    "No inference API key. Set CORTECS_API_KEY or OPENAI_API_KEY to your inference API key from "
    "cortecs.ai (not the client id and secret)."
)


CREDENTIALS_HINT = (
    "Run `cortecs-async login`, or set the variables. Create credentials on your account page on cortecs.ai. "
    "No account? Try `cortecs-async demo`."
)


def _variable(name: str) -> str:
    """Return the value of an environment variable without a line break, which may come from a file."""
    return os.environ.get(name, "").strip()


def uses_inference() -> bool:
    """Return whether a package is installed that programs use for the endpoints of instances."""
    import importlib.util  # noqa: PLC0415  (slow, and needed only without a key)

    for name in _INFERENCE_PACKAGES:
        try:
            if importlib.util.find_spec(name) is not None:
                return True
        except ValueError:  # a module without a spec, added by a program
            return True
    return False


def _login(profile: Profile) -> str:
    return f"cortecs-async login --profile {profile.name}"


def _given_key(given: Hidden[str | Secret | None]) -> Secret:
    """Return the argument `api_key`, or an empty secret if it was not passed."""
    if given.reveal() is not None and not isinstance(given.reveal(), (str, Secret)):
        raise ConfigurationError(f"api_key must be a string, not {type(given.reveal()).__name__}")
    return to_secret(given.reveal() or "")


def environment_sources(given: Hidden[str | Secret | None]) -> Sources:
    """Return the sources of a handle without a client, to which this `api_key` was passed.

    The config file is read only if it can contain the key. Problems with the credentials are ignored.
    """
    if _given_key(given) or any(map(_variable, (*INFERENCE_KEY_VARIABLES, _ID, _SECRET))):
        return Sources()
    return resolve_sources(client_id=None, client_secret=None, provider=None, profile=None)[0]


def resolve_sources(
    *,
    client_id: str | None,
    client_secret: Secret | None,
    provider: CredentialProvider | None,
    profile: str | None,
    anonymous: bool = False,
) -> tuple[Sources, CredentialProvider]:
    """Find the credentials: passed as arguments, from the environment, or from a profile.

    The environment completes the arguments. A profile is used as a whole or not at all, because a client id
    from one place and a secret from another would not match. An anonymous client uses a profile only for its
    base URL, and only if the profile was selected.

    Raises:
        ConfigurationError: if the arguments contradict each other, a value cannot be valid, or the config
            file is needed but cannot be used.
    """
    if profile is not None and not (isinstance(profile, str) and profile.strip()):
        raise ConfigurationError(f"profile must be a profile name, not {profile!r}")
    is_given = bool(client_id or client_secret)
    if provider is not None and (is_given or profile):
        other = "client_id and client_secret" if is_given else "profile"
        raise ConfigurationError(f"Pass either credential_provider or {other}, not both.")
    if profile and is_given:
        raise ConfigurationError("Pass either profile or client_id and client_secret, not both.")
    if provider is not None:
        if not callable(provider):
            raise ConfigurationError("credential_provider must be an async function that takes no arguments")
        return Sources(origin="credential_provider"), provider
    variables = {name: Secret(_variable(name)) for name in (_ID, _SECRET)}
    found = None
    is_needed = bool(_variable("CORTECS_PROFILE")) if anonymous else True
    if profile or (is_needed and not (is_given or any(variables.values()))):
        from ._profiles import load_profile  # noqa: PLC0415  (slow, and not needed if there are variables)

        found = load_profile(profile)
    if found is not None:
        credentials = Credentials(client_id=found.client_id, client_secret=found.client_secret)
        values = {"client_id": found.has("client_id"), "client_secret": found.has("client_secret")}
        origin = str(found)
    else:
        credentials = Credentials(
            client_id=variables[_ID].reveal() if client_id is None or client_id == "" else client_id,
            client_secret=client_secret or variables[_SECRET],
        )
        values = {name: bool(getattr(credentials, name)) for name in ("client_id", "client_secret")}
        origin = _origin(is_id_given=bool(client_id), is_secret_given=bool(client_secret))
    if not anonymous and (problem := credentials_problem(credentials, may_be_missing=True)):
        raise ConfigurationError(problem)
    missing = () if anonymous else tuple(name for name, is_there in values.items() if not is_there)
    sources = Sources(
        origin=origin,
        missing=_missing_text(missing, found, origin) if missing else "",
        missing_names=missing,
        profile=found,
        is_named=bool(profile),
        is_anonymous=anonymous,
        credentials=credentials,
    )
    return sources, partial(_provide, sources)


async def _provide(sources: Sources) -> Credentials:
    if sources.is_anonymous:
        raise ConfigurationError(
            "This request needs credentials, but the client was created with anonymous=True. "
            "Create a client without it."
        )
    sources.check()
    credentials, profile = sources.credentials, sources.profile
    if profile is not None and "client_secret" in profile.in_keyring:
        import anyio.to_thread  # noqa: PLC0415  (the keyring may wait for its user)

        secret = await anyio.to_thread.run_sync(profile.secret, "client_secret")
        return Credentials(client_id=profile.client_id, client_secret=secret)
    assert credentials is not None  # noqa: S101  (for type checkers)
    return credentials


def _origin(*, is_id_given: bool, is_secret_given: bool) -> str:
    places = ("client_id=" if is_id_given else _ID, "client_secret=" if is_secret_given else _SECRET)
    return " and ".join(places)


def _missing_text(missing: tuple[str, ...], profile: Profile | None, origin: str) -> str:
    where = "Create them on your account page on cortecs.ai. No account? Try `cortecs-async demo`."
    if profile is not None:
        what = " and no ".join(_WORDS[each] for each in missing)
        return f"{profile} has no {what}. Run `{_login(profile)}`."
    if len(missing) == 2:
        return (
            f"No credentials. Pass client_id= and client_secret= to AsyncCortecs, set {_ID} and {_SECRET}, "
            f"or run `cortecs-async login`. {where}"
        )
    (name,) = missing
    places = origin.split(" and ")
    lacking, other = places if name == "client_id" else places[::-1]
    if other.endswith("="):
        given = other.removesuffix("=")
        return f"{given} was passed, but no {_WORDS[name]}. Pass {name}= to AsyncCortecs, or set {lacking}."
    return f"{other} is set, but {lacking} is not. Set it, or unset {other} to use your profile."
