"""Run the Python blocks on a Markdown page, in order."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from cortecs_async import AsyncCortecs


def run_examples(page: Path, **names: Any) -> None:
    """Run every block on a page.

    A block that calls `asyncio.run` or `trio.run` runs as it is. Any other block runs as the body of an async
    function, with a `client` made from the environment, and with the variables in `names`.
    """

    def run(example: Example) -> None:
        source = str(example.parsed)
        if "asyncio.run(" in source or "trio.run(" in source:
            exec(compile(source, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102
        else:
            asyncio.run(_run_fragment(page, source, names))

    examples = list(Document.parse(str(page), CodeBlockParser("python", run)).examples())
    assert len(examples) == page.read_text().count("```python")
    for example in examples:
        example.evaluate()


def files_of(page: Path) -> dict[str, str]:
    """Return the Python blocks on a page by the file names in their first lines."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == page.read_text().count("```python")
    return dict(blocks)


async def _run_fragment(page: Path, source: str, names: dict[str, Any]) -> None:
    async with AsyncCortecs() as client:
        code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, {"client": client, "AsyncCortecs": AsyncCortecs, **names})  # noqa: S307
        if inspect.isawaitable(result):
            await result
