"""Check the arguments of `client.run_batch` and `client.plan_batch`, and create what they need.

`begin` creates the `Batch`, whose `run` does the work. `plan` adds model, hardware and price to the
contents of the files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import evolve, frozen

from .._api.domain import InstanceArgs, Model
from .._api.resources import HardwareTypes, Models, User
from .._api.validation import check_amount, check_seconds, check_start
from .._config import Settings
from .._errors import InvalidArgumentError
from .._http.connections import HTTPClient
from .._lease.endpoint import inference_key
from .._lease.lease import InstanceLease
from .._secrets import Secret
from .plan import BatchOptions, BatchPlan, run_preflight
from .run import Batch
from .sender import BatchTransport, SenderConfig, choose_transport

# Tokens, unless the caller chooses or the model has less. The vendor's client has the same default.
_DEFAULT_CONTEXT_LENGTH = 32_000

AnyPath = str | os.PathLike[str]


class BatchServices(Protocol):
    """The parts of a client that a batch needs."""

    settings: Settings
    http_client: HTTPClient | None
    models: Models
    hardware_types: HardwareTypes
    user: User

    def lease(
        self, model_id: str, hardware_type_id: str | None, start: dict[str, Any], **options: Any
    ) -> InstanceLease:
        """Return a lease of an instance."""
        ...


@frozen
class Start:
    """The arguments of every start."""

    model_id: str
    hardware_type_id: str | None
    context_length: int | None
    num_workers: int
    billing_interval: str = "per_minute"

    @property
    def rest(self) -> dict[str, Any]:
        """All arguments but the model and the hardware."""
        return {
            "context_length": self.context_length,
            "num_workers": self.num_workers,
            "billing_interval": self.billing_interval,
        }

    def check(self) -> InstanceArgs:
        """Return the checked arguments.

        Raises:
            InvalidArgumentError: The service would reject an argument.
        """
        return check_start(self.model_id, self.hardware_type_id, **self.rest)


def begin(
    services: BatchServices,
    start: Start,
    source: AnyPath,
    target: AnyPath,
    *,
    key: Secret | None,
    transport: BatchTransport,
    request_timeout: float,
    lease: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Batch:
    """Check all arguments, and return the batch.

    `lease` has options of `client.instance`, and `options` those of `BatchOptions`. Without a `key`, the
    environment's is used.

    Raises:
        InvalidArgumentError: An argument is invalid.
        ConfigurationError: There is no key, or the transport is not available.
    """
    args = start.check()
    key = Secret(inference_key(key.reveal() if key is not None else None))
    check_seconds("request_timeout", request_timeout)
    if lease["on_progress"] is not None and not callable(lease["on_progress"]):
        raise InvalidArgumentError("on_provisioning must be callable")
    check_amount("max_cost", lease["max_cost"])
    batch_options = _options(args, source, target, options)
    lease_options = dict(lease)
    if lease_options["max_cost"] is not None:
        lease_options["max_cost"] /= batch_options.instances

    def new_lease() -> InstanceLease:
        return services.lease(start.model_id, start.hardware_type_id, start.rest, **lease_options)

    new_lease()  # checks its arguments before the files are read
    sender_config = SenderConfig(
        settings=services.settings,
        transport=choose_transport(transport, services.http_client),
        http_client=services.http_client,
        key=key,
        timeout=request_timeout,
    )
    return Batch(batch_options, sender_config, new_lease)


async def plan(
    services: BatchServices, start: Start, source: AnyPath, target: AnyPath, options: Mapping[str, Any]
) -> BatchPlan:
    """Return what a batch would do.

    Raises:
        InvalidArgumentError: An argument is invalid, or not possible with the model.
        RequestError: The service did not answer, or does not know the model.
    """
    args = start.check()
    batch_options = _options(args, source, target, options)
    preflight = await run_preflight(batch_options, None)
    preflight.index.close()
    model = await services.models.get(args.model_id)
    hardware_type_id = args.hardware_type_id or model.recommended_config
    context_length = _check_context_length(model, hardware_type_id, args.context_length)
    types = {each.hardware_type_id: each for each in await services.hardware_types.list()}
    available = {each.hardware_type_id for each in await services.hardware_types.list_available()}
    hardware = types.get(hardware_type_id or "")
    price = hardware.price_per_minute if hardware is not None else None
    balance = await services.user.balance()
    instances = min(batch_options.instances, max(preflight.plan.left, 1))
    return evolve(
        preflight.plan,
        context_length=context_length,
        model=args.hf_name,
        hardware_type_id=hardware_type_id,
        is_available=hardware_type_id in available if hardware_type_id else None,
        instances=instances,
        num_workers=args.num_workers,
        price_per_minute=None if price is None else price * args.num_workers * instances,
        currency=hardware.currency if hardware is not None else "",
        balance=balance.current_balance,
        balance_currency=balance.currency,
    )


def _check_context_length(
    model: Model, hardware_type_id: str | None, context_length: int | None
) -> int | None:
    """Return the context length that the instances will have; None if it is not known.

    Raises:
        InvalidArgumentError: The model does not run on this hardware, or not with this context length.
    """
    name = model.hf_name or model.model_id
    config = model.hardware_configs.get(hardware_type_id or "")
    if config is None:
        if hardware_type_id is None or not model.hardware_configs:
            return context_length
        choices = ", ".join(sorted(model.hardware_configs))
        raise InvalidArgumentError(f"{name} does not run on {hardware_type_id!r}; choose one of {choices}")
    longest = config.max_context_length
    if context_length is None:
        return None if longest is None else min(_DEFAULT_CONTEXT_LENGTH, longest)
    if longest is not None and context_length > longest:
        raise InvalidArgumentError(
            f"context_length={context_length} exceeds the {longest} tokens of {name} on {hardware_type_id}"
        )
    return context_length


def _options(
    args: InstanceArgs, source: AnyPath, target: AnyPath, options: Mapping[str, Any]
) -> BatchOptions:
    source, target = _path("input", source), _path("output", target)
    return BatchOptions(source=source, target=target, model=args.hf_name, **options)


def _path(name: str, value: AnyPath) -> Path:
    try:
        path = Path(value)
        if "\0" in str(path):
            raise ValueError  # noqa: TRY301  (as the system does, but later)
        # Resolve links, because rewriting the output would replace the link.
        return path.resolve() if path.is_symlink() else path
    except TypeError:
        raise InvalidArgumentError(f"{name} must be a path, not {type(value).__name__}") from None
    except (OSError, RuntimeError):
        # Opening the path will report the problem. Python before 3.13 raises RuntimeError for circular links.
        return Path(value)
    except ValueError:
        raise InvalidArgumentError(f"{name} must be a path without null characters, not {value!r}") from None
