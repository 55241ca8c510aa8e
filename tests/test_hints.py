"""The names that people try first end in an error that names the right one, and tools do not see them."""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest import mock

import attrs
import pytest
from _world import HARDWARE, MODEL, World, client_of

import cortecs_async
from cortecs_async import AsyncCortecs, InstanceHandle, InvalidArgumentError, PollPolicy, RetryPolicy, errors
from cortecs_async import _hint_tables as hint_tables
from cortecs_async import _hints as hints_module
from cortecs_async._hint_tables import IMPORTS, Hints
from cortecs_async._hints import hinted
from cortecs_async.emulator import serve_emulator
from cortecs_async.integrations import dask, jsonl, rich, web
from cortecs_async.integrations._fan_out import FanOut
from cortecs_async.signals import cancel_on_sigterm
from cortecs_async.types import Balance, BatchReport, HardwareType, Instance, InstanceArgs, InstanceStatus

HANDLE = InstanceHandle(instance_id="i-1", base_url="http://localhost/v1", model="a/b", account="x")
INSTANCE = Instance(
    instance_id="i-1",
    instance_args=InstanceArgs(model_id="a--b"),
    instance_status=InstanceStatus(status="running"),
)


@pytest.fixture
def client() -> Iterator[AsyncCortecs]:
    client = AsyncCortecs(client_id="a", client_secret="b")
    yield client
    client._closed = True


def lease(client: AsyncCortecs) -> Any:
    return client.instance(MODEL)


async def never(item: object) -> object:
    raise NotImplementedError


ATTRIBUTES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda client: client.balance(), "use client.user.balance()"),
    (lambda client: client.start(MODEL), "client.instance(...) as inst"),
    (lambda client: client.stop("i-1"), "use client.release(instance_id)"),
    (lambda client: client.list(), "use client.instances.list()"),
    (lambda client: client.create(), "client.instance(...) as inst"),
    (lambda client: client.close(), "await client.aclose()"),
    (lambda client: client.ensure_instance(MODEL), "use client.instances.ensure"),
    (lambda client: client.instances.create(), "client.instances.start(...)"),
    (lambda client: client.instances.start_instance(), "client.instances.start(...)"),
    (lambda client: client.instances.terminate("i-1"), "use client.release(instance_id)"),
    (lambda client: client.user.get_balance(), "use client.user.balance()"),
    (lambda client: lease(client).id, "use inst.instance_id"),
    (lambda client: lease(client).url, "use inst.base_url"),
    (lambda client: lease(client).endpoint, "use inst.base_url"),
    (lambda client: lease(client).api_base, "use inst.base_url"),
    (lambda client: lease(client).status, "use inst.instance.status"),
    (lambda client: lease(client).stop(), "leave the block: this stops and deletes"),
    (lambda client: lease(client).delete(), "leave the block: this stops and deletes"),
    (lambda client: lease(client).close(), "leave the block: this stops and deletes"),
    (lambda client: lease(client).chat.completions, "use inst.openai()"),
    (lambda _: INSTANCE.id, "use instance.instance_id"),  # type: ignore[attr-defined]
    (lambda _: INSTANCE.openai(), "client.attach(instance_id)"),  # type: ignore[attr-defined]
    (lambda _: HANDLE.id, "use handle.instance_id"),  # type: ignore[attr-defined]
    (lambda _: HANDLE.stop(), "use client.release(handle)"),  # type: ignore[attr-defined]
    (lambda _: Balance(current_balance=1, currency="EUR").amount, "current_balance"),  # type: ignore[attr-defined]
    (lambda _: HardwareType(hardware_type_id="h").price, "price_per_minute"),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("attempt", "right"), ATTRIBUTES, ids=map(str, range(len(ATTRIBUTES))))
def test_an_attribute(client: AsyncCortecs, attempt: Callable[[Any], Any], right: str) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute '\w+': ") as caught:
        attempt(client)
    assert right in str(caught.value)
    # Python would suggest the nearest of all names.
    assert "Did you mean" not in "".join(traceback.format_exception_only(caught.value))


