"""The names people try first and the correct names, for error messages.

`hinted` adds them to a class, and `_public.py` adds them to the modules. Type checkers, completion, `dir`,
and `inspect.signature` show only existing names.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

C = TypeVar("C", bound=type[Any])

Hints = Mapping[str, str]
"""The replacement for each group of names, which are separated by spaces."""

_LEASE = "async with client.instance(...) as inst:"
_END = (
    "leave the block: this stops and deletes an instance started by client.instance(...), but not one from "
    "client.attach(...)"
)
_INFERENCE = "inst.openai(), inside the block of an instance, returns a client for inference"

# Attributes, by class.
_ATTRIBUTES: Mapping[str, Hints] = {
    "AsyncCortecs": {
        "start create create_instance start_instance rent lease launch run deploy provision": (
            f"use `{_LEASE}`, or client.instances.start(...) and delete the instance yourself"
        ),
        "ensure ensure_instance": "use client.instances.ensure(...), or client.instance(..., reuse=True)",
        "stop stop_instance terminate delete delete_instance shutdown": (
            "use client.release(instance_id), or client.instances.stop and client.instances.delete"
        ),
        "restart": "use client.instances.restart(instance_id)",
        "stop_all delete_all": "use client.instances.stop_all() or client.instances.delete_all()",
        "list list_instances get_instances get_all_instances": "use client.instances.list()",
        "get get_instance get_instance_status": "use client.instances.get(instance_id)",
        "wait poll poll_instance wait_until_running": "use client.instances.wait_until_running(instance_id)",
        "watch": "use client.instances.watch(instance_id)",
        "balance get_balance credits account": "use client.user.balance()",
        "list_models get_models get_all_models get_model": "use client.models.list() or client.models.get()",
        "hardware gpus list_hardware get_all_hardware_types": "use client.hardware_types.list()",
        "get_available_hardware_types": "use client.hardware_types.list_available()",
        "batch batches": "use client.run_batch(...)",
        "close": "use `async with AsyncCortecs() as client:`, or `await client.aclose()`",
        "chat completions embeddings responses openai": _INFERENCE,
        "map": f"use inst.map(...) inside `{_LEASE}`",
        "token": "you do not need a token: the client gets and renews it",
    },
    "InstanceLease": {
        "id": "use inst.instance_id",
        "url endpoint api_base api_base_url": "use inst.base_url",
        "model_id model_name": "use inst.model, or inst.instance.instance_args.model_id",
        "status state": "use inst.instance.status",
        "hardware hardware_type hardware_type_id gpu": "use inst.instance.instance_args.hardware_type_id",
        "stop delete close aclose terminate release shutdown": _END,
        "start wait wait_until_running ready": (
            f"use `{_LEASE}`: the block starts when the instance is running"
        ),
        "cost price": "use inst.cost_so_far or inst.receipt",
        "chat completions embeddings responses client llm": "use inst.openai(), which returns a client",
        "api_key key": 'use inst.openai_kwargs()["api_key"]',
    },
    "InstanceHandle": {
        "id": "use handle.instance_id",
        "url endpoint api_base": "use handle.base_url",
        "model_id model_name": "use handle.model",
        "status state instance": "use client.instances.get(handle.instance_id)",
        "stop delete close aclose terminate release": "use client.release(handle)",
        "chat completions client": "use handle.openai(), which returns a client",
    },
    "Instance": {
        "id": "use instance.instance_id",
        "url endpoint api_base": "use instance.base_url",
        "model model_id model_name": "use instance.instance_args.hf_name",
        "hardware hardware_type hardware_type_id": "use instance.instance_args.hardware_type_id",
        "num_workers": "use instance.instance_args.num_workers",
        "state": "use instance.status",
        "started_at stopped_at": "use instance.instance_status",
        "stop delete terminate": "use client.release(instance.instance_id), which stops and deletes it",
        "openai map openai_kwargs": f"use `{_LEASE}`, or client.attach(instance_id) instead",
    },
    "Instances": {
        "create create_instance start_instance launch": f"use `{_LEASE}`, or client.instances.start(...)",
        "terminate destroy remove shutdown": "use client.release(instance_id), which deletes an instance",
        "retrieve describe": "use client.instances.get(instance_id)",
        "all": "use client.instances.list()",
        "wait wait_for": "use client.instances.wait_until_running(instance_id)",
    },
    "Models": {"retrieve": "use client.models.get(model_id)", "all": "use client.models.list()"},
    "HardwareTypes": {
        "all": "use client.hardware_types.list()",
        "available": "use client.hardware_types.list_available()",
    },
    "User": {"get_balance current_balance credits": "use client.user.balance()"},
    "Progress": {
        "status": "use progress.instance.status",
        "instance_id id": "use progress.instance.instance_id",
        "percent percentage progress": "use progress.fraction",
        "step current_step": "use progress.leading.current_step",
        "message": "use progress.description",
    },
    "Balance": {"balance amount value": "use balance.current_balance"},
    "Model": {"id name": "use model.model_id or model.hf_name"},
    "ModelPreview": {"id name": "use model.model_id or model.hf_name"},
    "HardwareType": {
        "id name": "use hardware.hardware_type_id",
        "price cost": "use hardware.price_per_minute or hardware.price_per_hour",
    },
    "Receipt": {"total price amount": "use receipt.cost", "duration elapsed": "use receipt.seconds"},
    "BatchReport": {"duration elapsed": "use report.seconds", "errors": "use report.failed"},
    "Results": {"results gather all": "use `await inst.map(...).to_list()`"},
}

# Common misuses of a class, and what to do instead.
_MISUSES: Mapping[str, Hints] = {
    "AsyncCortecs": {"with": "use `async with AsyncCortecs() as client:`"},
    "InstanceLease": {"with await async-for": f"use `{_LEASE}` (the same applies to client.attach)"},
    "Calls": {"with async-with": "use its methods directly and close only the client"},
    "Instances": {"call": "use client.instances.list()"},
    "Models": {"call": "use client.models.list()"},
    "HardwareTypes": {"call": "use client.hardware_types.list()"},
    "User": {"call": "use client.user.balance()"},
    "InstanceWatch": {"await for": "use `async for snapshot in client.instances.watch(...):`"},
    "Results": {
        "await": "use `await inst.map(...).to_list()`, or `async for result in inst.map(...):`",
        "for with": "use `async for result in inst.map(...):`, or `await inst.map(...).to_list()`",
    },
    "FanOut": {"await with for": "use `async with fan_out(...) as outcomes:`, and `async for` inside it"},
    "cancel_on_sigterm": {"with await": "use `async with cancel_on_sigterm():`"},
    "BackgroundInstance": {"with await": "use `async with BackgroundInstance(...) as instance:`"},
    "SharedInstance": {"with await": "use `async with SharedInstance(...) as instance:`"},
    "ProvisioningBar": {"async-with": "use `with ProvisioningBar() as bar:`"},
    "ProgressDisplay": {"with async-with": "use `client.instance(..., on_progress=ProgressDisplay())`"},
    "AnswerFile": {"async-with": "use `with AnswerFile(...) as answers:`"},
}

_METHODS = {
    "await": ("__await__",),
    "with": ("__enter__", "__exit__"),
    "for": ("__iter__",),
    "async-with": ("__aenter__", "__aexit__"),
    "async-for": ("__aiter__",),
    "call": ("__call__",),
}

START_ARGUMENTS: Hints = {
    "model model_name name": "use model_id",
    "hardware hardware_type gpu gpu_type instance_type": "use hardware_type_id",
    "timeout wait_timeout poll_timeout": "use start_timeout",
    "max_price budget cost_limit max_budget": "use max_cost",
    "on_status on_change callback progress progress_callback on_update": "use on_progress",
    "ttl lifetime max_duration max_runtime duration time_limit max_time": "use max_lifetime",
    "idle_timeout": "use max_lifetime or max_cost; the client cannot detect idle instances",
    "workers replicas num_replicas num_gpus": "use num_workers",
    "max_model_len max_context_length context_window context ctx": "use context_length",
    "billing": "use billing_interval",
    "keep keep_alive delete": "use on_exit='keep', 'stop', or 'delete'",
    "poll poll_interval": "use AsyncCortecs(poll_policy=...)",
    "api_key": "use inst.openai(api_key=...)",
}

# Arguments that these methods have, but not all other methods that start an instance.
_ELSEWHERE: Mapping[str, str] = {
    "client.instance": (
        "start_timeout teardown_timeout on_exit reuse max_lifetime max_cost on_loss on_progress require_key"
    ),
    "client.run_batch": (
        "billing_interval start_timeout teardown_timeout max_lifetime max_cost concurrency request_timeout "
        "max_retries ordered api_key transport on_progress on_provisioning"
    ),
}

# The instances of a batch are always deleted.
_BATCH_ARGUMENTS: Hints = {
    "timeout": "use request_timeout or start_timeout",
    "input_file source prompts requests": "use input",
    "output_file target results": "use output",
    "system_prompt": "use system",
    **{
        names: hint
        for names, hint in START_ARGUMENTS.items()
        if not hint.startswith(("use on_exit", "use inst."))
    },
}

# Keyword arguments, by class and method.
_ARGUMENTS: Mapping[str, Mapping[str, Hints]] = {
    "AsyncCortecs": {
        "__init__": {
            "api_key key token access_token": (
                "provisioning needs client_id and client_secret; your inference API key belongs in the "
                "environment variable OPENAI_API_KEY, or in inst.openai(api_key=...)"
            ),
            "secret password": "use client_secret",
            "id user username": "use client_id",
            "base_url url api_url api_base endpoint host": "use api_base_url",
            "timeout_seconds request_timeout": "use timeout",
            "async_client client session transport_client httpx_client": "use http_client",
            "retries max_attempts": "use max_retries",
            "headers extra_headers": "use default_headers",
            "proxy proxies": "set the environment variable HTTPS_PROXY, or use http_client",
            "verify ssl ssl_context": "set the environment variable SSL_CERT_FILE, or use http_client",
            "log_level debug": "set the environment variable CORTECS_LOG=debug",
            "max_lifetime max_cost start_timeout on_progress": "pass it to client.instance(...)",
        },
    },
    "LeaseMethods": {
        "instance": START_ARGUMENTS,
        "attach": {"id handle instance": "use instance_id", "timeout": "use start_timeout"},
        "acquire": START_ARGUMENTS,
        "release": {"id instance_id instance": "use handle", "timeout": "use teardown_timeout"},
    },
    "BatchMethods": {
        "run_batch": _BATCH_ARGUMENTS,
        "plan_batch": _BATCH_ARGUMENTS,
    },
    "Instances": {
        "start": START_ARGUMENTS,
        "ensure": {"start_timeout wait_timeout poll_timeout": "use timeout", **START_ARGUMENTS},
        "wait_until_running": {"id": "use instance_id", "start_timeout": "use timeout"},
    },
    "Endpoint": {
        "map": {
            "max_concurrency workers limit max_workers parallel": "use concurrency",
            "inputs iterable data": "use items",
            "func function": "use fn",
        }
    },
    "RetryPolicy": {
        "__init__": {"retries max_attempts attempts": "use max_retries", "timeout": "use total_timeout"}
    },
    "PollPolicy": {
        "__init__": {"interval": "use min_interval and max_interval", "timeout": "use max_outage"}
    },
}

# Names of modules, with their real location or name.
IMPORTS: Hints = {
    "Cortecs CortecsClient Client AsyncClient AsyncCortecsClient CortecsAsync": "the client is AsyncCortecs",
    "BackgroundInstance SharedInstance NotReadyError StartOptions": "it is in cortecs_async.integrations.web",
    "ProvisioningBar": "it is in cortecs_async.integrations.rich",
    "ProgressDisplay": "it is in cortecs_async.integrations.notebook",
    "OpenTelemetry": "it is in cortecs_async.integrations.opentelemetry",
    "fan_out": "it is in cortecs_async.integrations.ray and cortecs_async.integrations.dask",
    "AnswerFile answer": "it is in cortecs_async.integrations.jsonl",
    "Emulator serve_emulator run_emulator Fault": "it is in cortecs_async.emulator",
    "cancel_on_sigterm": "it is in cortecs_async.signals",
    "DedicatedLLM": "use client.instance(...) and inst.langchain()",
    "CortecsException": "the base class of all errors is CortecsError",
    "APIError HTTPError HTTPStatusError": "use APIStatusError or RequestError, in cortecs_async.errors",
    "APIConnectionError ConnectError": "it is called TransportError, in cortecs_async.errors",
    "TimeoutError APITimeoutError": "it is called RequestTimeoutError, in cortecs_async.errors",
    "ValidationError": "it is called InvalidArgumentError, in cortecs_async",
    "UnauthorizedError AuthError": "it is called AuthenticationError, in cortecs_async.errors",
}


def find_hint(hints: Hints, name: str) -> str | None:
    """Return the replacement for a name."""
    return next((text for names, text in hints.items() if name in names.split()), None)


def explain_argument(
    name: str, hints: Hints, known: Iterable[str], elsewhere: str = "client.instance"
) -> str:
    """Return the end of a sentence about an unknown argument: its replacement, if known.

    The replacement can be `elsewhere`, a method with arguments of its own.
    """
    known, hint = [*known], find_hint(hints, name)
    argument = re.match(r"use (\w+)(?![\w.(])", hint or f"use {name}")
    if argument and argument[1] not in known and argument[1] in _ELSEWHERE[elsewhere].split():
        hint = f"use {elsewhere}(..., {argument[1]}=...)"
    if hint:
        return f": {hint}"
    close = difflib.get_close_matches(name, known, n=1)
    return f". {did_you_mean(close)}" if close else ""


def did_you_mean(names: Sequence[str]) -> str:
    """Return a sentence that suggests these names, or an empty string without names."""
    return f"Did you mean {any_of(names)}?" if names else ""


def any_of(names: Sequence[str]) -> str:
    """Return names as a choice: `a`, `a or b`, `a, b, or c`."""
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])}, or {names[-1]}"


def hinted(cls: C) -> C:
    """Make a class raise an error with the correct attribute for each name people try first."""
    name = cls.__name__
    if hints := _ATTRIBUTES.get(name):
        _set(cls, "__getattr__", _hint_attributes(cls, hints))
    for uses, text in _MISUSES.get(name, {}).items():
        for use in uses.split():
            for method in _METHODS[use]:
                _set(cls, method, _refuse(name, use, text))
    for method, arguments in _ARGUMENTS.get(name, {}).items():
        if method == "__init__":
            # Not around `__init__` itself: in a traceback, its frame would show the secrets.
            _set(cls, "__new__", _hint_constructor(cls, arguments))
        else:
            _set(cls, method, _hint_arguments(vars(cls)[method], arguments))
    return cls


def _set(cls: type[Any], name: str, value: object) -> None:
    setattr(cls, name, value)


def _hint_attributes(cls: type[Any], hints: Hints) -> Callable[[object, str], Any]:
    def getattr_(self: object, name: str) -> Any:
        if hint := find_hint(hints, name):
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}: {hint}", name=name)
        # A subclass may have a second base class with its own `__getattr__`.
        if inherited := getattr(super(cls, self), "__getattr__", None):
            return inherited(name)
        # Raises Python's own error, even if a property raised an AttributeError.
        return object.__getattribute__(self, name)

    return getattr_


def _refuse(cls_name: str, use: str, text: str) -> Callable[..., Any]:
    said = f"{cls_name} cannot be called" if use == "call" else f"{cls_name} does not support `{use}`"
    message = f"{said.replace('-', ' ')}: {text}"

    def refuse(_: object, *__: object) -> Any:
        raise TypeError(message)

    return refuse


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _problem(function: Callable[..., Any], hints: Hints, given: Iterable[str]) -> str | None:
    known = _parameters(function)
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return None
    is_batch = function.__name__ in {"run_batch", "plan_batch"}
    explained = explain_argument(
        unknown, hints, known, elsewhere="client.run_batch" if is_batch else "client.instance"
    )
    return f"{function.__qualname__}() got an unexpected keyword argument {unknown!r}{explained}"


def _hint_constructor(cls: type[Any], hints: Hints) -> Any:
    owner, init = cls, cls.__init__

    # With the signature of `__init__`, because `inspect.signature` looks at `__new__` first.
    @functools.wraps(init)
    def new(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            # A subclass may have an `__init__` with different arguments, or a test may have replaced it.
            if cls.__init__ is init and (problem := _problem(init, hints, kwargs)):
                raise TypeError(problem)
            # A subclass may have a second base class with its own `__new__`.
            inherited = super(owner, cls).__new__
            return object.__new__(cls) if inherited is object.__new__ else inherited(cls, *args, **kwargs)
        finally:
            del args, kwargs  # a traceback that shows locals would show secrets

    return staticmethod(new)


def _hint_arguments(function: Callable[..., Any], hints: Hints) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            try:
                if problem := _problem(function, hints, kwargs):
                    raise TypeError(problem)
                called = function(*args, **kwargs)
            finally:
                del args, kwargs  # as above
            return await called

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if problem := _problem(function, hints, kwargs):
                raise TypeError(problem)
            return function(*args, **kwargs)
        finally:
            del args, kwargs  # as above

    return call
