"""docs/migrating.md, "Synchronous programs": what can be tested without a web framework.

`ecosystem/test_web.py` tests the app.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from _sections import blocks
from _vendor import run
from _world import MODEL
from anyio.from_thread import start_blocking_portal

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator
from cortecs_async.errors import LeaseExpiredError

pytestmark = pytest.mark.sockets

_, BLOCK = blocks("migrating.md", "Synchronous programs")
# The same with an instance alone.
WITHOUT_OPENAI = BLOCK.partition("    OpenAI(")[0].replace("from openai import OpenAI\n", "")


def test_an_instance_for_a_part_of_a_program(served: Emulator, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    program = tmp_path / "program.py"
    program.write_text(BLOCK)
    done = run(program, served, tmp_path)
    assert done.stderr == ""
    answer, balance = done.stdout.splitlines()
    assert answer.endswith('You said: "Why is the sky blue?"')
    assert re.fullmatch(r"[0-9.]+ EUR", balance)
    assert served.existing == ()


def test_a_ctrl_c(served: Emulator, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import time\n{WITHOUT_OPENAI}):\n    print('in the block')\n    time.sleep(600)\n")
    done = run(program, served, tmp_path, interrupt_after="in the block")
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert [entry.status for entry in served.ledger] == ["deleted"]


def test_a_limit(served: Emulator) -> None:
    with pytest.raises(LeaseExpiredError), start_blocking_portal() as portal:
        client = portal.wrap_async_context_manager(AsyncCortecs())
        with client as opened, portal.wrap_async_context_manager(opened.instance(MODEL, max_lifetime=2)):
            # This code is not interrupted.
            while served.existing:
                time.sleep(0.01)


# A blank line ends a block.
TYPED = """
from cortecs_async import AsyncCortecs
async with AsyncCortecs() as client:
    async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
        print("using", inst.model)

client = await AsyncCortecs().__aenter__()
handle = await client.acquire("meta-llama/Llama-3.1-8B-Instruct", max_lifetime=3600)
print("using", handle.model)
await client.release(handle)
"""


def test_a_repl(served: Emulator, tmp_path: Path) -> None:
    done = run("asyncio", served, tmp_path, typed=TYPED)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("using meta-llama/Llama-3.1-8B-Instruct") == 2
    assert [entry.status for entry in served.ledger] == ["deleted", "deleted"]
