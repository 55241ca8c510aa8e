"""The names people try first and the correct names: the tables that `_hints.py` uses."""

from __future__ import annotations

from collections.abc import Mapping

Hints = Mapping[str, str]
"""The replacement for each group of names, which are separated by spaces."""

_LEASE = "async with client.instance(...) as inst:"
_END = (
    "leave the block: this stops and deletes an instance started by client.instance(...), but not one from "
    "client.attach(...)"
)
_INFERENCE = "inst.openai(), inside the block of an instance, returns a client for inference"

# Attributes, by class.
ATTRIBUTES: Mapping[str, Hints] = {
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
MISUSES: Mapping[str, Hints] = {
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

METHODS = {
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
    "max_hourly_price max_hourly_cost price_limit max_bid": "use max_price_per_hour",
    "idle idle_minutes autostop idle_shutdown scaledown_window": "use idle_timeout",
    "wait_for_capacity queue_timeout capacity": "use capacity_timeout",
    "probe readiness_probe health_check wait_until": "use ready='models' or ready='answer'",
    "tag label team cost_center": "use project",
    "workers replicas num_replicas num_gpus": "use num_workers",
    "max_model_len max_context_length context_window context ctx": "use context_length",
    "billing": "use billing_interval",
    "keep keep_alive delete": "use on_exit='keep', 'stop', or 'delete'",
    "poll poll_interval": "use AsyncCortecs(poll_policy=...)",
    "api_key": "use inst.openai(api_key=...)",
}

# Arguments that these methods have, but not all other methods that start an instance.
ELSEWHERE: Mapping[str, str] = {
    "client.instance": (
        "start_timeout teardown_timeout on_exit reuse max_lifetime max_cost max_price_per_hour "
        "capacity_timeout ready idle_timeout on_loss on_progress require_key project"
    ),
    "client.run_batch": (
        "billing_interval start_timeout teardown_timeout max_lifetime max_cost max_price_per_hour "
        "capacity_timeout ready idle_timeout project concurrency request_timeout "
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
ARGUMENTS: Mapping[str, Mapping[str, Hints]] = {
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
        "acquire": {
            "idle_timeout idle idle_minutes autostop idle_shutdown scaledown_window": (
                "no process sees all requests to the instance, so use max_lifetime, or client.shared(...)"
            ),
            **START_ARGUMENTS,
        },
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
