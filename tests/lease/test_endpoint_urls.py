"""No key is sent to a URL that would not be safe as `api_base_url`."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import InstanceHandle, InvalidArgumentError
from cortecs_async.errors import EndpointError

HANDLE: dict[str, Any] = {
    "instance_id": "i-1",
    "base_url": "https://host.test/v1",
    "model": "org/model",
    "account": "a",
}

UNSAFE = {
    "http://203.0.113.7:8000": "plain http",
    "http://inference.test": "plain http",
    "https://user:password@inference.test": "user name or password",
    "ftp://inference.test": "absolute http",
    "inference.test": "absolute http",
    "https://inference.test:port": "host and port",
    "https://inference.test/v1\nHost: another": "no spaces|printable",
    "https://inference test/v1": "no spaces",
    "https://inference.test\\@another.test": "no spaces",
    "https://inference.test?": "query or fragment",
    "https://inference.test?to=": "query or fragment",
    "https://inference.test#to": "query or fragment",
}


@pytest.mark.parametrize("url", UNSAFE)
async def test_a_lease_with_an_unsafe_url_is_an_error_and_released(world: World, url: str) -> None:
    async with world() as (emu, client):
        emu.root_url = url
        with pytest.raises(EndpointError, match=UNSAFE[url]) as caught:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert "password@" not in str(caught.value)
        (entry,) = emu.ledger
        assert (entry.instance_id, entry.status) == (caught.value.instance_id, "deleted")
        with pytest.raises(EndpointError):
            await client.acquire(MODEL, HARDWARE)
        assert emu.existing == ()
        foreign = emu.start_instance(MODEL, HARDWARE)
        with pytest.raises(EndpointError):
            async with client.attach(foreign):
                pytest.fail("entered")
        assert emu.billing == (foreign,)


async def test_plain_http_can_be_allowed(world: World) -> None:
    async with world(allow_insecure_http=True) as (emu, client):
        emu.root_url = "http://inference.test"
        async with client.instance(MODEL, HARDWARE) as inst:
            handle = inst.handle
            assert handle.base_url == inst.base_url
        assert InstanceHandle.from_json(handle.to_json()) == handle
        assert pickle.loads(pickle.dumps(handle)) == handle  # noqa: S301  (our own)


async def test_the_url_is_not_replaced_during_the_block(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            before = inst.base_url
            emu.root_url = "http://inference.test"
            emu.stop_instance(inst.instance_id)
            emu.restart_instance(inst.instance_id)
        assert inst.base_url == before


@pytest.mark.parametrize("url", UNSAFE)
def test_a_handle_with_an_unsafe_url_is_refused(url: str) -> None:
    text = json.dumps({**HANDLE, "base_url": url})
    with pytest.raises(InvalidArgumentError, match=UNSAFE[url]):
        InstanceHandle.from_json(json.dumps({**json.loads(text), "expires_at": None}))
    with pytest.raises(InvalidArgumentError, match=UNSAFE[url]):
        InstanceHandle(**{**HANDLE, "base_url": url})


@pytest.mark.parametrize(
    "changed",
    [
        {"instance_id": 1},
        {"instance_id": ""},
        {"instance_id": "i\n"},
        {"model": ""},
        {"base_url": None},
        {"base_url": ["https://host.test/v1"]},
        {"model": {}},
        {"account": None},
        {"expires_at": "soon"},
        {"expires_at": True},
        {"expires_at": math.nan},
        {"expires_at": math.inf},
        {"allow_insecure_http": "false"},
    ],
    ids=repr,
)
def test_the_types_of_a_handle_are_checked(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        InstanceHandle.from_json(json.dumps({**HANDLE, "expires_at": None, **changed}))
    handle = InstanceHandle(**HANDLE)
    for name, value in changed.items():
        object.__setattr__(handle, name, value)
    with pytest.raises(InvalidArgumentError):
        pickle.loads(pickle.dumps(handle))  # noqa: S301  (our own)
    with pytest.raises(InvalidArgumentError):
        copy.copy(handle)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, "{}", '{"instance_id": "i"}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not the JSON"):
        InstanceHandle.from_json(text)