def test_any_other_attribute_has_the_error_of_python(client: AsyncCortecs) -> None:
    every: list[Any] = [client, lease(client), client.instances, HANDLE, INSTANCE]
    for each in every:
        with pytest.raises(AttributeError, match="object has no attribute 'nonsense'"):
            _ = each.nonsense
        assert not hasattr(each, "_repr_mimebundle_")


def test_a_property_that_raises_an_attribute_error_keeps_it() -> None:
    @hinted
    class Balance:
        @property
        def broken(self) -> object:
            return None.nothing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'"):
        _ = Balance().broken
    with pytest.raises(AttributeError, match=r"use balance\.current_balance"):
        _ = Balance().amount  # type: ignore[attr-defined]


CONSTRUCTORS = [
    (AsyncCortecs, "api_key", "client_id and client_secret; your inference API key belongs in"),
    (AsyncCortecs, "token", "client_id and client_secret"),
    (AsyncCortecs, "base_url", "use api_base_url"),
    (AsyncCortecs, "timeout_seconds", "use timeout"),
    (AsyncCortecs, "async_client", "use http_client"),
    (AsyncCortecs, "clientid", "Did you mean client_id?"),
    (RetryPolicy, "retries", "use max_retries"),
    (PollPolicy, "interval", "use min_interval and max_interval"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("cls", "name", "right"), CONSTRUCTORS, ids=str)
def test_an_argument_of_a_constructor(cls: Any, name: str, right: str) -> None:
    with pytest.raises(TypeError) as caught:
        cls(**{name: "sk-secret"})
    assert f"got an unexpected keyword argument '{name}'" in str(caught.value)
    assert right in str(caught.value)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if "/cortecs_async/" in frame.filename]
    assert frames
    assert "sk-secret" not in str([frame.locals for frame in frames])


@pytest.mark.parametrize("arguments", [(1, 2, 3), ("a", "b", None)])
def test_a_constructor_that_fails_leaves_nothing_to_close(
    arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TypeError):
        AsyncCortecs(*arguments)
    with pytest.raises(TypeError):
        AsyncCortecs(nonsense=1)  # type: ignore[call-arg]
    gc.collect()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("model", "use model_id"),
        ("hardware", "use hardware_type_id"),
        ("gpu", "use hardware_type_id"),
        ("timeout", "use start_timeout"),
        ("max_price", "use max_cost"),
        ("on_status", "use on_progress"),
        ("ttl", "use max_lifetime"),
        ("workers", "use num_workers"),
        ("numworkers", "Did you mean num_workers?"),
    ],
)
async def test_an_argument_of_a_start(client: AsyncCortecs, name: str, right: str) -> None:
    said = rf"got an unexpected keyword argument '{name}'.*{right.replace('?', '.')}"
    wrong: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=said):
        client.instance(MODEL, **wrong)
    with pytest.raises(TypeError, match=said):
        await client.acquire(MODEL, **wrong)
    with pytest.raises(
        InvalidArgumentError, match=f"Unknown option {name}.*{right.rsplit(maxsplit=1)[-1].replace('?', '.')}"
    ):
        web.BackgroundInstance(client, MODEL, **wrong)


