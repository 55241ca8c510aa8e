"""Test that the openai package, unmodified, works with a leased instance."""

from __future__ import annotations

import subprocess
import sys

import pytest
from _world import MODEL, client_of

from cortecs_async import errors
from cortecs_async._extras import install_command
from cortecs_async.emulator import serve_emulator

pytestmark = pytest.mark.sockets


# openai leaves the generators of a stream to the garbage collector, and trio warns about that.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator object")
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_plain_and_streamed() -> None:
    openai = pytest.importorskip("openai")
    async with (
        serve_emulator(step_seconds=0.01) as emu,
        client_of(emu) as client,
    ):
        async with client.instance(MODEL) as inst:
            async with openai.AsyncOpenAI(**inst.openai_kwargs(api_key=emu.api_key)) as llm:
                plain = await llm.chat.completions.create(
                    model=inst.model, messages=[{"role": "user", "content": "Are you there?"}]
                )
                assert "Are you there?" in plain.choices[0].message.content
            async with inst.openai(api_key=emu.api_key, max_retries=0) as llm:
                assert llm.max_retries == 0
                async with await llm.chat.completions.create(
                    model=inst.model, messages=[{"role": "user", "content": "Are you there?"}], stream=True
                ) as chunks:
                    streamed = [chunk.choices[0].delta.content or "" async for chunk in chunks]
                assert len(streamed) > 3
                assert "".join(streamed) == plain.choices[0].message.content
                assert [model.id async for model in llm.models.list()] == [inst.model]
        assert emu.existing == ()


@pytest.mark.parametrize(
    ("method", "module", "extra"),
    [
        ("openai", "openai", "openai"),
        ("langchain", "langchain_openai", "langchain"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_without_the_package_the_error_says_what_to_install(method: str, module: str, extra: str) -> None:
    program = """
import sys
method, module = sys.argv[1:]
sys.modules[module] = None
from cortecs_async import InstanceHandle, errors
handle = InstanceHandle(instance_id="i-1", base_url="http://localhost/v1", model="org/model", account="a")
try:
    getattr(handle, method)(api_key="key")
except errors.ConfigurationError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, method, module],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"inst.{method}()" in done.stdout, done.stderr
    assert install_command(extra) in done.stdout
    assert issubclass(errors.ConfigurationError, ValueError)
