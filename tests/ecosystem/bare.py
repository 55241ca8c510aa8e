"""Check the package without any extra: what works, and the error for each missing extra.

This is a program, because pytest is one of the extras. `python -m nox -s bare` runs it.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

EXTRAS = (
    *("openai", "langchain-openai", "pydantic-ai-slim", "starlette", "uvicorn", "click", "rich", "textual"),
    *("aiohttp", "opentelemetry-api", "ray", "distributed", "pytest", "trio"),
)

HANDLE = """
from cortecs_async import InstanceHandle
inst = InstanceHandle(instance_id="i", base_url="https://host.test/v1", model="org/model", account="a")
"""

# A program, the text that it must print, and the exception's name; None if it works.
CASES: list[tuple[str, str, str | None]] = [
    ("import cortecs_async; print(cortecs_async.AsyncCortecs())", "<AsyncCortecs https://cortecs.ai", None),
    (HANDLE + "print(sorted(inst.openai_kwargs(api_key='k')))", "['api_key', 'base_url']", None),
    ("import cortecs_async.integrations.web as web; print(web.SharedInstance)", "SharedInstance", None),
    (HANDLE + "inst.openai(api_key='k')", "[openai]'", "ConfigurationError"),
    (HANDLE + "inst.langchain(api_key='k')", "[langchain]'", "ConfigurationError"),
    (
        HANDLE + "inst.pydantic_ai(api_key='k')",
        "[pydantic-ai]'",
        "ConfigurationError",
    ),
    ("import cortecs_async.emulator", "[emulator]'", "ImportError"),
    ("import cortecs_async.integrations.rich", "[cli]'", "ImportError"),
    (
        "from cortecs_async.integrations.opentelemetry import OpenTelemetry; OpenTelemetry()",
        "[opentelemetry]'",
        "ConfigurationError",
    ),
    (
        "from cortecs_async import AsyncCortecs; AsyncCortecs(transport='aiohttp')",
        "[aiohttp]'",
        "ConfigurationError",
    ),
    (
        "from cortecs_async.integrations.ray import fan_out; fan_out(print, [], [])",
        "pip install ray",
        "ConfigurationError",
    ),
    ("import cortecs_async.__main__ as m; m.main()", "[cli]'", None),
]


def main() -> None:
    """Run all cases.

    Raises:
        AssertionError: If a case fails.
    """
    for package in EXTRAS:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        raise AssertionError(f"{package} {found} is installed, so this check is meaningless")
    for program, expected, error in CASES:
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        said = (ended.stdout + ended.stderr).splitlines()
        line = next((line for line in reversed(said) if expected in line), None)
        assert line is not None, (program, said)
        assert ("Traceback" in ended.stderr) is (error is not None), (program, said)
        assert error is None or error in line, (program, said)
        print(line)


if __name__ == "__main__":
    main()
