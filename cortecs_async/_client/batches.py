"""`client.run_batch` and `client.plan_batch`: their signatures and documentation.

`BatchMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from .._hints import hinted
from .._public import shown_as_client

if TYPE_CHECKING:
    from .._api.validation import BillingInterval
    from .._api.waiting import ProgressCallback
    from .._batch.plan import BatchPlan
    from .._batch.report import BatchProgressCallback, BatchReport
    from .._batch.sender import BatchTransport
    from .._durations import Duration
    from .._lease.options import Ready
    from .._secrets import Secret
    from .wiring import Wiring


@hinted
@shown_as_client
class BatchMethods:
    """The batch methods of `AsyncCortecs`."""

    _wiring: Wiring

    async def run_batch(
        self,
        input: str | os.PathLike[str],  # noqa: A002  (the plain word is the clearest name)
        output: str | os.PathLike[str],
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        max_price_per_hour: float | None = None,
        capacity_timeout: Duration | None = None,
        ready: Ready = "answer",
        idle_timeout: Duration | None = None,
        project: str | None = None,
        instances: int = 1,
        concurrency: int | Literal["auto"] = "auto",
        request_timeout: Duration = 600.0,
        max_retries: int = 5,
        ordered: bool = False,
        retry_failed: bool = False,
        override_model: bool = False,
        text: bool = False,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | Secret | None = None,
        transport: BatchTransport = "auto",
        on_progress: BatchProgressCallback | None = None,
        on_provisioning: ProgressCallback | None = None,
    ) -> BatchReport:
        """Run a file of requests on temporary instances.

        Both files use the OpenAI Batch API format. An input line can also be shorter: an object with `prompt`
        or `messages`, or a plain prompt with `text=True`. Each request gets one output line: an answer, or an
        error.

        If a run ends early, call this again with the same arguments to continue. Requests already answered in
        the output are skipped. `BatchReport.of(error)` returns the report of a failed or cancelled run.

        Args:
            input: The file of requests, or `-` for standard input. It can be compressed with gzip or zstd. It
                is read twice, so it must not change while the batch runs.
            output: The file for the answers: a new file, or one from an earlier run with this input. It
                cannot be compressed, and no other program may change it while the batch runs.
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker, a list in order of preference, or `"cheapest"`, as
                in `instance`. Default: the model's `recommended_config`.
            context_length: Maximum context length, in tokens. Same default as in `instance`.
            num_workers: Number of workers of each instance, 1 to 8. Default: 1.
            billing_interval: `per_minute` (default) or `per_hour`.
            start_timeout: Maximum time to wait for an instance to become usable. Default: 15 minutes.
            teardown_timeout: Maximum time to release an instance, including retries. Default: 2 minutes.
            max_lifetime: Maximum lifetime of each instance, from the start request to the release. Default:
                no limit.
            max_cost: Maximum total cost of all instances, in the account's currency. It is divided equally
                among them. Default: no limit.
            max_price_per_hour: Maximum list price per hour of each instance, as in `instance`.
            capacity_timeout: Maximum time to wait for free capacity for each instance, as in `instance`.
            ready: When an instance gets its first requests, as in `instance`. Default: `answer`.
            idle_timeout: Maximum time in which an instance gets no request and sends no answer. Others
                continue. See `instance`. Default: no limit.
            project: Same as in `instance`.
            instances: How many instances to use, at most one per request. Default: 1. If one is lost, the
                others take over its requests.
            concurrency: Requests to send in parallel to each instance. `auto` (default) finds the best
                number.
            request_timeout: Timeout for each attempt of a request. Default: 10 minutes.
            max_retries: Retries of a request that fails while the endpoint answers others, or whose response
                has a success status but contains an error. Default: 5. Timeouts, rejections, and requests
                that may crash the server have separate limits: see docs/batch.md.
            ordered: If True, sort the output into the order of the input when it is complete.
            retry_failed: If True, retry requests whose output line is an error.
            override_model: If True, use `model_id` even for requests that specify a different one.
            text: If True, the input is plain text, one prompt per line.
            system: The system prompt for chats and responses that have none.
            max_tokens: Maximum tokens of each answer, for requests that set no limit.
            temperature: The temperature for requests that set none.
            api_key: Your inference API key (not the provisioning credentials). Default: CORTECS_API_KEY,
                OPENAI_API_KEY, or the key in your profile, as in `openai_kwargs`.
            transport: The library that sends the requests to the instances: `auto` (default), `aiohttp`, or
                `httpx`. `auto` uses aiohttp if it is installed (the extra `aiohttp`). It uses httpx on trio,
                without aiohttp, through a proxy that is not plain http://, or if the client has an
                `http_client`, which then also sends these requests.
            on_progress: A function called with a `BatchProgress` several times a second. It can be async. If
                it raises, the batch ends.
            on_provisioning: A function called with a `Progress` at every change while an instance starts.

        Raises:
            BatchFileError: if a file is invalid. `line` is the line number. Nothing was started, unless the
                input was changed or removed while the batch was running.
            InvalidArgumentError: if another argument is invalid. Nothing was started.
            ConfigurationError: if there is no key, the transport is not available, or the input needs the
                `zstd` extra. Nothing was started. The same error ends the batch if an endpoint rejects
                the key in the test that `ready` asks for.
            BatchWriteError: if the output or a temporary file cannot be written, or another program removed
                or changed the output. `path` is the file with the answers, or, for a temporary file, its
                directory or an empty string.
            EndpointError: if the last endpoint rejects the key, answers no requests or only test requests for
                three minutes (plus `Retry-After`), or times out for most requests.
            LeaseExpiredError: if the last instance reaches `max_lifetime` or its share of `max_cost` before
                the work is done.
            TeardownError: if any instance is not released within `teardown_timeout`.
            CapacityTimeoutError: if there is no capacity for any instance within `capacity_timeout`.
            CortecsError: the same errors as `instance`, if they affect the last instance.

        Example:
            report = await client.run_batch(
                "requests.jsonl", "answers.jsonl", "meta-llama/Llama-3.1-8B-Instruct", max_cost=5.0
            )
            print(report)
        """
        # Not at the top, because most programs do not run a batch.
        from .._batch.plan import BatchOptions  # noqa: PLC0415
        from .._batch.setup import check_path, new_batch  # noqa: PLC0415
        from .._errors import InvalidArgumentError  # noqa: PLC0415
        from .._lease.options import start_options  # noqa: PLC0415
        from .._secrets import Hidden  # noqa: PLC0415

        key = Hidden(api_key)
        del api_key  # a traceback that shows locals would show it
        if on_provisioning is not None and not callable(on_provisioning):
            raise InvalidArgumentError("on_provisioning must be callable")
        lease = start_options(
            *(model_id, hardware_type_id, context_length, num_workers, billing_interval),
            start_timeout=start_timeout,
            teardown_timeout=teardown_timeout,
            max_lifetime=max_lifetime,
            max_cost=max_cost,
            max_price_per_hour=max_price_per_hour,
            capacity_timeout=capacity_timeout,
            ready=ready,
            idle_timeout=idle_timeout,
            project=project,
            inference_key=key,
            on_progress=on_provisioning,
        )
        options = BatchOptions(
            source=check_path("input", input),
            target=check_path("output", output),
            model=lease.args.hf_name,
            instances=instances,
            concurrency=concurrency,
            max_retries=max_retries,
            ordered=ordered,
            retry_failed=retry_failed,
            override_model=override_model,
            text=text,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            on_progress=on_progress,
        )
        batch = new_batch(
            options,
            lease,
            self._wiring.lease,
            settings=self._wiring.settings,
            http_client=self._wiring.http_client,
            key=key,
            transport=transport,
            request_timeout=request_timeout,
        )
        return await batch.run()

    async def plan_batch(
        self,
        input: str | os.PathLike[str],  # noqa: A002  (the plain word is the clearest name)
        output: str | os.PathLike[str],
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        max_price_per_hour: float | None = None,
        instances: int = 1,
        retry_failed: bool = False,
        override_model: bool = False,
        text: bool = False,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> BatchPlan:
        """Check the files, model, hardware, and price of a batch without starting anything.

        The inference API key is not checked. The number of prompt tokens is an estimate, and the number of
        completion tokens is an upper bound: see `BatchPlan`.

        Args:
            input: The file of requests, as in `run_batch`.
            output: The file for the answers, as in `run_batch`. It is not changed.
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker, a list in order of preference, or `"cheapest"`, as
                in `instance`. The plan is for the one that would be tried first now. Default: the model's
                `recommended_config`.
            context_length: Maximum context length, in tokens. Same default as in `instance`.
            num_workers: Number of workers of each instance, 1 to 8. Default: 1.
            max_price_per_hour: Maximum list price per hour of each instance, as in `instance`.
            instances: How many instances to use. Default: 1.
            retry_failed: If True, retry requests whose output line is an error.
            override_model: If True, use `model_id` even for requests that specify a different one.
            text: Same as in `run_batch`.
            system: Same as in `run_batch`.
            max_tokens: Same as in `run_batch`.
            temperature: Same as in `run_batch`.

        Raises:
            BatchFileError: if a file is invalid. `line` is the line number.
            InvalidArgumentError: if the model does not run on the hardware, the context length is too long,
                or the hardware costs more than `max_price_per_hour`.
            PriceUnknownError: if `max_price_per_hour` or `"cheapest"` needs a price that the service does not
                return.
            RequestError: if the service cannot be reached or does not have the model.

        Example:
            plan = await client.plan_batch(
                "requests.jsonl", "answers.jsonl", "meta-llama/Llama-3.1-8B-Instruct"
            )
            print(plan)
        """
        from .._batch.plan import BatchOptions  # noqa: PLC0415
        from .._batch.setup import check_path, plan  # noqa: PLC0415
        from .._lease.options import start_options  # noqa: PLC0415

        lease = start_options(
            *(model_id, hardware_type_id, context_length, num_workers, "per_minute"),
            max_price_per_hour=max_price_per_hour,
        )
        options = BatchOptions(
            source=check_path("input", input),
            target=check_path("output", output),
            model=lease.args.hf_name,
            instances=instances,
            retry_failed=retry_failed,
            override_model=override_model,
            text=text,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        endpoints = self._wiring.own
        return await plan(options, lease, endpoints.models, endpoints.hardware_types, endpoints.user)
