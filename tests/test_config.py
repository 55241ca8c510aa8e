"""Settings: precedence, what is refused, and that nothing shows a secret."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import httpx
import httpx2
import pytest
import yarl
from _grids import alternating, on_one_backend
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, ConfigurationError, Credentials, PollPolicy, RetryPolicy, Secret
from cortecs_async._config import (
    DEFAULT_API_BASE_URL,
    Settings,
    check_api_base_url,
    is_loopback_host,
    resolve_settings,
)
from cortecs_async._secrets import Hidden
from cortecs_async.errors import MissingCredentialsError

HUSH = "t0p-s3cret"


def resolve(environ: Mapping[str, str] | None = None, **given_: Any) -> Settings:
    arguments: dict[str, Any] = {
        "client_id": None,
        "client_secret": None,
        "credential_provider": None,
        "profile": None,
        "anonymous": False,
        "api_base_url": None,
        "timeout": 30.0,
        "max_retries": None,
        "retry_policy": None,
        "poll_policy": None,
        "default_headers": None,
        "allow_insecure_http": False,
        "max_connections": 100,
        "transport": "httpx",
        "tag_starts": False,
        **given_,
    }
    for name in ("api_base_url", "default_headers"):
        arguments[name] = Hidden(arguments[name])
    with pytest.MonkeyPatch.context() as variables:
        for name, value in (environ or {}).items():
            variables.setenv(name, value)
        return resolve_settings(**arguments)


def provided(found: Settings) -> Awaitable[Credentials]:
    return found.credential_provider()


class TestSecret:
    @pytest.mark.parametrize("show", [repr, str, ascii, "{0!r}{0!s}{0}".format, "%s".__mod__])
    def test_never_shows_itself(self, show: Callable[[Secret], str]) -> None:
        assert HUSH not in show(Secret(HUSH))
        assert HUSH not in show(Secret(HUSH)).lower()

    def test_is_not_in_a_log_record(self, caplog: pytest.LogCaptureFixture) -> None:
        logging.getLogger("somewhere").warning("%s %r", Secret(HUSH), [Secret(HUSH)])
        assert HUSH not in caplog.text

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_is_not_pickled(self, protocol: int) -> None:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(Secret(HUSH), protocol)

    def test_is_not_pickled_inside_credentials(self) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(Credentials(client_id="a", client_secret=HUSH))

    def test_is_its_value_where_that_is_asked_for(self) -> None:
        assert Secret(HUSH).reveal() == HUSH
        assert Secret(HUSH) == Secret(HUSH)
        assert Secret(HUSH) != Secret("other")
        assert Secret(HUSH) != HUSH
        assert len({Secret(HUSH), Secret(HUSH)}) == 1
        assert Secret(HUSH)
        assert not Secret("")

    def test_is_not_reached_by_vars_or_a_shallow_dump(self) -> None:
        assert not hasattr(Secret(HUSH), "__dict__")
        assert HUSH not in repr(attrs.asdict(Credentials(client_id="a", client_secret=HUSH)))

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_cannot_be_copied_by_accident(self, duplicate: Callable[[Secret], Secret]) -> None:
        with pytest.raises(TypeError):
            duplicate(Secret(HUSH))


def test_credentials_wrap_a_plain_string_at_once() -> None:
    credentials = Credentials(client_id="a", client_secret=HUSH)
    assert credentials.client_secret == Secret(HUSH)
    assert HUSH not in repr(credentials)
    assert Credentials(client_id="a", client_secret=Secret(HUSH)) == credentials


class TestPrecedence:
    ENVIRON: ClassVar = {
        "CORTECS_CLIENT_ID": "env-id",
        "CORTECS_CLIENT_SECRET": "env-secret",
        "CORTECS_API_BASE_URL": "https://env.test/v1",
    }

    @on_one_backend
    async def test_an_argument_wins_over_the_environment(self) -> None:
        found = resolve(
            self.ENVIRON,
            client_id="mine",
            client_secret=Secret("my-secret"),
            api_base_url="https://mine.test",
        )
        assert found.api_base_url == "https://mine.test"
        assert await provided(found) == Credentials(client_id="mine", client_secret="my-secret")

    @on_one_backend
    async def test_the_environment_wins_over_the_default(self) -> None:
        found = resolve(self.ENVIRON)
        assert found.api_base_url == "https://env.test/v1"
        assert await provided(found) == Credentials(client_id="env-id", client_secret="env-secret")

    @on_one_backend
    async def test_the_default(self) -> None:
        assert resolve().api_base_url == DEFAULT_API_BASE_URL == "https://cortecs.ai/api/v1"

    @on_one_backend
    async def test_each_of_the_two_comes_from_where_it_is(self) -> None:
        found = resolve(self.ENVIRON, client_id="mine")
        assert await provided(found) == Credentials(client_id="mine", client_secret="env-secret")

    @on_one_backend
    async def test_blanks_around_a_variable_are_not_part_of_it(self) -> None:
        # A file read into a variable brings its line break along.
        found = resolve({name: f" {value}\n" for name, value in self.ENVIRON.items()})
        assert found.api_base_url == "https://env.test/v1"
        assert await provided(found) == Credentials(client_id="env-id", client_secret="env-secret")

    @alternating(
        "given_,missing",
        [
            ({}, ("client_id", "client_secret")),
            ({"client_id": "a"}, ("client_secret",)),
            ({"client_secret": Secret("b")}, ("client_id",)),
        ],
    )
    async def test_missing_credentials_are_named_when_they_are_needed(
        self, given_: dict[str, Any], missing: tuple[str, ...]
    ) -> None:
        found = resolve({"CORTECS_CLIENT_ID": "", "CORTECS_CLIENT_SECRET": "  "}, **given_)
        with pytest.raises(MissingCredentialsError) as caught:
            await provided(found)
        assert caught.value.missing == missing
        message = str(caught.value)
        for name in ("client_id", "client_secret"):
            assert (f"{name}= " in message, f"CORTECS_{name.upper()}" in message) == (name in missing,) * 2
        assert ("cortecs-async demo" in message) == (len(missing) == 2)

    @pytest.mark.parametrize("other", [{"client_id": "a"}, {"client_secret": Secret("b")}])
    def test_a_provider_and_credentials_contradict_each_other(self, other: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="credential_provider"):
            resolve(credential_provider=_provide, **other)

    @on_one_backend
    async def test_a_provider_wins_over_the_environment(self) -> None:
        assert await provided(resolve(self.ENVIRON, credential_provider=_provide)) == await _provide()


async def _provide() -> Credentials:
    return Credentials(client_id="provided", client_secret="also")


class TestPolicies:
    def test_a_number_of_retries_is_a_whole_number(self) -> None:
        with pytest.raises(ConfigurationError, match=r"RetryPolicy\.max_retries must be a whole number"):
            resolve(max_retries=1.5)

    @pytest.mark.parametrize(
        "name", ["max_retries", "initial_backoff", "max_backoff", "max_retry_after", "total_timeout"]
    )
    def test_a_bad_retry_number_names_its_field(self, name: str) -> None:
        odd: list[Any] = [-1, -0.001, float("nan"), float("-inf"), "three", None, True, [1]]
        for value in odd:
            with pytest.raises(ConfigurationError, match=f"RetryPolicy.{name}"):
                RetryPolicy(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("min_interval", 0),
            ("max_interval", 0.001),
            ("growth", -1),
            ("settle", float("nan")),
            ("max_outage", -1),
            ("stall_timeout", 0),
            ("stall_timeout", "soon"),
        ],
    )
    def test_a_bad_poll_number_names_its_field(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"PollPolicy.{name}"):
            PollPolicy(**{name: value})

    @pytest.mark.parametrize("value", ["false", "", 0, 1, None])
    def test_whether_starts_are_tagged_is_a_bool(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"tag_starts must be True or False, not {value!r}"):
            resolve(tag_starts=value)
        assert resolve(tag_starts=True).tag_starts
        assert not resolve().tag_starts

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), "30x", None, True])
    def test_a_bad_timeout(self, timeout: Any) -> None:
        with pytest.raises(ConfigurationError, match="timeout"):
            resolve(timeout=timeout)

    def test_limits_that_are_allowed(self) -> None:
        RetryPolicy(max_retries=0, initial_backoff=0, max_backoff=0, max_retry_after=0)
        PollPolicy(min_interval=0.01, stall_timeout=None)
        assert resolve(timeout=float("inf")).timeout == float("inf")

    def test_max_retries_changes_only_that_of_a_policy(self) -> None:
        policy = RetryPolicy(max_retries=9, max_backoff=3.0)
        assert resolve(retry_policy=policy, max_retries=0).retry == RetryPolicy(
            max_retries=0, max_backoff=3.0
        )
        assert resolve(retry_policy=policy).retry is policy
        assert resolve().retry == RetryPolicy()
        assert resolve().poll == PollPolicy()

    def test_settings_are_frozen(self) -> None:
        for frozen in (RetryPolicy(), PollPolicy(), resolve(), Credentials(client_id="a", client_secret="b")):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                frozen.timeout = 1  # type: ignore[union-attr, misc]


class TestBaseURL:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://h.test/api/v1/", "https://h.test/api/v1"),
            ("https://h.test", "https://h.test"),
            ("https://h.test//", "https://h.test"),
            ("https://h.test:8443/x", "https://h.test:8443/x"),
            ("http://localhost:8000/api", "http://localhost:8000/api"),
            ("http://LOCALHOST/", "http://LOCALHOST"),
            ("http://api.localhost", "http://api.localhost"),
            ("http://127.0.0.1:1", "http://127.0.0.1:1"),
            ("http://127.255.0.9", "http://127.255.0.9"),
            ("http://[::1]:9", "http://[::1]:9"),
        ],
    )
    def test_is_taken_without_its_last_slash(self, url: str, expected: str) -> None:
        assert check_api_base_url(url, allow_insecure_http=False) == expected

    @pytest.mark.parametrize(
        "url",
        [
            "http://cortecs.ai/api/v1",
            "http://0.0.0.0",
            "http://128.0.0.1",
            "http://[::2]",
            "http://localhost.evil.test",
            "http://evillocalhost",
            "http://127.0.0.1.evil.test",
            "http://127.1",
            "http://10.0.0.1",
            "HTTP://cortecs.ai",
        ],
    )
    def test_plain_http_beyond_this_machine_takes_insisting(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="allow_insecure_http=True"):
            check_api_base_url(url, allow_insecure_http=False)
        assert check_api_base_url(url, allow_insecure_http=True) == url

    @pytest.mark.parametrize(
        "url",
        [
            "cortecs.ai",
            "cortecs.ai/api",
            "//cortecs.ai",
            "/api/v1",
            "ftp://cortecs.ai",
            "file:///etc/passwd",
            "https://",
            "https:///path",
            "https://[::1",
            "https://h.test:port",
            "https://h.test:99999999",
            "https:h.test",
            "   ",
        ],
    )
    def test_what_is_no_absolute_http_url(self, url: str) -> None:
        for insist in (False, True):
            with pytest.raises(ConfigurationError, match="api_base_url"):
                check_api_base_url(url, allow_insecure_http=insist)

    @pytest.mark.parametrize(
        "url",
        [
            f"https://user:{HUSH}@h.test",
            f"https://{HUSH}@h.test",
            f"https://:{HUSH}@h.test/api",
            f"http://user:{HUSH}@localhost",
            f"user:{HUSH}@h.test",  # without a scheme, "user" looks like one
            f"https:/user:{HUSH}@h.test",
            f"//user:{HUSH}@h.test",
            f"https://user:{HUSH}/x@h.test",  # "port" is what comes before the slash
            f"https://user:{HUSH}@[::1",
            f"https://user:{HUSH}@ex\u2100mple.test",
            f"https://h.test/?api_key={HUSH}",
            f"https://h.test/#{HUSH}",
            f"ftp://user:{HUSH}@h.test",
        ],
    )
    def test_what_may_hold_a_secret_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            check_api_base_url(url, allow_insecure_http=True)
        assert HUSH not in "".join(traceback.format_exception(caught.value))
        assert HUSH not in repr(caught.value)

    @pytest.mark.parametrize("url", ["https://h\x01.test", "https://xn--zz--/", "https://h.test/\x7f"])
    def test_what_only_the_http_client_refuses_is_refused_at_once(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="api_base_url"):
            AsyncCortecs("a", "b", api_base_url=url)

    @given(st.text(max_size=40) | st.from_regex(r"https?://[a-z0-9.\[\]:@%\\/?#]*", fullmatch=True))
    @settings(max_examples=300, derandomize=True)
    def test_whatever_passes_is_sent_where_the_check_believes(self, url: str) -> None:
        # Two parsers look at the URL, urllib's here and httpx's own: the first decides, the second sends.
        try:
            checked = check_api_base_url(url, allow_insecure_http=False)
            sent_to = httpx.URL(checked)
        except (ConfigurationError, httpx.InvalidURL):
            return
        assert not sent_to.userinfo
        assert sent_to.scheme == "https" or is_loopback_host(sent_to.host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("x.localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("", False),
        ("localhost.test", False),
        ("::ffff:1.2.3.4", False),
        ("192.168.0.1", False),
    ],
)
def test_loopback(*, host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected


def test_settings_know_whether_they_stay_on_this_machine() -> None:
    assert resolve(api_base_url="http://127.0.0.1:1/x").is_loopback
    assert not resolve().is_loopback


class URLLike:
    """A URL object with the attributes of that of Starlette."""

    scheme = "https"
    hostname = "h.test"

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return self._url


class TestTypes:
    @pytest.mark.parametrize(
        "kind",
        [httpx.URL, httpx2.URL, yarl.URL, urllib.parse.urlsplit, URLLike, "{}/".format, " {}\n".format],
        ids=["httpx", "httpx2", "yarl", "urllib", "another", "str", "str with whitespace"],
    )
    def test_a_base_url_may_be_an_object(self, kind: Callable[[str], Any]) -> None:
        assert resolve(api_base_url=kind("https://h.test/v1")).api_base_url == "https://h.test/v1"

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("api_base_url", [b"https://h.test", 5, Path("/v1"), ["https://h.test"], object(), True]),
            ("client_id", [b"id", 5, ["id"], 0]),
            ("client_secret", [b"secret", 5, ["secret"]]),
            ("credential_provider", ["id", 5, ("id", "secret")]),
            ("timeout", ["30x", None, True, [1]]),
            ("max_retries", ["3", True, [1]]),
            ("retry_policy", [{}, 3, "none", RetryPolicy]),
            ("poll_policy", [{}, 3, RetryPolicy()]),
            ("default_headers", [["X-A: b"], "X-A: b", 5, 0, {"X-A": 5}, {5: "b"}]),
            ("http_client", [5, "httpx", httpx.Client, {}]),
            ("allow_insecure_http", [1, "yes", None]),
            ("guard", [True, None, "on", []]),
            ("journal", [True, None, "on", []]),
            ("max_connections", ["10", 1.5, None]),
            ("transport", ["requests", None, 5, []]),
            ("tag_starts", [1, "yes", None]),
            ("telemetry", [5, "otel", print]),
        ],
    )
    def test_an_argument_of_a_wrong_type_is_a_typed_error_at_once(self, name: str, values: list[Any]) -> None:
        for value in values:
            arguments = {"client_id": "a", "client_secret": "b", name: value}
            if name == "credential_provider":
                arguments = {name: value}
            with pytest.raises(ConfigurationError, match=name.partition("_")[0]):
                AsyncCortecs(**arguments)

    @pytest.mark.parametrize("name", ["client_id", "client_secret"])
    def test_a_line_break_inside_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match=f"^{name} contains a line break$"):
            arguments: dict[str, Any] = {
                name: Secret(f"{HUSH}\r\nmore") if name == "client_secret" else f"{HUSH}\r\nmore"
            }
            resolve(**arguments)
        monkeypatch.setenv(f"CORTECS_{name.upper()}", f"{HUSH}\nmore")
        with pytest.raises(ConfigurationError, match=f"^{name} contains a line break$"):
            AsyncCortecs()

    @on_one_backend
    async def test_a_line_break_at_the_end_is_removed(self) -> None:
        async def provide() -> Credentials:
            return Credentials(client_id="a\n", client_secret=Secret(f" {HUSH}\r\n"))

        given = await provided(resolve(client_id="a\n", client_secret=Secret(f"{HUSH}\n")))
        assert given == await provide() == Credentials(client_id="a", client_secret=HUSH)
        assert dict(resolve(default_headers={"X-A": "b\n"}).headers) == {"X-A": "b"}


class TestHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": HUSH},
            {"authorization": HUSH},
            {"HOST": "h"},
            {"Content-Length": "0"},
            {"content-type": "text/plain"},
            {"Transfer-Encoding": "chunked"},
            {"X-A": "a\r\nX-B: b"},
            {"X-A\r\nX-B": "b"},
            {"X-A": "a\0"},
            {"X A": "b"},
            {"": "b"},
            {"X-A:": "b"},
            {"X-Ä": "b"},
            {"X-A": "ä"},
            {"X-A": "\x1b[0m"},
            {"X-A": 1},
            {1: "x"},
            {"X-A": b"x"},
        ],
    )
    def test_what_would_break_a_request_is_refused_at_once(self, headers: Any) -> None:
        with pytest.raises(ConfigurationError, match="default_headers") as caught:
            resolve(default_headers=headers)
        assert HUSH not in str(caught.value)

    def test_others_are_copied(self) -> None:
        mine = {"X-Team": "blue\tgreen", "User-Agent": "mine/1"}
        found = resolve(default_headers=mine)
        mine["X-Team"] = "changed"
        assert dict(found.headers) == {"X-Team": "blue\tgreen", "User-Agent": "mine/1"}


def test_a_repr_of_settings_has_neither_credentials_nor_headers() -> None:
    found = resolve(
        client_id="the-id", client_secret=Secret(HUSH), default_headers={"X-Key": f"{HUSH}-header"}
    )
    assert HUSH not in repr(found)
    assert "cortecs.ai" in repr(found)
