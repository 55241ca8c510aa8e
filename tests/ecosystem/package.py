"""Check what is published: the metadata, what the sdist contains, and that both run where nothing else is.

The argument is the folder of the wheel and the sdist. `python -m nox -s package` builds and passes it.
"""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# What git has and the sdist does not.
LEFT_OUT = {".gitattributes", ".gitignore"}


def main() -> None:
    """Run all checks.

    Raises:
        AssertionError: If one fails.
    """
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    version = check_metadata(metadata_of(wheel))
    check_contents(sdist)
    for each in (wheel, sdist):
        run(each, version)
        print(f"{each.name} runs")


def metadata_of(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def check_metadata(metadata: Message) -> str:
    """Check the description, and return the version."""
    description = str(metadata.get_payload())
    links = re.findall(r"\]\((?!https://)[^)]*\)", description)
    assert not links, f"links that lead nowhere on a package index: {links}"
    assert "pip install 'cortecs-async[cli,openai]'" in description
    assert "checkout" not in description
    return metadata["Version"]


def check_contents(sdist: Path) -> None:
    """Check that the sdist has every file of the repository, so that tests and docs can be run from it."""
    with tarfile.open(sdist) as archive:
        contained = {name.partition("/")[2] for name in archive.getnames()}
    command = ["git", "-C", str(ROOT), "ls-files"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not (missing := set(tracked) - contained - LEFT_OUT), f"not in the sdist: {sorted(missing)}"


def run(file: Path, version: str) -> None:
    """Install a file with the extra `cli` into a new environment, and run the command line there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{file}[cli]")
        subprocess.run(install, check=True, cwd=folder)
        for program in ([python, "-m", "cortecs_async"], [python.with_name("cortecs-async")]):
            command = [*program, "--version"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
            assert done.stdout == f"cortecs-async, version {version}\n", done.stdout


if __name__ == "__main__":
    main()
