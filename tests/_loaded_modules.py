"""The modules that a program loads in a fresh interpreter, which is most of what a short program costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cortecs_async

LOCATION = str(Path(cortecs_async.__file__).parent.parent)

# Imports nothing itself, so that it hides no module.
_PROGRAM = """
import sys
location, before, program, *arguments = sys.argv[1:]
sys.path.insert(0, location)
exec(before, {})
known = {name for name, module in sys.modules.items() if module is not None}
sys.argv = ["program", *arguments]
code = 0
try:
    exec(program, {"__name__": "__main__"})
except SystemExit as ended:
    code = ended.code or 0
print("LOADED", *sorted(name for name in sys.modules.keys() - known if sys.modules[name] is not None))
sys.exit(code)
"""


def loaded_modules(program: str, *arguments: str, before: str = "pass") -> list[str]:
    """Return the modules that a program loads and that `before` does not.

    Args:
        program: The source of the program.
        arguments: Its arguments.
        before: Statements that run first. What they load is not counted.
    """
    # -I: neither the working directory nor the machine's variables, only what is installed with this
    # interpreter; and the very package that the other tests run against.
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM, LOCATION, before, program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    marker, *modules = done.stdout.splitlines()[-1].split()
    assert marker == "LOADED", done.stdout
    return modules


def check_loaded(modules: list[str], *, at_most: int, unwanted: set[str]) -> None:
    """Check the number of modules, and that none is unwanted. The message of a failure lists them."""
    found = sorted({name for name in modules if name.partition(".")[0] in unwanted or name in unwanted})
    listed = "\n".join(modules)
    assert not found, f"loads {', '.join(found)}, among:\n{listed}"
    assert len(modules) <= at_most, f"loads {len(modules)} modules instead of at most {at_most}:\n{listed}"
