"""`client.run_batch` and `client.plan_batch`: their signatures. What they do is loaded with the first one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from .._api.validation import check_start
from .._errors import InvalidArgumentError
from .._lease.options import LeaseOptions
from .._secrets import Secret

if TYPE_CHECKING:
    from .._api.waiting import ProgressCallback
    from .._batch.plan import BatchPlan
    from .._batch.report import BatchReport
    from .._batch.run import BatchProgressCallback
    from .._batch.sender import BatchTransport
    from .wiring import Wiring


class BatchMethods:
    """The methods of a client that are about batches."""

    _wiring: Wiring

    async def run_batch(
        self,
        input: str | os.PathLike[str],  # noqa: A002  (what it is)
        output: str | os.PathLike[str],
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: str = "per_minute",
        start_timeout: float = 900.0,
        teardown_timeout: float = 120.0,
        max_lifetime: float | None = None,
        max_cost: float | None = None,
        instances: int = 1,
        concurrency: int | Literal["auto"] = "auto",
        request_timeout: float = 600.0,
        max_retries: int = 5,
        ordered: bool = False,
        retry_failed: bool = False,
        override_model: bool = False,
        api_key: str | None = None,
        transport: BatchTransport = "auto",
        on_progress: BatchProgressCallback | None = None,
        on_provisioning: ProgressCallback | None = None,
    ) -> BatchReport:
        """Answers a file of requests on instances that live as long as that takes.

        Both files have the format of OpenAI's Batch API, for `/v1/chat/completions`, `/v1/completions` and
        `/v1/embeddings`. An answer is on the disk when it is counted, and what the output answers already is
        not asked again: after whatever ended a run, the same call goes on from there. Every request gets one
        line: an answer, or what was wrong.

        Args:
            input: A file of requests. It is read twice, and must not change meanwhile.
            output: A file for the answers; new, or that of an earlier run with this input.
            model_id: As for `instance`, and so are the others that `instance` has.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens.
            num_workers: 1 to 8, of each instance.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Seconds until an instance must be usable.
            teardown_timeout: Seconds for its release.
            max_lifetime: Seconds that each instance may live.
            max_cost: What all instances may cost together, in the currency of the account, in equal parts.
            instances: How many share the work, not more than there are requests. When one is lost the others
                do what it had.
            concurrency: Requests at once on each instance; `auto` finds out how many are best.
            request_timeout: Seconds for one attempt of a request.
            max_retries: Attempts that may fail after the first before a request becomes an error line. Only
                those count while which the endpoint has answered another request: see docs/batch.md.
            ordered: Put the output into the order of the input when it is complete.
            retry_failed: Ask again what has an error line in the output.
            override_model: Ask for this model also where a request names another.
            api_key: The key for inference. Default: the environment's CORTECS_API_KEY, else OPENAI_API_KEY.
            transport: What carries the requests. `auto` is aiohttp where it is installed (the extra of that
                name), and httpx on trio, without it, through a proxy that is not plain http://, or when the
                client was given an `http_client`, which is then used for these requests too.
            on_progress: Called with a `BatchProgress` some times a second; may be async. What it raises ends
                the batch.
            on_provisioning: Called with a `Progress` at every change while an instance starts.

        Raises:
            BatchFileError: for anything wrong with the files, with the line, before anything is started.
            InvalidArgumentError: for other bad arguments, as early.
            ConfigurationError: when there is no key, or not the transport that was asked for, as early.
            BatchWriteError: when the output cannot be written any more, or no temporary file, which is
                known early.
            EndpointError: when the last endpoint refuses the key, answers nothing for three minutes, or
                mostly not in time.
            LeaseExpiredError: when `max_lifetime` or `max_cost` is used up before the work is done.
            CortecsError: what `instance` raises, when it happens to the last instance.
        """
        # Here, because most programs run no batch.
        from .._batch.setup import begin  # noqa: PLC0415

        key = Secret(api_key) if api_key is not None else None
        del api_key  # a traceback that shows locals would show it
        if on_provisioning is not None and not callable(on_provisioning):
            raise InvalidArgumentError("on_provisioning must be callable")
        lease = LeaseOptions(
            args=check_start(
                model_id,
                hardware_type_id,
                context_length=context_length,
                num_workers=num_workers,
                billing_interval=billing_interval,
            ),
            start_timeout=start_timeout,
            teardown_timeout=teardown_timeout,
            max_lifetime=max_lifetime,
            max_cost=max_cost,
            on_progress=on_provisioning,
        )
        batch = begin(
            self._wiring,
            lease,
            input,
            output,
            key=key,
            transport=transport,
            request_timeout=request_timeout,
            options={
                "instances": instances,
                "concurrency": concurrency,
                "max_retries": max_retries,
                "ordered": ordered,
                "retry_failed": retry_failed,
                "override_model": override_model,
                "on_progress": on_progress,
            },
        )
        return await batch.run()

    async def plan_batch(
        self,
        input: str | os.PathLike[str],  # noqa: A002  (what it is)
        output: str | os.PathLike[str],
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        instances: int = 1,
        retry_failed: bool = False,
        override_model: bool = False,
    ) -> BatchPlan:
        """What `run_batch` would do: checks the files, the model, the hardware and the price. Starts nothing.

        Args:
            input: As for `run_batch`, and so are the others.
            output: It is not touched.
            model_id: The model.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens.
            num_workers: 1 to 8, of each instance.
            instances: How many.
            retry_failed: Ask again what has an error line in the output.
            override_model: Ask for this model also where a request names another.

        Raises:
            BatchFileError: for anything wrong with the files, with the line.
            InvalidArgumentError: for hardware that the model does not run on, or a context that is too long.
            RequestError: when the service cannot be asked, or does not know the model.
        """
        from .._batch.setup import plan  # noqa: PLC0415

        args = check_start(
            model_id,
            hardware_type_id,
            context_length=context_length,
            num_workers=num_workers,
            billing_interval="per_minute",
        )
        options = {
            "instances": instances,
            "retry_failed": retry_failed,
            "override_model": override_model,
        }
        return await plan(self._wiring, args, input, output, options)
