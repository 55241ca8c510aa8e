"""The command that installs extras of this package in the user's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_NAME = "cortecs-async"


def install_command(extras: str) -> str:
    """Return the shell command that installs extras, such as "openai" or "cli,emulator".

    If the package was installed from a checkout or another source, that source is installed again with the
    extras. Only a package that came from an index is certain to be on one.
    """
    import shlex  # noqa: PLC0415  (only for an error)

    wanted, is_editable = _requirement(extras)
    # The Windows command prompt does not support single quotes.
    quoted = f'"{wanted}"' if sys.platform == "win32" else shlex.quote(wanted)
    return f"python -m pip install {'-e ' if is_editable else ''}{quoted}"


def _requirement(extras: str) -> tuple[str, bool]:
    from urllib.request import url2pathname  # noqa: PLC0415  (slow to import)

    origin = _origin()
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        checkout = Path(url2pathname(urlsplit(url).path))
        is_editable = bool(origin["dir_info"].get("editable"))
    else:  # not installed, but on sys.path
        checkout, is_editable = Path(__file__).parent.parent, False
    if (checkout / "pyproject.toml").is_file():
        return f"{checkout}[{extras}]", is_editable
    if url and "dir_info" not in origin:
        vcs = origin.get("vcs_info", {})
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
        return f"{_NAME}[{extras}] @ {url}", False
    return f"{_NAME}[{extras}]", False


def _origin() -> dict[str, Any]:
    """Return what pip and uv record for a package installed from a URL (PEP 610); otherwise, nothing."""
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415  (slow to import)

    try:
        recorded = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}
