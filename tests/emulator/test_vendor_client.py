"""The vendor's own client, unmodified, against the emulator on real sockets: the emulator's oracle."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from cortecs_async.emulator import Emulator, serve_emulator

cortecs_py = pytest.importorskip("cortecs_py")
requests = pytest.importorskip("requests")

pytestmark = [pytest.mark.oracle, pytest.mark.sockets]

LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"
# Pending long enough to be observed, and short enough not to slow the tests down.
PROMPT = {"step_seconds": 0.002}
SLOW = {"step_seconds": 1000.0}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve an emulator to a vendor's client, which reads everything from the environment."""

    @contextmanager
    def serving(**options: Any) -> Iterator[tuple[Emulator, Any]]:
        with (
            anyio.from_thread.start_blocking_portal() as portal,
            portal.wrap_async_context_manager(serve_emulator(**options)) as emulator,
        ):
            for name, value in emulator.env().items():
                monkeypatch.setenv(name, value)
            yield emulator, cortecs_py.Cortecs()

    return serving


def test_start_and_poll(serve: Any) -> None:
    with serve(**PROMPT) as (emulator, client):
        instance = client.start(
            LLAMA,
            hardware_type_id="NVIDIA_H100_1",
            context_length=8192,
            billing_interval="per_hour",
            num_workers=2,
            poll_interval=0,
        )
        # It returns when the first worker is at its last step, and must find the instance usable then.
        assert instance.instance_status.status == "running"
        assert instance.base_url == f"{emulator.root_url}/inference/instance-10001/v1"
        assert instance.instance_args.hf_name == LLAMA
        assert instance.instance_args.model_dump() == {
            "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
            "hardware_type_id": "NVIDIA_H100_1",
            "context_length": 8192,
            "billing_interval": "per_hour",
            "num_workers": 2,
        }
        assert instance.instance_status.started_at is not None
        assert len(instance.worker_statuses) == 2


def test_start_without_polling(serve: Any) -> None:
    with serve(**SLOW) as (emulator, client):
        instance = client.start(LLAMA, poll=False)
        assert instance.instance_status.status == "pending"
        assert instance.base_url is None
        assert emulator.billing == (instance.instance_id,)
        with pytest.raises(TimeoutError):
            client.poll_instance(instance.instance_id, poll_interval=0, max_retries=3)


def test_poll_instance(serve: Any) -> None:
    with serve(**PROMPT) as (_, client):
        instance_id = client.start(LLAMA, poll=False).instance_id
        polled = client.poll_instance(instance_id, poll_interval=0)
        assert client.poll_instance(instance_id) == polled
        client.stop(instance_id)
        with pytest.raises(RuntimeError, match="stopped"):
            client.poll_instance(instance_id)


def test_the_vendors_client_crashes_on_the_documented_arguments(serve: Any) -> None:
    """A known bug of it: without num_workers it raises after the start, and leaves the instance running."""
    with serve(num_workers_in_args=False) as (emulator, client):
        with pytest.raises(ValueError, match="num_workers"):
            client.start(LLAMA)
        assert len(emulator.billing) == 1


def test_restart(serve: Any) -> None:
    with serve(**PROMPT) as (emulator, client):
        instance_id = client.start(LLAMA, poll_interval=0).instance_id
        with pytest.raises(requests.exceptions.HTTPError, match="400"):
            client.restart(instance_id)
        client.stop(instance_id)
        assert client.restart(instance_id, poll=False).instance_status.status == "pending"
        assert client.poll_instance(instance_id, poll_interval=0).instance_status.status == "running"
        client.stop(instance_id)
        assert client.restart(instance_id, poll_interval=0).instance_status.status == "running"
        assert emulator.existing == (instance_id,)


def test_ensure_instance_starts_when_there_is_none(serve: Any) -> None:
    with serve(**PROMPT) as (emulator, client):
        emulator.start_instance(LLAMA, num_workers=2)
        instance = client.ensure_instance(LLAMA, poll_interval=0)
        assert (instance.instance_id, instance.instance_status.status) == ("instance-10002", "running")
        assert instance.instance_args.context_length == 32000


def test_ensure_instance_takes_the_running_one(serve: Any) -> None:
    with serve(step_seconds=0.0) as (emulator, client):
        running = emulator.start_instance(LLAMA, "NVIDIA_L40S_1", context_length=4096)
        found = client.ensure_instance(LLAMA, hardware_type_id="NVIDIA_L40S_1", context_length=4096)
        assert found.instance_id == running
        assert emulator.existing == (running,)


def test_ensure_instance_waits_for_the_pending_one(serve: Any) -> None:
    with serve(step_seconds=0.05) as (emulator, client):
        pending = emulator.start_instance(LLAMA)
        assert client.ensure_instance(LLAMA, poll=False).instance_status.status == "pending"
        waited = client.ensure_instance(LLAMA, poll_interval=0, max_retries=10_000)
        assert (waited.instance_id, waited.instance_status.status) == (pending, "running")
        assert emulator.existing == (pending,)


