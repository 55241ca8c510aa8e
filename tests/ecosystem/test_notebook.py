"""Notebooks, in a real Jupyter kernel: the cells of docs/deployment.md, progress, and an interrupt.

Run it with `nox -s notebook`. If CORTECS_NOTEBOOK names a file, the executed notebook is written to it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from _world import HARDWARE, MODEL
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from cortecs_async.emulator import Emulator

pytestmark = pytest.mark.sockets

PAGE = Path(__file__).parent.parent.parent / "docs" / "deployment.md"

# Where to write the executed notebook.
TARGET = os.environ.get("CORTECS_NOTEBOOK")

# Seconds for one cell, and for the release after an interrupt.
TIMEOUT = 60


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the kernel run this interpreter and this package, and keep no history."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setattr(KernelSpecManager, "ensure_native_kernel", True)


def cells_of_the_page() -> list[str]:
    """Return the cells of the section on notebooks, in order: they share one kernel."""
    section = PAGE.read_text().split("## Notebooks")[1]
    return re.findall(r"```py(?:thon)?\n(.*?)```", section, re.DOTALL)


def run(cells: list[str]) -> Any:
    """Run cells in a new kernel, and return the executed notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3").execute()
    if TARGET:
        nbformat.write(notebook, TARGET)
    return notebook


def html_of(output: Any) -> str:
    return str(output["data"].get("text/html", ""))


def test_the_cells_of_the_page_run(served: Emulator) -> None:
    cells = cells_of_the_page()
    assert len(cells) == 3

    first, second, third = run([*cells, "await client.aclose()"]).cells[:3]

    shown, printed, receipt = first.outputs
    # One display, which shows the last state: each update has replaced the one before.
    assert shown.output_type == "display_data"
    assert html_of(shown).count("<tr>") == 2
    assert "<td>running</td>" in html_of(shown)
    assert '<progress value="1.000" max="1">' in html_of(shown)
    assert "Why is the sky blue?" in printed["text"]
    assert "<th>cost</th>" in html_of(receipt)
    assert f"<td>{HARDWARE}</td>" in html_of(second.outputs[0])
    assert third.outputs[0]["text"].startswith("http")
    assert served.existing == ()
    assert len(served.ledger) == 2


@pytest.fixture
def kernel() -> Iterator[tuple[KernelManager, Any]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


HOLD = f"""
import asyncio
from cortecs_async import AsyncCortecs
async with AsyncCortecs() as client:
    async with client.instance("{MODEL}", "{HARDWARE}"):
        print("held", flush=True)
        await asyncio.sleep(3600)
"""


def hold(client: Any) -> str:
    """Run a cell that holds an instance until it is ended."""
    sent: str = client.execute(HOLD)
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT)
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "stream" and "held" in message["content"]["text"]:
            return sent


def reply_to(client: Any, sent: str) -> Any:
    """Wait for the reply to a cell, and return its content."""
    while True:
        reply = client.get_shell_msg(timeout=TIMEOUT)
        if reply["parent_header"].get("msg_id") == sent:
            return reply["content"]


def test_an_interrupt_releases_the_instance(served: Emulator, kernel: Any) -> None:
    manager, client = kernel
    sent = hold(client)
    manager.interrupt_kernel()
    assert reply_to(client, sent)["status"] == "error"
    assert served.existing == ()
    # The kernel lives, and its next cell can use the same event loop.
    sent = client.execute("async with AsyncCortecs() as client:\n    print(await client.models.list())")
    assert reply_to(client, sent)["status"] == "ok"


def test_after_a_restart_the_reaper_releases_the_instance(served: Emulator, kernel: Any) -> None:
    manager, client = kernel
    hold(client)
    manager.restart_kernel(now=True)
    deadline = time.monotonic() + TIMEOUT
    while served.existing and time.monotonic() < deadline:
        time.sleep(0.1)
    assert served.existing == ()


def test_the_error_of_a_forgotten_async_names_the_right_one(served: Emulator, kernel: Any) -> None:
    _, client = kernel
    sent = client.execute(
        f"from cortecs_async import AsyncCortecs\nclient = AsyncCortecs()\n"
        f'with client.instance("{MODEL}") as inst:\n    pass'
    )
    assert "use `async with client.instance(...) as inst:`" in reply_to(client, sent)["evalue"]
