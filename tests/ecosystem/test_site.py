"""The built documentation covers the public API and loads nothing from other hosts. For `nox -s docs`."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from _public_api import INNER, public_modules, public_names

from cortecs_async import AsyncCortecs, InstanceHandle, InstanceLease
from cortecs_async._api.instances import Instances
from cortecs_async._api.resources import HardwareTypes, Models, User
from cortecs_async.integrations.web import BackgroundInstance, SharedInstance

SITE = Path(os.environ["CORTECS_DOCS_SITE"])

KINDS = {
    f"py:{kind}" for kind in ("attribute", "class", "exception", "function", "method", "property", "type")
}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """Return the documented Python objects by their full names."""
    # After four lines of text, compressed lines: name, domain:kind, priority, address, title.
    packed = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    names = [name for name, kind, *_ in map(str.split, lines) if kind in KINDS]
    return {name: found for name in names if (found := _find(name)) is not None}


def _find(name: str) -> Any:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


@pytest.mark.parametrize("name", list(public_modules()))
def test_everything_public_is_documented(name: str, documented: dict[str, Any]) -> None:
    shown = {id(each) for each in documented.values()}
    objects = public_names(name)
    assert {each for each, found in objects.items() if callable(found) and id(found) not in shown} == set()


@pytest.mark.parametrize(
    "kind",
    [
        AsyncCortecs,
        BackgroundInstance,
        HardwareTypes,
        InstanceHandle,
        InstanceLease,
        Instances,
        Models,
        SharedInstance,
        User,
    ],
)
def test_every_method_is_documented(kind: type, documented: dict[str, Any]) -> None:
    methods = {
        name
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    owners = (name.rpartition(".") for name in documented)
    shown = {name for owner, _, name in owners if owner.endswith(f".{kind.__name__}")}
    inner = INNER.get(kind.__name__, set())
    assert inner <= methods
    assert methods - shown == inner


def test_nothing_is_fetched_from_elsewhere() -> None:
    pages = list(SITE.rglob("*.html"))
    assert len(pages) >= 15
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", page.read_text()
        )
        assert [each for each in loaded if re.match(r"(https?:)?//", each)] == [], page
    for sheet in SITE.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", sheet.read_text()) == [], sheet


def test_every_picture_is_there() -> None:
    pictures = [
        (page, each)
        for page in SITE.rglob("*.html")
        for each in re.findall(r"<img\b[^>]*\bsrc=\"([^\"]+)\"", page.read_text())
        if not each.startswith("data:")
    ]
    assert len(pictures) >= 4
    assert [each for page, each in pictures if not (page.parent / each).exists()] == []


def test_the_search_finds_the_page_about_the_topic_first() -> None:
    packed = (SITE / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")")
    index = json.loads(packed)
    # A word in a heading outranks one in the text.
    assert index["docnames"][index["titleterms"]["max_cost"]] == "costs"
    assert "changelog|architecture" in (SITE / "_static" / "language_data.js").read_text()


@pytest.mark.parametrize("page", sorted(SITE.glob("*.html")), ids=lambda page: page.name)
def test_every_page_has_an_icon_and_fits_a_phone(page: Path) -> None:
    text = page.read_text()
    assert re.search(r'<link rel="[a-z ]*icon" href="_static/logo.svg"', text)
    assert '<meta name="viewport" content="width=device-width' in text


def test_code_has_a_copy_button() -> None:
    assert "copybutton.js" in (SITE / "quickstart.html").read_text()
