"""The vendor's programs: download them and run them against the emulator.

None of these programs are committed here. The vendor's package index has the client, its tests, and the
README with two programs. The other programs are only in its repository.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from _sections import blocks

from cortecs_async.emulator import Emulator, serve_emulator

# Version 0.1.2.
REPOSITORY = "https://github.com/cortecs-ai/cortecs-py"
COMMIT = "b439d37303f1a8a7993cc2fb55201d7d5be4f048"


def download(name: str, sha256: str, folder: Path, *options: str) -> None:
    """Download a release of the vendor's client with pip. Without a network, skip the test, except in CI.

    Args:
        name: The requirement.
        sha256: The hash of the file. pip checks it before it runs the build backend of a source archive.
        folder: Where to put the file.
        *options: Passed to pip.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name} --hash=sha256:{sha256}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options),
            *("--dest", folder, "--requirement", requirements),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        problem = f"cannot download {name}: {done.stderr.strip()}"
        if "CI" in os.environ or "DO NOT MATCH THE HASHES" in done.stderr:
            pytest.fail(problem)
        pytest.skip(problem)


def check_out(folder: Path) -> Path:
    """Check out the vendor's repository. If GitHub cannot be reached, skip the test, except on GitHub.

    The commit's id is a hash of all files, so git notices a change. To use a clone or a mirror, tell git:
    `git config --global url.<its path>.insteadOf https://github.com/cortecs-ai/cortecs-py`.
    """
    for command in (
        ["init", "--quiet", str(folder)],
        ["-C", str(folder), "fetch", "--quiet", "--depth", "1", REPOSITORY, COMMIT],
        ["-C", str(folder), "checkout", "--quiet", COMMIT],
    ):
        try:
            done = subprocess.run(
                ["git", *command],
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = f"{error}"
        else:
            problem = done.stderr.strip() if done.returncode else ""
        if problem:
            problem = f"cannot fetch {REPOSITORY}: {problem}"
            if "GITHUB_ACTIONS" in os.environ:
                pytest.fail(problem)
            pytest.skip(problem)
    return folder


def run(
    program: Path | str,
    emulator: Emulator,
    folder: Path,
    *path: str,
    typed: str = "",
    interrupt_after: str = "",
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with the emulator's credentials in its environment.

    Args:
        program: A file, or the name of a module.
        emulator: The emulator.
        folder: The working directory and home directory. CrewAI writes to the latter.
        *path: Directories to search first for modules.
        typed: Its standard input.
        interrupt_after: Ctrl-C ends the program once it has printed a line with this text. By default, it
            ends by itself.
        **env: More environment variables.
    """
    process = subprocess.Popen(
        [sys.executable, *(["-m", program] if isinstance(program, str) else [program])],
        env={
            **os.environ,
            **emulator.env(),
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            **env,
        },
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        printed = ""
        if interrupt_after:
            for line in process.stdout:
                printed += line
                if interrupt_after in line:
                    process.send_signal(signal.SIGINT)
                    break
        rest, errors = process.communicate(typed)
    return subprocess.CompletedProcess(process.args, process.returncode, printed + rest, errors)


def run_page(
    heading: str, emulator: Emulator, folder: Path, *path: str, **options: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run each Python block under a heading of docs/migrating.md as a separate program (see `run`)."""
    done = []
    for number, source in enumerate(blocks("migrating.md", heading)):
        program = folder / f"block_{number}.py"
        program.write_text(source, encoding="utf-8")
        done.append(run(program, emulator, folder, *path, **options))
    return done


def serve(**options: Any) -> AbstractContextManager[Emulator]:
    """Serve an emulator whose clock advances by a second with each request.

    The vendor's client sleeps for 5 s after each poll except the first. Here, the first poll returns a
    pending instance and the second a running one.
    """
    return serve_emulator(step_seconds=0.5, clock=itertools.count().__next__, **options)


def write_stand_ins(folder: Path) -> str:
    """Write the programs' data sources that replace the network, and return the folder of the modules."""
    for name, text in STAND_INS.items():
        path = folder / "stand-ins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(folder / "stand-ins")


# The replacements for data from the network, each with the package or website it replaces.
STAND_INS = {
    # arxiv.org
    "langchain_community/document_loaders.py": """
from langchain_core.documents import Document


class ArxivLoader:
    def __init__(self, **options):
        self.options = options

    def load(self):
        length = self.options["doc_content_chars_max"]
        numbers = range(self.options["load_max_docs"])
        return [Document(f"Paper {number}. " + length // 8 * "science ") for number in numbers]
""",
    # reddit.com. Its stream never ends.
    "praw.py": """
import itertools
import time
from types import SimpleNamespace


class Reddit:
    def __init__(self, *, user_agent):
        self.user_agent = user_agent

    def subreddit(self, name):
        return SimpleNamespace(stream=SimpleNamespace(comments=self.comments))

    def comments(self):
        for title in itertools.cycle(["Eras Tour", "Bond prices", "New comet"]):
            yield SimpleNamespace(
                link_title=title, subreddit_name_prefixed="r/pics", body=f"I like {title.lower()}."
            )
            time.sleep(0.01)
""",
    # The tokenizers from huggingface.co.
    "transformers/tokenization_utils_base.py": """
class PreTrainedTokenizerBase:
    def tokenize(self, text, **options):
        return text.split()
""",
    "transformers/__init__.py": """
from transformers.tokenization_utils_base import PreTrainedTokenizerBase


class AutoTokenizer:
    @staticmethod
    def from_pretrained(name):
        assert name == "cortecs/phi-4-FP8-Dynamic"
        return PreTrainedTokenizerBase()
""",
    # openbible.com. `requests` itself also sends the requests of the vendor's client.
    "sitecustomize.py": """
import requests
from requests.adapters import HTTPAdapter

BIBLE = "\\n\\n".join(f"Verse {number}: " + "word " * 150 for number in range(60))


class Bible(HTTPAdapter):
    def send(self, request, **options):
        response = requests.Response()
        response.status_code, response.encoding, response._content = 200, "utf-8", BIBLE.encode()
        response.url, response.request = request.url, request
        return response


def mounted(session, make=requests.Session.__init__):
    make(session)
    session.mount("https://openbible.com/", Bible())


requests.Session.__init__ = mounted
""",
}
