"""A missing or wrong inference API key, and missing credentials, are noticed before anything is billed."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
from _grids import on_one_backend
from _leaks import leaks
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, ConfigurationError, Credentials, InvalidArgumentError, _credentials
from cortecs_async.errors import MissingCredentialsError
from cortecs_async.integrations.web import BackgroundInstance


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if a package for inference were installed."""
    monkeypatch.setattr("cortecs_async._client.wiring.uses_inference", lambda: True)
    monkeypatch.setattr("cortecs_async._client.diagnosis.uses_inference", lambda: True)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Return the messages that the logger `cortecs_async.config` gets."""

    class Messages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    handler = Messages()
    logging.getLogger("cortecs_async.config").addHandler(handler)
    yield found
    logging.getLogger("cortecs_async.config").removeHandler(handler)


@pytest.mark.usefixtures("installed")
class TestWarning:
    async def test_comes_before_the_start_and_once_per_client(
        self, world: World, warnings: list[str]
    ) -> None:
        async with world() as (emu, client):
            lease = client.instance(MODEL, HARDWARE)
            (warning,) = warnings
            assert warning.startswith("No inference API key. Set CORTECS_API_KEY or OPENAI_API_KEY to your ")
            # True also if the program passes a key later.
            assert "If you pass api_key= yourself" in warning
            assert "require_key=False" in warning
            assert emu.requests == ()
            async with lease as inst:
                assert inst.openai_kwargs(api_key="k")["api_key"] == "k"
            client.instance(MODEL, HARDWARE)
        assert len(warnings) == 1

    @pytest.mark.parametrize(
        "options", [{"require_key": False}, {"key": "CORTECS_API_KEY"}, {"key": "OPENAI_API_KEY"}]
    )
    @on_one_backend
    async def test_does_not_come(
        self, world: World, warnings: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if name := options.pop("key", None):
            monkeypatch.setenv(name, "k")
        async with world() as (_, client):
            client.instance(MODEL, HARDWARE, **options)
            # It does not start anything.
            client.attach("i")
        assert warnings == []

    @on_one_backend
    async def test_names_a_key_that_cannot_be_right(
        self, world: World, warnings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "your-key-here")
        async with world() as (_, client):
            await client.acquire(MODEL, HARDWARE)
        assert warnings[0].startswith("The inference API key from OPENAI_API_KEY is a placeholder. ")
        assert "your-key-here" not in warnings[0]


@on_one_backend
async def test_no_warning_without_a_package_for_inference(world: World, warnings: list[str]) -> None:
    async with world() as (_, client):
        client.instance(MODEL, HARDWARE)
    assert warnings == []


def test_packages_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_credentials, "_INFERENCE_PACKAGES", ("no_such_package", "no_such_package_either"))
    assert not _credentials.uses_inference()
    monkeypatch.setattr(_credentials, "_INFERENCE_PACKAGES", ("no_such_package", "xmlrpc"))
    monkeypatch.delitem(sys.modules, "xmlrpc", raising=False)
    assert _credentials.uses_inference()
    assert "xmlrpc" not in sys.modules
    fake = ModuleType("fake_package")
    monkeypatch.setitem(sys.modules, "fake_package", fake)
    monkeypatch.setattr(_credentials, "_INFERENCE_PACKAGES", ("fake_package",))
    assert _credentials.uses_inference()


WRONG = {
    "": "No inference API key",
    "<your key>": "contains a space",
    "<key>": "placeholder",
    "your-api-key": "placeholder",
    "YOUR_KEY": "placeholder",
    "sk-...": "placeholder",
    "$OPENAI_API_KEY": "placeholder",
    "${KEY}": "placeholder",
    "xxxxxxxx": "placeholder",
    "changeme": "placeholder",
    "None": "placeholder",
    "sk-\u00fc": "HTTP header",
    "'sk-1'": "a space or a quotation mark",
    "emulator-secret": "is your client secret",
    "emulator-client": "is your client id",
}


@pytest.mark.parametrize("key", WRONG)
@on_one_backend
async def test_required_key_is_checked_before_any_request(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", key)
    async with world() as (emu, client):
        with pytest.raises(ConfigurationError, match=WRONG[key]) as caught:
            client.instance(MODEL, HARDWARE, require_key=True)
        assert "Nothing was started" in str(caught.value)
        # Half of a short key is part of ordinary words.
        assert len(key) < 10 or key.startswith("emulator-") or leaks(caught.value, key) == []
        with pytest.raises(ConfigurationError, match=WRONG[key]):
            await client.acquire(MODEL, HARDWARE, require_key=True)
        with pytest.raises(ConfigurationError, match=WRONG[key]):
            await BackgroundInstance(client, MODEL, require_key=True).__aenter__()
        assert emu.requests == ()
        monkeypatch.setenv("CORTECS_API_KEY", "yourself-and-xxx-are-fine")
        client.instance(MODEL, HARDWARE, require_key=True)


@on_one_backend
async def test_whether_a_key_is_required_is_a_bool_or_none(world: World) -> None:
    async with world() as (_, client):
        with pytest.raises(InvalidArgumentError, match="require_key"):
            client.instance(MODEL, require_key="no")  # type: ignore[arg-type]


class RejectedError(Exception):
    """Stands for the error of an OpenAI client."""

    status_code = 401


@pytest.mark.parametrize(("given", "origin"), [(None, "CORTECS_API_KEY"), ("k", "api_key=")])
async def test_rejected_key_is_named_by_its_source(
    world: World, monkeypatch: pytest.MonkeyPatch, given: str | None, origin: str
) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", "sk-secret")
    async with world() as (_, client):
        with pytest.raises(RejectedError) as caught:
            async with client.instance(MODEL, HARDWARE) as inst:
                inst.openai_kwargs(api_key=given)
                raise RejectedError
    (note,) = caught.value.__notes__
    assert note.startswith(
        f"cortecs_async: The endpoint rejected the inference API key from {origin}. Create"
    )


@pytest.mark.usefixtures("installed")
@on_one_backend
async def test_diagnosis_names_the_source_of_the_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as (_, client):

        async def finding() -> tuple[bool, str]:
            findings = {each.name: each for each in await client.diagnose()}
            return findings["inference key"].ok, findings["inference key"].detail

        ok, detail = await finding()
        assert not ok
        assert "OPENAI_API_KEY" in detail
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        assert await finding() == (True, "found in OPENAI_API_KEY")
        monkeypatch.setenv("CORTECS_API_KEY", "<key>")
        assert await finding() == (
            False,
            _credentials.Sources().inference_key_problem(),
        )


# --- missing credentials ------------------------------------------------------------------------------------


async def test_missing_credentials_are_raised_on_entering(world: World) -> None:
    async with world() as (emu, _):
        async with httpx.AsyncClient(transport=emu.transport()) as http:
            options: dict[str, Any] = {"api_base_url": emu.api_base_url, "http_client": http}
            with pytest.raises(MissingCredentialsError, match="cortecs-async demo") as caught:
                async with AsyncCortecs(**options):
                    pytest.fail("entered")
            assert caught.value.missing == ("client_id", "client_secret")
            assert len(traceback.extract_tb(caught.tb)) <= 4
            client = AsyncCortecs(**options)
            for call in (client.instance, client.attach):
                with pytest.raises(MissingCredentialsError):
                    call("x")
            with pytest.raises(MissingCredentialsError):
                await client.acquire(MODEL)
            with pytest.raises(MissingCredentialsError) as caught:
                await client.instances.list()
            assert len(traceback.extract_tb(caught.tb)) <= 8
            # These need no credentials.
            assert await client.models.list()
            await client.aclose()
            async with AsyncCortecs(anonymous=True, **options) as client:
                assert await client.hardware_types.list()
        assert "token" not in [each.route for each in emu.requests]


async def test_provider_is_not_called_on_entering(world: World) -> None:
    async def provide() -> Credentials:
        raise RuntimeError

    async with world(credential_provider=provide, client_id=None, client_secret=None) as (_, client):
        with pytest.raises(RuntimeError):
            await client.instances.list()