def usable(client: AsyncCortecs) -> Iterator[tuple[Any, str, str]]:
    """Yield each hinted function, with a name that it does not have and the end of its error."""
    methods: dict[str, Any] = {
        "AsyncCortecs": AsyncCortecs,
        "BatchMethods": AsyncCortecs,
        "LeaseMethods": AsyncCortecs,
        "Instances": type(client.instances),
        "Endpoint": InstanceHandle,
        "RetryPolicy": RetryPolicy,
        "PollPolicy": PollPolicy,
    }
    for cls, hints_by_method in hint_tables.ARGUMENTS.items():
        for method, hints in hints_by_method.items():
            function = getattr(methods[cls], method)
            known = {*inspect.signature(function).parameters}
            for name in {*names_in(hints), *LEASE_ARGUMENTS, *BATCH_ARGUMENTS} - known:
                elsewhere = "client.run_batch" if cls == "BatchMethods" else "client.instance"
                yield function, name, hints_module.explain_argument(name, hints, known, elsewhere)
    for name in {*names_in(hint_tables.START_ARGUMENTS), *LEASE_ARGUMENTS} - {*OPTIONS}:
        yield (
            web.BackgroundInstance,
            name,
            hints_module.explain_argument(name, hint_tables.START_ARGUMENTS, OPTIONS),
        )


OPTIONS = ("model_id", "hardware_type_id", *web.StartOptions.__annotations__)
LEASE_ARGUMENTS = {*inspect.signature(AsyncCortecs.instance).parameters}
BATCH_ARGUMENTS = {*inspect.signature(AsyncCortecs.run_batch).parameters}


def test_every_argument_that_a_hint_names_exists(client: AsyncCortecs) -> None:
    others = {"client.instance": LEASE_ARGUMENTS, "client.run_batch": BATCH_ARGUMENTS}
    for function, name, text in usable(client):
        known = OPTIONS if function is web.BackgroundInstance else inspect.signature(function).parameters
        for sentence in re.findall(r"use (\w.*?)(?=[;,:] \D|$)", text):
            if found := re.match(r"(client\.\w+)\(\.\.\., (\w+)=", sentence):
                assert found[2] in others[found[1]], (function, name, text)
            elif re.fullmatch(r"\w+( (or|and) \w+)?", sentence):
                wanted = re.split(r" or | and ", sentence)
                assert wanted[0] in known, (function, name, text)
                assert {*wanted} <= {*known, *LEASE_ARGUMENTS}, (function, name, text)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("timeout", "client.instance(..., start_timeout=...)"),
        ("max_cost", "client.instance(..., max_cost=...)"),
        ("ttl", "client.instance(..., max_lifetime=...)"),
        ("keep_alive", "client.instance(..., on_exit=...)"),
        ("idle_timeout", "client.instance(..., idle_timeout=...)"),
        ("gpu", "hardware_type_id"),
    ],
)
async def test_a_plain_start_names_the_method_that_has_the_argument(
    client: AsyncCortecs, name: str, right: str
) -> None:
    wrong: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError) as caught:
        await client.instances.start(MODEL, **wrong)
    assert str(caught.value).endswith(f"'{name}': use {right}")


async def test_acquire_says_why_it_has_no_idle_timeout(client: AsyncCortecs) -> None:
    wrong: Any = {"idle_timeout": 600}
    with pytest.raises(TypeError, match=r"no process sees all requests .* max_lifetime, or client\.shared"):
        await client.acquire(MODEL, **wrong)


async def test_a_plan_names_the_method_that_has_the_argument(client: AsyncCortecs) -> None:
    wrong: Any = {"ttl": 1}
    with pytest.raises(TypeError, match=r"use client\.run_batch\(\.\.\., max_lifetime=\.\.\.\)$"):
        await client.plan_batch("in", **wrong)


class OfOneRegion(AsyncCortecs):
    def __init__(self, *, region: str) -> None:
        super().__init__("i", "s")
        self.region = region


@attrs.frozen(kw_only=True)
class OwnPolicy(RetryPolicy):
    interval: int = 1


class Counted:
    created = 0

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        Counted.created += len(args) + len(kwargs)
        return super().__new__(cls)

    def __getattr__(self, name: str) -> str:
        return name


class WithAMixin(AsyncCortecs, Counted):
    pass