def test_ensure_instance_restarts_the_stopped_one(serve: Any) -> None:
    with serve(step_seconds=0.0) as (emulator, client):
        stopped = emulator.start_instance(LLAMA)
        emulator.stop_instance(stopped)
        assert client.ensure_instance(LLAMA).instance_status.status == "running"
        assert emulator.billing == emulator.existing == (stopped,)


def test_ensure_instance_reads_the_longest_context(serve: Any) -> None:
    with serve() as (emulator, client):
        with pytest.raises(ValueError, match="Max context length: 16384"):
            client.ensure_instance("microsoft/phi-4", hardware_type_id="NVIDIA_H100_1", context_length=20_000)
        with pytest.raises(ValueError, match="recommended hardware_type: NVIDIA_L40S_1"):
            client.ensure_instance("microsoft/phi-4", context_length=20_000)
        assert emulator.ledger == ()


def test_reading(serve: Any) -> None:
    with serve(step_seconds=0.0) as (emulator, client):
        running, stopped = (
            emulator.start_instance(LLAMA),
            emulator.start_instance("microsoft/phi-4", num_workers=2),
        )
        emulator.stop_instance(stopped)
        assert client.get_instance(running).instance_id == running
        assert client.get_instance_status(running).status == "running"
        assert client.get_instance_status(running).stopped_at is None
        assert client.get_instance_status(stopped).stopped_at is not None
        assert [status.init_progress for status in client.get_worker_statuses(running)] == [
            {"current_step": 5, "num_steps": 5, "description": "Running"}
        ]
        assert [status.init_progress for status in client.get_worker_statuses(stopped)] == [None, None]
        assert [instance.instance_id for instance in client.get_all_instances()] == [running, stopped]
        assert [instance.instance_id for instance in client.get_running_instances()] == [running]
        with pytest.raises(requests.exceptions.HTTPError, match="400"):
            client.get_instance("instance-1")


def test_stop_and_delete(serve: Any) -> None:
    with serve() as (emulator, client):
        instance_id = emulator.start_instance(LLAMA)
        with pytest.raises(requests.exceptions.HTTPError, match="only a stopped one can be deleted"):
            client.delete(instance_id)
        assert client.stop(instance_id).instance_status.status == "stopped"
        assert client.delete(instance_id) == instance_id
        assert emulator.existing == ()


def test_stop_all_and_delete_all(serve: Any) -> None:
    with serve() as (emulator, client):
        assert client.stop_all() is None
        assert client.delete_all() == []
        first, second = emulator.start_instance(LLAMA), emulator.start_instance(LLAMA)
        assert client.stop_all() == [first, second]
        third = emulator.start_instance(LLAMA)
        assert client.delete_all() == [first, second]
        assert client.delete_all(force=True) == [third]
        assert emulator.existing == ()
        assert emulator.billing == ()


def test_the_catalog(serve: Any) -> None:
    with serve(capacity={"NVIDIA_H100_1": 0}) as (_, client):
        models = {model.model_id: model for model in client.get_all_models()}
        llama = models["meta-llama--Meta-Llama-3.1-8B-Instruct"]
        assert (llama.hf_name, llama.size, llama.creator) == (LLAMA, 8, {"name": "Meta"})
        assert llama.hardware_configs == ["NVIDIA_L4_1", "NVIDIA_L40S_1", "NVIDIA_L40S_2", "NVIDIA_H100_1"]
        every = {hardware.hardware_type_id for hardware in client.get_all_hardware_types()}
        free = {hardware.hardware_type_id for hardware in client.get_available_hardware_types()}
        assert every - free == {"NVIDIA_H100_1"}


def test_wrong_credentials(serve: Any) -> None:
    with serve() as (_, client):
        stranger = cortecs_py.Cortecs("nobody", "nothing")
        with pytest.raises(requests.exceptions.HTTPError, match="401"):
            stranger.get_all_instances()
        assert client.get_all_instances() == []


def test_its_langchain_integration(serve: Any) -> None:
    pytest.importorskip("langchain_openai")
    langchain = importlib.import_module("cortecs_py.integrations.langchain")

    with serve(**PROMPT) as (emulator, client):
        with langchain.DedicatedLLM(client=client, model_name=LLAMA, poll_interval=0) as llm:
            assert len(emulator.billing) == 1
            answer = llm.invoke("Hello there")
            assert 'You said: "Hello there"' in answer.content
            assert answer.usage_metadata["output_tokens"] > 0
            assert "".join(chunk.content for chunk in llm.stream("Hello there")) == answer.content
        assert emulator.existing == ()
        assert [entry.status for entry in emulator.ledger] == ["deleted"]
