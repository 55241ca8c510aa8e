"""Holds the order of the modules: each imports only from the rows below its own.

A cycle, or a lower module that knows a higher one, is cheap to write and dear to undo. The table names every
module, so a new one has to say where it belongs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "cortecs_async"
ROOT = Path(__file__).parent.parent / PACKAGE

# From the lowest to the highest. Modules of one row do not import each other. A folder counts as one module:
# within it imports are free. The number is the layer; a layer with an order of its own takes several rows.
ROWS: list[tuple[int, set[str]]] = [
    (0, {"_errors", "_version"}),
    (0, {"_logging", "_secrets"}),
    (0, {"_config"}),  # data and settings; they raise the errors above
    (1, {"_aio"}),
    (1, {"_http"}),
    (1, {"_api", "_telemetry"}),
    (1, {"_recovery"}),
    (6, {"_lease"}),
    (6, {"_batch", "_diagnosis"}),  # loaded with the first batch
    (7, {"_assembly"}),  # loaded with the first client
    (7, {"_batches", "_calls"}),
    (7, {"_client"}),
    (8, {"errors", "types", "signals"}),  # public facades of lower layers
    (8, {"__init__"}),
    (9, {"integrations"}),
    (9, {"_cli"}),
    (9, {"__main__"}),
]
TOP = 9
# Beside the layers: it writes literal wire JSON and knows nothing of the client, so that one mistake cannot
# cancel itself out. Layer 9 may start it.
EMULATOR = "emulator"
PUBLIC = {"__init__", "errors", "types", "signals", "integrations"}
# A change of the HTTP library stays a change of two files.
MAY_IMPORT_HTTPX = {"_http", EMULATOR}

RANK = {unit: rank for rank, (_, units) in enumerate(ROWS) for unit in units}
LAYER = {unit: layer for layer, units in ROWS for unit in units}


def test_the_package_keeps_its_layers() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def violations(root: Path) -> list[str]:
    """A sentence for each import of the package at `root` that breaks the order."""
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        where = f"{root.name}/{path.relative_to(root).as_posix()}"
        importer = unit_of(path, root)
        if importer not in RANK and importer != EMULATOR:
            found.append(
                f"{where}: {importer!r} has no layer; add it to ROWS in tests/test_layers.py, above "
                f"everything that it imports and below everything that imports it"
            )
            continue
        for line, target in imports(path, root):
            if complaint := judge(importer, target):
                found.append(f"{where}:{line}: {complaint}")
    return found


def unit_of(path: Path, root: Path) -> str:
    """The name by which the table knows a file: its folder's, or its own."""
    return path.relative_to(root).with_suffix("").parts[0]


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import; those in functions and under TYPE_CHECKING count too."""
    package = (root.name, *path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def judge(importer: str, target: str) -> str | None:
    """Why `importer` may not import `target`; None if it may."""
    top, *rest = target.split(".")
    if top == "httpx" and importer not in MAY_IMPORT_HTTPX:
        return f"imports httpx, which only {', '.join(sorted(MAY_IMPORT_HTTPX))} may"
    if top != PACKAGE:
        return None
    # `from cortecs_async import AsyncCortecs` names the package's __init__, `from . import _http` a module.
    imported = rest[0] if rest and is_module(rest[0]) else "__init__"
    return None if imported == importer else judge_own(importer, imported)


def judge_own(importer: str, imported: str) -> str | None:
    """The same among the package's own modules."""
    if importer == EMULATOR:
        return f"the emulator imports {imported} and must know nothing of the client"
    if imported == EMULATOR:
        return None if LAYER[importer] == TOP else f"imports the emulator, which only layer {TOP} may"
    if imported not in RANK:
        return None  # its own file is the complaint
    if LAYER[importer] == TOP and LAYER[imported] < TOP and imported not in PUBLIC:
        return f"imports {imported}, where layer {TOP} uses only what is public"
    if RANK[imported] >= RANK[importer]:
        layers = f"layers {LAYER[importer]} and {LAYER[imported]}"
        return f"{importer} imports {imported}, which is not in a lower row ({layers})"
    return None


def is_module(name: str) -> bool:
    """Whether the package has such a module, so that it is not a name in its __init__."""
    return name in RANK or name == EMULATOR or (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("_http/client.py", "from .._lease import InstanceLease", "_http imports _lease"),
        ("_http/client.py", "from cortecs_async._lease import InstanceLease", "_http imports _lease"),
        ("_http/client.py", "import cortecs_async._lease", "_http imports _lease"),
        ("_http/client.py", "from .. import _lease", "_http imports _lease"),
        ("_http/client.py", "from cortecs_async import _lease", "_http imports _lease"),
        ("_http/client.py", "from .. import AsyncCortecs", "_http imports __init__"),
        ("_http/client.py", "import cortecs_async", "_http imports __init__"),
        ("_http/client.py", "def f():\n    from .. import _client", "_http imports _client"),
        (
            "_http/client.py",
            "if TYPE_CHECKING:\n    from .._client import AsyncCortecs",
            "_http imports _client",
        ),
        ("_http/client.py", "from ..emulator import Emulator", "only layer 9 may"),
        ("_http/transport.py", "from .auth import Token\nimport httpx", None),
        ("_aio/tasks.py", "from .._http.retry import next_wait", "_aio imports _http"),
        ("_api/wire.py", "import httpx", "imports httpx"),
        ("_api/wire.py", "from httpx import Response", "imports httpx"),
        ("_config.py", "from ._errors import ConfigurationError", None),
        ("_errors.py", "from ._config import Secret", "_errors imports _config"),
        ("emulator/_server.py", "import httpx\nfrom . import _faults\nfrom ._faults import Fault", None),
        ("emulator/_server.py", "from .._api.domain import Instance", "must know nothing of the client"),
        (
            "emulator/deep/_server.py",
            "from ..._api.domain import Instance",
            "must know nothing of the client",
        ),
        ("emulator/_server.py", "from cortecs_async import AsyncCortecs", "must know nothing of the client"),
        ("_cli/_demo.py", "from .. import AsyncCortecs, errors\nfrom ..types import Model", None),
        ("_cli/_demo.py", "from ..emulator import Emulator\nfrom ._need import need", None),
        ("_cli/_demo.py", "from .._client import AsyncCortecs", "only what is public"),
        ("_cli/_demo.py", "from ..integrations.rich import progress", None),
        ("__main__.py", "from ._cli import main", None),
        ("integrations/rich.py", "from .._cli import main", "integrations imports _cli"),
        ("__init__.py", "from ._cli import main", "__init__ imports _cli"),
        ("_unheard_of.py", "", "add it to ROWS in tests/test_layers.py"),
        ("unheard_of/__init__.py", "", "add it to ROWS in tests/test_layers.py"),
    ],
)
def test_what_is_caught(tmp_path: Path, file: str, code: str, complaint: str | None) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")

    found = violations(tmp_path / PACKAGE)

    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert complaint in found[0]
        assert found[0].startswith(f"{PACKAGE}/{file}:")


def test_no_module_stands_in_two_rows() -> None:
    assert len(RANK) == sum(len(units) for _, units in ROWS)
    assert [layer for layer, _ in ROWS] == sorted(layer for layer, _ in ROWS)
