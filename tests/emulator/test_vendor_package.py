"""Run the test suite and the programs of the README that the vendor publishes with its client.

The suite is in the source archive, and the programs are in its metadata. Both are read when the tests run.
"""

import json
import re
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from _vendor import download, run, serve, write_stand_ins

cortecs_py = pytest.importorskip("cortecs_py")
openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.oracle, pytest.mark.sockets]

VERSION = "0.1.2"
SHA256 = "270e51358089c6d16cea7f4de1e3d10e8b603804c61eb1e1799e4489e1f579a3"
SUITE = "tests/test_client_api_dev_mode.py"
# The suite checks that it does not run against the real service.
SUITE_URL = '"http://localhost:3000/api/v1"'
TESTS = 24


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("archive")
    download(f"cortecs-py=={VERSION}", SHA256, folder, "--no-binary", "cortecs-py")
    return folder / f"cortecs_py-{VERSION}.tar.gz"


def test_the_vendors_tests_pass(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as files:
        member = files.extractfile(f"cortecs_py-{VERSION}/{SUITE}")
        assert member is not None
        text = member.read().decode()
    assert text.count(SUITE_URL) == 1
    program = tmp_path / Path(SUITE).name
    with serve() as emulator:
        program.write_text(text.replace(SUITE_URL, json.dumps(emulator.api_base_url)), encoding="utf-8")
        done = run(program, emulator, tmp_path)
        assert re.search(rf"\nRan {TESTS} tests in .*\n\nOK\n\Z", done.stderr), done.stderr
        assert done.returncode == 0
        assert emulator.existing == ()
        # Each of its eleven tests of instances, except the one that only lists them, starts at least one.
        assert len(emulator.ledger) >= 10


def examples() -> list[str]:
    """Return the programs of the README."""
    text = distribution("cortecs-py").read_text("METADATA") or ""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_has_two_examples() -> None:
    assert ["ArxivLoader" in example for example in examples()] == [False, True]


@pytest.mark.parametrize("number", [0, 1], ids=["quickstart", "summarize"])
def test_the_examples_run_as_published(number: int, tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(examples()[number], encoding="utf-8")
    with serve() as emulator:
        done = run(program, emulator, tmp_path, write_stand_ins(tmp_path))
        assert done.returncode == 0, done.stderr
        # The emulated model quotes the question.
        quotes = ["essay about dynamic provisioning"] if number == 0 else [f"Paper {n}." for n in range(40)]
        assert [quote for quote in quotes if quote not in done.stdout] == []
        assert [(entry.model_id, entry.status) for entry in emulator.ledger] == [
            ("cortecs--phi-4-FP8-Dynamic", "deleted")
        ]
        assert [record.route for record in emulator.requests][-2:] == ["stop", "delete"]


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen2-7B-Instruct",
        "cortecs/phi-4-FP8-Dynamic",
        "neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8",
        "neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8",
    ],
)
def test_its_models_start_chat_and_stop(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        client = cortecs_py.Cortecs()
        instance = client.start(model)
        with openai.OpenAI(base_url=instance.base_url) as llm:
            answer = llm.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Write a joke about LLMs."}]
            )
        assert "joke about LLMs" in (answer.choices[0].message.content or "")
        assert client.stop(instance.instance_id).instance_status.status == "stopped"
        assert emulator.billing == ()
