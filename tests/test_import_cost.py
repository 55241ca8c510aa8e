"""What a program loads before and with its first client and lease: most of a short program's time is imports.

Each number has room for a few modules, because some are Python's own, which differ by version. To see which
ones a change adds, compare the list in the failure with the list on the main branch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from _loaded_modules import check_loaded, loaded_modules

import cortecs_async
from cortecs_async._platform import NO_REAPER
from cortecs_async._recovery.reaper_process import BOOTSTRAP

# Needed by the first client, but not to import its class.
CLIENT = {
    *("httpx", "anyio", "asyncio", "attr", "attrs", "typing_extensions", "ssl", "socket", "selectors"),
    *("logging", "inspect", "ast", "dis", "json", "datetime", "ipaddress", "pathlib", "urllib"),
    *(f"cortecs_async.{name}" for name in ("types", "errors", "_config", "_credentials", "_http", "_api")),
}

# Needed by the first lease, batch, or share, but not by a client.
LATER = {f"cortecs_async.{name}" for name in ("_lease", "_recovery", "_batch", "_sharing")}

# Needed by a profile, telemetry, an error message, a notebook, or `client.diagnose`.
RARE = {
    *(f"cortecs_async.{name}" for name in ("_profiles", "_keyring", "_client.diagnosis", "_client.calls")),
    *("html", "hmac", "secrets", "shlex", "tomllib", "importlib.metadata"),
}

# Needed by requests for instances, but not by those for models or the balance.
INSTANCES = {
    *(f"cortecs_async._api.{name}" for name in ("instances", "matching", "polling", "waiting")),
    "cortecs_async._poll_policy",
}

# Needed by other requests to the catalog, but not by a list of models.
CATALOG = {"cortecs_async._api.catalog", "cortecs_async._api.prices", "cortecs_async._api.validation"}

# What httpx and anyio load for a request, and attrs. None of it counts.
HTTPX = """
import asyncio, json, sys
import anyio.to_thread, attrs, httpx

def answer(request):
    if request.url.path.endswith("/oauth2/token"):
        return httpx.Response(200, json={"access_token": "token", "expires_in": 3600})
    return httpx.Response(200, json={"models": [], "instances": []})

async def send():
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        response = await http.get("https://service.test/")
    await anyio.to_thread.run_sync(json.loads, response.content)

asyncio.run(send())
"""

REQUEST = f"""{HTTPX}
from cortecs_async import AsyncCortecs

async def main(state_dir, endpoint, method):
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        async with AsyncCortecs("id", "secret", http_client=http, state_dir=state_dir) as client:
            assert await getattr(getattr(client, endpoint), method)() == ()

asyncio.run(main(*sys.argv[1:]))
"""

EMULATOR = f"{HTTPX}\nfrom cortecs_async.emulator import Emulator"

# Without the reaper, which is another process.
LEASE = f"""{EMULATOR}
from cortecs_async import AsyncCortecs

async def main(state_dir):
    emulator = Emulator(step_seconds=0.0)
    async with emulator.http_client() as http:
        async with AsyncCortecs(
            emulator.client_id,
            emulator.client_secret,
            api_base_url=emulator.api_base_url,
            http_client=http,
            state_dir=state_dir,
            guard="off",
        ) as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct"):
                pass

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.sockets
def test_the_package_loads_almost_nothing() -> None:
    modules = loaded_modules("import cortecs_async")
    check_loaded(modules, at_most=38, unwanted={*CLIENT, *LATER, *RARE, "cortecs_async._client"})


@pytest.mark.sockets
def test_the_class_of_the_client_loads_no_other_package() -> None:
    modules = loaded_modules("from cortecs_async import AsyncCortecs")
    assert "cortecs_async._client.client" in modules
    check_loaded(modules, at_most=50, unwanted=CLIENT | LATER | RARE)


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("endpoint", "at_most", "unwanted"), [("models", 72, INSTANCES | CATALOG), ("instances", 90, set[str]())]
)
def test_the_first_answer_loads_nothing_of_a_lease(
    tmp_path: Path, endpoint: str, at_most: int, unwanted: set[str]
) -> None:
    modules = loaded_modules(REQUEST, str(tmp_path), endpoint, "list", before=HTTPX)
    assert "cortecs_async._client.wiring" in modules
    check_loaded(modules, at_most=at_most, unwanted={*unwanted, *LATER, *RARE, "cortecs_async._telemetry"})


@pytest.mark.sockets
def test_the_first_lease_loads_no_batch_and_no_sweep(tmp_path: Path) -> None:
    modules = loaded_modules(LEASE, str(tmp_path), before=EMULATOR)
    assert {"cortecs_async._lease.lease", "cortecs_async._recovery.promises"} <= {*modules}
    unwanted = {"cortecs_async._batch", "cortecs_async._sharing", "cortecs_async._recovery.sweep"}
    check_loaded(modules, at_most=140, unwanted=unwanted | RARE)


@pytest.mark.sockets
@pytest.mark.skipif(sys.platform == "win32", reason=NO_REAPER)
def test_the_start_of_a_reaper_loads_little_of_the_standard_library() -> None:
    start, main, _ = BOOTSTRAP.rpartition("main()")
    assert main
    program = f"{start}print(*(name for name, module in sys.modules.items() if module is not None))"
    package = str(Path(cortecs_async.__file__).parent)
    command = [sys.executable, "-I", "-S", "-c", program, package]
    modules = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "cortecs_async._recovery.reaper" in modules
    check_loaded(modules, at_most=40, unwanted={"json", "os", "re", "select", "threading", "types"})


@pytest.mark.sockets
def test_a_reaper_imports_all_that_a_connection_needs_before_it_begins() -> None:
    # A rehearsal that is forked during a later import would wait for the lock of that module forever.
    modules = loaded_modules("from cortecs_async._recovery.recover import preload; preload()")
    assert {"anyio._backends._asyncio", "certifi", "h11", "httpcore", "httpx"} <= {*modules}
