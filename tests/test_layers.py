"""Test the order of packages: each imports only from those below it, and no folder has an import circle.

A circle, or a lower package that knows a higher one, is easy to write and hard to undo.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "cortecs_async"
ROOT = Path(__file__).parent.parent / PACKAGE

# From the lowest to the highest. Each imports only from lower ones, not from others in its row. A folder is
# one unit: its modules may import each other, but not in a circle.
ROWS: list[set[str]] = [
    {"_hint_tables"},
    {"_display", "_events", "_extras", "_hints", "_platform", "_version"},
    {"_public"},
    {"_errors"},
    {"_durations", "_logging", "_secrets"},
    {"_fields"},
    {"_poll_policy"},
    {"_environment", "_keyring", "_state_directory"},
    {"_profiles"},
    {"_credentials"},
    {"_config"},
    {"_aio"},
    {"_http"},
    {"_api", "_telemetry"},
    {"_recovery"},
    {"_lease"},
    {"_batch", "_sharing"},
    {"_client"},
    {"errors", "types", "signals"},  # the public names of the packages above
    {"__init__"},
    {"integrations"},
    {"_cli"},
    {"__main__"},
]
# These use only what is public, and may start the emulator.
ON_TOP = {"integrations", "_cli", "__main__"}
PUBLIC = {"__init__", "errors", "types", "signals", "integrations"}
# What `login` writes and `--profile` reads is what the client reads.
CONFIG = {"_profiles", "_credentials"}
# Internals that integrations may import: the rules for files, tasks that any task may end, how secrets are
# hidden, the variables and profiles that the client reads, what differs between systems, and owner processes.
SHARED = {"_state_directory", "_aio", "_secrets", "_environment", "_credentials", "_platform", "_sharing"}
# Internals that all of them may import: durations and error messages are the same everywhere.
COMMON = {"_display", "_durations", "_hint_tables", "_hints"}
# The batch on other machines: its files, and when an instance counts as failed, are those of the batch.
# Leases decide what counts as an endpoint error.
FLEETS = {f"integrations/{name}.py" for name in ("_fan_out", "_fan_out_queue", "_worker", "jsonl")}
BATCH = {"_batch", "_lease"}
# The emulator writes literal wire JSON and imports nothing of the client: a mistake cannot cancel itself out.
EMULATOR = "emulator"
# How to install an extra, for the errors of every module that needs one.
EVERYWHERE = "_extras"
# A change of the HTTP library stays a change of two files.
MAY_IMPORT_HTTPX = {"_http/connections.py", "_http/exchange.py"}

RANK = {unit: rank for rank, units in enumerate(ROWS) for unit in units}


def test_the_package_keeps_its_layers() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_no_unit_stands_in_two_rows() -> None:
    assert len(RANK) == sum(len(units) for units in ROWS)


def violations(root: Path) -> list[str]:
    """Return a sentence for each import in the package at `root` that breaks the order."""
    found: list[str] = []
    within: dict[str, set[str]] = {}  # for each module, the modules of its own folder that it imports
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        importer = unit_of(path, root)
        if importer not in RANK and importer != EMULATOR:
            found.append(
                f"{root.name}/{file}: {importer!r} has no row; add it to ROWS in tests/test_layers.py, above "
                f"everything that it imports and below everything that imports it"
            )
            continue
        for line, target in imports(path, root):
            if complaint := judge(file, importer, target):
                found.append(f"{root.name}/{file}:{line}: {complaint}")
            if (module := module_of(target, root)) and unit_of(module, root) == importer and module != path:
                within.setdefault(file, set()).add(module.relative_to(root).as_posix())
    try:
        graphlib.TopologicalSorter(within).prepare()
    except graphlib.CycleError as error:
        # The sorter names the circle from the imported module to the importer.
        circle = " imports ".join(reversed(error.args[1]))
        found.append(f"{root.name}/{error.args[1][-1]}: a circle: {circle}")
    return found


def unit_of(path: Path, root: Path) -> str:
    """Return the name by which ROWS knows a file: its folder's, or its own."""
    return path.relative_to(root).with_suffix("").parts[0]


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of each import, including those in functions and under TYPE_CHECKING."""
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


def module_of(target: str, root: Path) -> Path | None:
    """Return the file of the package that a dotted name is in, if it is not an `__init__`."""
    top, *rest = target.split(".")
    for length in range(len(rest), 0, -1):
        path = root.joinpath(*rest[:length]).with_suffix(".py")
        if top == PACKAGE and path.is_file():
            return path
    return None


def judge(file: str, importer: str, target: str) -> str | None:
    """Return why `importer` may not import `target`, or None if it may."""
    top, *rest = target.split(".")
    if top in {"httpx", "httpx2"} and importer != EMULATOR and file not in MAY_IMPORT_HTTPX:
        return f"imports {top}, which only {', '.join(sorted(MAY_IMPORT_HTTPX))} may"
    if top != PACKAGE:
        return None
    # `from cortecs_async import AsyncCortecs` names the package's __init__, `from . import _http` a module.
    imported = rest[0] if rest and is_unit(rest[0]) else "__init__"
    if imported in {importer, EVERYWHERE} or (file in FLEETS and imported in BATCH):
        return None
    return judge_own(importer, imported)


def judge_own(importer: str, imported: str) -> str | None:
    """Return the same for an import within the package."""
    if importer == EMULATOR:
        return f"the emulator imports {imported} and must know nothing of the client"
    if imported == EMULATOR:
        return (
            None
            if importer in ON_TOP
            else f"imports the emulator, which only {', '.join(sorted(ON_TOP))} may"
        )
    if imported not in RANK:
        return None  # the file itself is reported
    if importer in ON_TOP and imported not in PUBLIC | ON_TOP | COMMON | (
        {"integrations": SHARED, "_cli": CONFIG}.get(importer, set())
    ):
        return f"{importer} imports {imported}, but may use only what is public"
    if RANK[imported] >= RANK[importer]:
        return f"{importer} imports {imported}, which is not below it"
    return None


def is_unit(name: str) -> bool:
    """Return whether the package has such a module or folder, so that it is not a name in its __init__."""
    return name in RANK or name == EMULATOR or (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("_http/client.py", "from .._lease.lease import InstanceLease", "_http imports _lease"),
        ("_http/client.py", "from cortecs_async._lease.lease import InstanceLease", "_http imports _lease"),
        ("_http/client.py", "import cortecs_async._lease.lease", "_http imports _lease"),
        ("_http/client.py", "from .._lease import lease", "_http imports _lease"),
        ("_http/client.py", "from cortecs_async import _lease", "_http imports _lease"),
        ("_http/client.py", "from .. import AsyncCortecs", "_http imports __init__"),
        ("_http/client.py", "import cortecs_async", "_http imports __init__"),
        ("_http/client.py", "def f():\n    from .. import _client", "_http imports _client"),
        ("_http/client.py", "if TYPE_CHECKING:\n    from .._client.client import X", "_http imports _client"),
        ("_http/client.py", "from ..emulator import Emulator", "only __main__, _cli, integrations may"),
        ("_http/client.py", "import httpx", "imports httpx"),
        ("_http/client.py", "import httpx2", "imports httpx2"),
        ("_http/exchange.py", "from .body import read_body\nimport httpx", None),
        ("_http/transport.py", "import httpx", "imports httpx"),
        ("_aio/tasks.py", "from .._http.retry import next_wait", "_aio imports _http"),
        ("_telemetry.py", "from ._api.domain import Instance", "_telemetry imports _api"),
        ("_api/wire.py", "from httpx import Response", "imports httpx"),
        ("_config.py", "from ._errors import ConfigurationError", None),
        ("_errors/base.py", "from .._config import Settings", "_errors imports _config"),
        ("emulator/_server.py", "import httpx\nfrom . import _faults\nfrom ._faults import Fault", None),
        ("emulator/_server.py", "from .._api.domain import Instance", "must know nothing of the client"),
        (
            "emulator/deep/_server.py",
            "from ..._api.domain import Instance",
            "must know nothing of the client",
        ),
        ("emulator/_server.py", "from cortecs_async import AsyncCortecs", "must know nothing of the client"),
        ("_cli/demo.py", "from .. import AsyncCortecs, errors\nfrom ..types import Model", None),
        ("_cli/demo.py", "from ..emulator import Emulator\nfrom .runtime import need", None),
        ("_cli/demo.py", "from .._client.client import AsyncCortecs", "only what is public"),
        ("_cli/demo.py", "from ..integrations.rich import progress", None),
        ("__main__.py", "from ._cli import main", None),
        ("integrations/rich.py", "from .._cli import main", "integrations imports _cli"),
        ("integrations/jsonl.py", "from .._batch.output import Output", None),
        ("integrations/jsonl.py", "from .._http.body import read_body", "only what is public"),
        ("integrations/ray.py", "from .._batch.output import Output", "only what is public"),
        ("__init__.py", "from ._cli import main", "__init__ imports _cli"),
        ("_unheard_of.py", "", "add it to ROWS in tests/test_layers.py"),
        ("unheard_of/__init__.py", "", "add it to ROWS in tests/test_layers.py"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, code: str, complaint: str | None) -> None:
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


def test_a_circle_within_a_folder_is_found(tmp_path: Path) -> None:
    folder = tmp_path / PACKAGE / "_aio"
    folder.mkdir(parents=True)
    (folder / "tasks.py").write_text("from .scopes import Scope", encoding="utf-8")
    (folder / "scopes.py").write_text("def f():\n    from . import threads", encoding="utf-8")
    (folder / "threads.py").write_text("from cortecs_async._aio.tasks import run", encoding="utf-8")

    (found,) = violations(tmp_path / PACKAGE)

    assert "a circle:" in found
    assert "_aio/tasks.py imports _aio/scopes.py" in found