def test_subclasses_have_their_own_constructors() -> None:
    client = OfOneRegion(region="eu")
    assert client.region == "eu"
    policy = OwnPolicy(interval=3, max_retries=2)
    assert (policy.interval, policy.max_retries) == (3, 2)
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301
    mixed: Any = WithAMixin("i", client_secret="s")
    assert Counted.created == 2
    assert mixed.anything == "anything"
    mixed_class: Any = WithAMixin
    with pytest.raises(TypeError, match="use api_base_url"):
        mixed_class(base_url="x")
    for each in (client, mixed):
        each._closed = True


def test_a_constructor_can_be_replaced_in_a_test() -> None:
    cls: Any = AsyncCortecs
    with mock.patch.object(AsyncCortecs, "__init__", return_value=None):
        cls(anything=1)._closed = True


async def test_no_frame_of_a_call_that_fails_has_its_arguments(client: AsyncCortecs) -> None:
    method, lease_of, cls = cast("tuple[Any, Any, Any]", (client.run_batch, client.instance, AsyncCortecs))
    attempts: list[Callable[[], Any]] = [
        lambda: lease_of("a/b", api_key=SECRET),
        lambda: lease_of("a b", max_cost=SECRET),
        lambda: cls(base_url=SECRET),
    ]
    for attempt in attempts:
        with pytest.raises((TypeError, InvalidArgumentError)) as caught:
            attempt()
        assert SECRET not in locals_of_hints(caught.value)
    with pytest.raises(TypeError) as missing:
        await method("in", api_key=SECRET)
    assert SECRET not in locals_of_hints(missing.value)


SECRET = "s3cret"


