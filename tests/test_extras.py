"""The command that installs an extra fits where the package came from."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cortecs_async import _extras
from cortecs_async.__main__ import _EXTRAS
from cortecs_async._extras import install_command

INDEX = "python -m pip install 'cortecs-async[cli]'"


class Installed:
    """The metadata of an installed package."""

    def __init__(self, recorded: object) -> None:
        self.recorded = recorded

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.recorded if self.recorded is None else json.dumps(self.recorded)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "my checkout"
    path.mkdir()
    (path / "pyproject.toml").touch()
    return path


@pytest.fixture(autouse=True)
def no_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "__file__", str(tmp_path / "site-packages" / "cortecs_async" / "_extras.py"))


def installed(monkeypatch: pytest.MonkeyPatch, recorded: Any) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed(recorded))


@pytest.mark.parametrize("recorded", [None, [], {"url": "file:///gone/checkout", "dir_info": {}}])
def test_from_an_index(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, recorded)
    assert install_command("cli") == INDEX


def test_from_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": checkout.as_uri(), "dir_info": {}})
    assert install_command("cli,emulator") == f"python -m pip install '{checkout}[cli,emulator]'"


def test_from_an_editable_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": checkout.as_uri(), "dir_info": {"editable": True}})
    assert install_command("tui") == f"python -m pip install -e '{checkout}[tui]'"


def test_from_a_source_tree_on_the_path(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "_NAME", "no-such-package")
    monkeypatch.setattr(_extras, "__file__", str(checkout / "cortecs_async" / "_extras.py"))
    assert install_command("cli") == f"python -m pip install '{checkout}[cli]'"


def test_from_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"url": "file:///dist/a.whl", "archive_info": {}})
    assert install_command("cli") == "python -m pip install 'cortecs-async[cli] @ file:///dist/a.whl'"


def test_from_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    vcs = {"vcs": "git", "commit_id": "abc123", "requested_revision": "main"}
    installed(monkeypatch, {"url": "https://host.test/repo", "vcs_info": vcs})
    expected = "python -m pip install 'cortecs-async[cli] @ git+https://host.test/repo@abc123'"
    assert install_command("cli") == expected


def test_for_the_prompt_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    monkeypatch.setattr("sys.platform", "win32")
    assert install_command("cli") == 'python -m pip install "cortecs-async[cli]"'


def test_the_extras_of_a_command_bring_the_command_line() -> None:
    root = Path(__file__).parent.parent
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in _EXTRAS.values():
        chosen = extras.split(",")
        assert set(chosen) <= set(declared)
        assert "cli" in chosen or any("[cli" in each for extra in chosen for each in declared[extra])
