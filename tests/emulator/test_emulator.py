"""The emulator's surface: settings, secrets, imports, other servers."""

import inspect
import json
import math
import os
import pickle
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from cortecs_async import emulator
from cortecs_async._extras import install_command
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._controls import Controls

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"


def test_its_representation_has_no_secrets() -> None:
    emulator = Emulator(client_secret="s3cret", api_key="k3y")
    assert repr(emulator) == "Emulator(api_base_url='http://localhost/api/v1', client_id='emulator-client')"
    assert "s3cret" not in repr(emulator._settings)
    assert "k3y" not in repr(emulator._settings)


def test_the_environment_points_at_it() -> None:
    emulator = Emulator(client_id="i", client_secret="s", api_key="k", root_url="http://127.0.0.1:8000/")
    assert emulator.api_base_url == "http://127.0.0.1:8000/api/v1"
    assert emulator.env() == {
        "CORTECS_CONFIG_FILE": os.devnull,
        "CORTECS_CLIENT_ID": "i",
        "CORTECS_CLIENT_SECRET": "s",
        "CORTECS_API_BASE_URL": "http://127.0.0.1:8000/api/v1",
        "OPENAI_API_KEY": "k",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_seconds": -1.0},
        {"num_steps": 0},
        {"stop_seconds": -1.0},
        {"token_seconds": -1.0},
        {"answer_seconds": -1.0},
        {"parallel": 0},
        {"queue": -1, "parallel": 1},
        {"queue": 0},
        {"token_lifetime": 0.0},
        {"unknown_status": 500},
        {"list_lag": -1.0},
        {"list_lag": []},
        {"list_lag": [0.0, math.inf]},
        {"get_lag": [1.0, -1.0]},
        {"get_lag": math.nan},
        {"clock_skew": math.nan},
        {"clock_skew": -1e10},
        {"clock_skew": 1e10},
        {"started_at": "ready"},
        {"status_words": {"deleted": "gone"}},
        {"error_body": "text"},
        {"endpoint_lag": -1.0},
        {"endpoint_fault": "503"},
    ],
)
def test_invalid_settings_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Emulator(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_id": "nobody/nothing"},
        {"model_id": LLAMA, "num_workers": 9},
        {"model_id": LLAMA, "hardware_type_id": "NVIDIA_H100_4"},
    ],
)
def test_a_direct_start_is_rejected_like_a_request(wrong: dict[str, Any]) -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match=r"Unknown|num_workers|does not run"):
        emulator.start_instance(**wrong)
    assert emulator.ledger == ()


def test_stopping_or_deleting_an_unknown_instance_directly_is_rejected() -> None:
    emulator = Emulator()
    with pytest.raises(ValueError, match="does not exist"):
        emulator.stop_instance("instance-1")
    with pytest.raises(ValueError, match="does not exist"):
        emulator.delete_instance("instance-1")


async def test_it_is_a_plain_asgi_application() -> None:
    emulator = Emulator()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(emulator.app), base_url="http://any"
    ) as client:
        document = await client.get("/openapi.json")
        text = resources.files("cortecs_async.emulator").joinpath("openapi.json").read_text(encoding="utf-8")
        assert document.json() == json.loads(text)
        redirected = await client.get("/api/v1/models", follow_redirects=True)
        assert redirected.status_code == 200
        emulator.add_fault(Fault("drop"))
        with pytest.raises(ConnectionResetError):
            await client.get("/api/v1/models/")
        emulator.add_fault(Fault("truncate"))
        with pytest.raises(ConnectionResetError):
            await client.get("/api/v1/models/")


async def test_it_answers_the_lifespan_protocol() -> None:
    sent: list[Any] = []
    incoming = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(incoming)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await Emulator().app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_request_whose_caller_disconnects_is_ignored() -> None:
    emulator = Emulator()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/oauth2/token",
        "headers": [],
        "query_string": b"",
    }

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail(f"sent {message}")

    await emulator.app(scope, receive, send)
    assert emulator.requests == ()


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


WITHOUT = """
import sys

for missing in ("starlette", "uvicorn"):
    kept = sys.modules.pop(missing, None)
    sys.modules[missing] = None
    try:
        import cortecs_async.emulator
    except ImportError as error:
        print(error)
    sys.modules[missing] = kept
    if kept is None:
        del sys.modules[missing]
"""


@pytest.mark.sockets
def test_without_its_extra_it_says_what_to_install() -> None:
    done = run(WITHOUT)
    needs = f"The emulator needs starlette and uvicorn: {install_command('emulator')}"
    assert done.stdout.splitlines() == [needs, needs], done.stderr


@pytest.mark.sockets
def test_another_missing_module_is_not_blamed_on_the_extra() -> None:
    done = run(
        "import sys; sys.modules['cortecs_async.emulator._generation'] = None; import cortecs_async.emulator"
    )
    assert done.returncode == 1
    assert "[emulator]" not in done.stderr


@pytest.mark.sockets
def test_the_client_does_not_import_it() -> None:
    done = run("import cortecs_async, sys; print([name for name in sys.modules if 'emulator' in name])")
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", emulator.__all__)
def test_users_see_public_names(name: str) -> None:
    public = getattr(emulator, name)
    assert public.__module__ == "cortecs_async.emulator"
    assert pickle.loads(pickle.dumps(public)) is public  # noqa: S301  (our own)
    assert inspect.getmodule(public) is emulator
    assert inspect.signature(public, eval_str=True).parameters
    assert inspect.getdoc(public)


def test_a_fault_can_be_pickled() -> None:
    fault = Fault("status", status=429)
    assert pickle.loads(pickle.dumps(fault)) == fault  # noqa: S301  (our own)


def test_the_reference_names_every_member_of_an_emulator() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "reference", "emulator.md").read_text(encoding="utf-8")
    named = re.findall(r"^   \.\. auto(?:method|property):: (\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(name for name in {**vars(Controls), **vars(Emulator)} if name[0] != "_")


def test_it_imports_nothing_from_the_client() -> None:
    package = Path(str(resources.files("cortecs_async.emulator")))
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    assert len(sources) > len(list(package.glob("*.py")))
    imports = [
        line.strip()
        for source in sources
        for line in source.splitlines()
        if line.strip().startswith(("import cortecs_async", "from cortecs_async"))
    ]
    assert imports
    # `_extras` knows nothing of the service: it says how to install what the emulator needs.
    allowed = ("from cortecs_async.emulator", "from cortecs_async._extras import")
    assert all(line.startswith(allowed) for line in imports)


async def test_middleware_added_to_the_application_is_called() -> None:
    emulator = Emulator()
    seen: list[str] = []

    class Watching:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await self.app(scope, receive, send)

    emulator.app.add_middleware(Watching)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(emulator.app), base_url="http://any"
    ) as client:
        assert (await client.get("/api/v1/models/?a=1&a=2&b=")).status_code == 200
    assert seen == ["/api/v1/models/"]