def locals_of_hints(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return str([frame.locals for frame in shown.stack if frame.filename.endswith("_hints.py")])


async def test_an_argument_of_other_methods(client: AsyncCortecs) -> None:
    method: Any = client.run_batch
    with pytest.raises(TypeError, match="'output_file': use output"):
        await method("in", output_file="out", api_key="sk-secret")
    with pytest.raises(TypeError, match="'workers': use concurrency"):
        lease(client).map(never, [], workers=2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'output'"):
        await method("in", model_id=MODEL)


async def test_what_is_awaited_entered_or_iterated_wrongly(client: AsyncCortecs) -> None:
    results: Any = HANDLE.map(never, [1])
    work: Any = never
    fan_out: Any = FanOut(work, [1], [lease(client)], chunk_size=1, chunks_per_instance=1, max_attempts=1)
    shared: Any = web.SharedInstance(MODEL)
    watch: Any = client.instances.watch("i-1")
    use = r"does not support `%s`: use .*`async "
    sigterm: Any = cancel_on_sigterm()
    wrongly: Any = client
    for wrong in (wrongly, lease(client), shared, results, fan_out, sigterm):
        with pytest.raises(TypeError, match=use % "with"), wrong:
            pass
    for wrong in (lease(client), results, fan_out, watch, shared, sigterm):
        with pytest.raises(TypeError, match=use % "await"):
            wrong.__await__()
    for wrong in (results, fan_out, watch):
        with pytest.raises(TypeError, match=use % "for"):
            list(wrong)
    with pytest.raises(TypeError, match=use % "async for"):
        lease(client).__aiter__()
    for wrong, right in (
        (client.models, "client.models.list()"),
        (client.instances, "client.instances.list()"),
        (client.hardware_types, "client.hardware_types.list()"),
        (client.user, "client.user.balance()"),
    ):
        with pytest.raises(TypeError) as caught:
            wrong()  # type: ignore[operator]
        assert str(caught.value).endswith(f"cannot be called: use {right}")


async def test_a_block_that_is_not_asynchronous(client: AsyncCortecs) -> None:
    for wrong in (rich.ProvisioningBar(), jsonl.AnswerFile("in", "out")):
        entered: Any = wrong
        with pytest.raises(TypeError, match="does not support `async with`: use `with "):
            async with entered:
                pass
    with pytest.raises(TypeError, match="use its methods directly"):
        async with client.with_options(timeout=5):  # type: ignore[attr-defined]
            pass


def test_fan_out_needs_a_client_of_dask_and_a_list(client: AsyncCortecs) -> None:
    class LocalCluster:
        asynchronous = True

    arguments: Any = (never, [1], [lease(client)], LocalCluster())
    with pytest.raises(errors.ConfigurationError, match=r"Client.*, not LocalCluster"):
        dask.fan_out(*arguments)
    one: Any = lease(client)
    with pytest.raises(InvalidArgumentError, match="a list of leases"):
        FanOut(never, [1], one, chunk_size=1, chunks_per_instance=1, max_attempts=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "name", "right"),
    [
        ("cortecs_async", "Cortecs", "the client is AsyncCortecs"),
        ("cortecs_async", "AsyncClient", "the client is AsyncCortecs"),
        ("cortecs_async", "Client", "the client is AsyncCortecs"),
        ("cortecs_async", "InstanceStatus", "it is in cortecs_async.types"),
        ("cortecs_async", "RateLimitError", "it is in cortecs_async.errors"),
        ("cortecs_async", "SharedInstance", "it is in cortecs_async.integrations.web"),
        ("cortecs_async.errors", "TimeoutError", "it is called RequestTimeoutError"),
        ("cortecs_async.types", "AsyncCortecs", "it is in cortecs_async"),
        ("cortecs_async.types", "RateLimitError", "it is in cortecs_async.errors"),
    ],
)
def test_an_import(module: str, name: str, right: str) -> None:
    with pytest.raises(ImportError) as caught:
        exec(f"from {module} import {name}")  # noqa: S102
    assert str(caught.value).startswith(f"cannot import '{name}' from '{module}': {right}")


def test_only_an_import_has_an_import_error() -> None:
    module: Any = cortecs_async
    assert not hasattr(module, "Client")
    assert getattr(module, "AsyncClient", None) is None
    with mock.patch("cortecs_async.Client", create=True):
        pass
    with pytest.raises(AttributeError, match=r"no attribute 'Client': the client is AsyncCortecs") as caught:
        _ = module.Client
    assert "Did you mean" not in "".join(traceback.format_exception_only(caught.value))
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from cortecs_async import nonsense")  # noqa: S102


def test_the_places_that_imports_are_said_to_be_in_have_them() -> None:
    for names, text in IMPORTS.items():
        places = [word for word in text.replace(",", "").split() if word.startswith("cortecs_async.")]
        if text.startswith("it is in"):
            for place in places:
                module = importlib.import_module(place)
                assert [each for each in names.split() if not hasattr(module, each)] == []


def names_in(hints: Hints) -> set[str]:
    return {name for group in hints for name in group.split()}


def test_no_hint_is_about_a_name_that_exists() -> None:
    classes: dict[str, Any] = {
        each.__name__: each
        for module in (cortecs_async, cortecs_async.types)
        for each in (getattr(module, name) for name in module.__all__)
        if isinstance(each, type)
    }
    tables: Any = (hint_tables.ATTRIBUTES, hint_tables.ARGUMENTS)
    for name, hints in tables[0].items():
        if name in classes:
            # Attributes that `__init__` sets are not among these.
            assert names_in(hints) & {*dir(classes[name])} == set(), name
    for name, methods in tables[1].items():
        cls = AsyncCortecs if name in {"BatchMethods", "LeaseMethods"} else classes.get(name)
        for method, hints in methods.items():
            if cls is not None and hints is not hint_tables.START_ARGUMENTS:
                known = {*inspect.signature(getattr(cls, method)).parameters}
                own = {key: text for key, text in hints.items() if key not in hint_tables.START_ARGUMENTS}
                assert names_in(own) & known == set(), (name, method)


def test_tools_see_the_real_surface(client: AsyncCortecs) -> None:
    assert {"client_id", "api_base_url"} <= {*inspect.signature(AsyncCortecs).parameters}
    assert "args" not in inspect.signature(AsyncCortecs).parameters
    assert "max_retries" in inspect.signature(RetryPolicy).parameters
    assert [*inspect.signature(client.instance).parameters][:2] == ["model_id", "hardware_type_id"]
    assert inspect.iscoroutinefunction(client.run_batch)
    assert inspect.iscoroutinefunction(client.acquire)
    assert not {"balance", "close", "start", "stop"} & {*dir(client)}
    assert not {"id", "url", "status", "stop"} & {*dir(lease(client))}


def test_data_can_still_be_pickled_and_copied() -> None:
    for each in (HANDLE, INSTANCE, RetryPolicy(max_retries=3), PollPolicy(growth=0.2)):
        assert pickle.loads(pickle.dumps(each)) == each == copy.deepcopy(each)  # noqa: S301
    report = BatchReport(output="x", total=1, succeeded=1, failed=0, resumed=0)
    assert copy.copy(report) == report


async def test_after_its_block_the_data_of_a_lease_stays_and_its_helpers_say_so(world: World) -> None:
    async with world() as (_, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            assert inst.openai_kwargs(api_key="k")["base_url"] == inst.base_url
        with pytest.raises(InvalidArgumentError, match=f"{inst.instance_id} was released"):
            inst.openai_kwargs(api_key="k")
        with pytest.raises(InvalidArgumentError, match="The lease has ended"):
            inst.map(never, [1])
        assert inst.receipt.released
        assert inst.base_url.startswith("http")
        assert (inst.model, inst.instance_id) == (MODEL, inst.instance.instance_id)


async def test_an_instance_that_keeps_running_can_be_used_after_the_block(world: World) -> None:
    async with world() as (_, client):
        async with client.instance(MODEL, HARDWARE, on_exit="keep") as inst:
            pass
        assert inst.openai_kwargs(api_key="k")["base_url"] == inst.base_url
        async with client.attach(inst.instance_id) as attached:
            pass
        assert attached.openai_kwargs(api_key="k")["base_url"] == inst.base_url
        await client.release(inst.instance_id)


@pytest.mark.sockets
@pytest.mark.parametrize("helper", ["openai", "langchain", "pydantic_ai"])
async def test_a_client_that_was_made_in_the_block_says_so_after_it(
    helper: str, anyio_backend_name: str
) -> None:
    if helper != "openai" and anyio_backend_name == "trio":
        pytest.skip(f"{helper} runs on asyncio only")
    pytest.importorskip({"langchain": "langchain_openai"}.get(helper, helper))
    async with serve_emulator(step_seconds=0.01) as emu, client_of(emu) as client:
        async with client.instance(MODEL) as inst:
            made: Any = getattr(inst, helper)(api_key=emu.api_key)
            attribute = {"langchain": "root_async_client", "pydantic_ai": "client"}.get(helper)
            openai = getattr(made, attribute) if attribute else made
            copied = openai.with_options(timeout=5).copy(max_retries=0)
            assert await copied.models.list()
            assert "Are you there?" in await ask(made, helper, inst.model)
        for attempt in (lambda: ask(made, helper, inst.model), lambda: inst_helper(inst, helper)):
            with pytest.raises(InvalidArgumentError, match=f"{inst.instance_id} was released"):
                await attempt()
        with pytest.raises(InvalidArgumentError, match=f"{inst.instance_id} was released"):
            await copied.models.list()
        await openai.close()


async def inst_helper(inst: Any, helper: str) -> None:
    getattr(inst, helper)(api_key="k")


async def ask(made: Any, helper: str, model: str) -> str:
    """Ask with a client of each kind."""
    question = "Are you there?"
    if helper == "langchain":
        return str((await made.ainvoke(question)).content)
    if helper == "pydantic_ai":
        from pydantic_ai import Agent  # noqa: PLC0415  (optional)

        return str((await Agent(made).run(question)).output)
    messages = [{"role": "user", "content": question}]
    answer = await made.chat.completions.create(model=model, messages=messages)
    return str(answer.choices[0].message.content)
