"""From the arguments of a call to a batch that can run."""

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
from .._public import publish_loaded
from .._secrets import Secret
from .plan import BatchPlan, Files
from .run import Batch, BatchOptions, look_through
from .sender import Access, BatchTransport, choose_transport

# Tokens, where neither the caller nor the model says less (the vendor's client does so).
_DEFAULT_CONTEXT = 32_000

AnyPath = str | os.PathLike[str]


class BatchServices(Protocol):
    """What a client is made of, as far as a batch needs it."""

    settings: Settings
    http_client: HTTPClient | None
    models: Models
    hardware_types: HardwareTypes
    user: User

    def lease(
        self, model_id: str, hardware_type_id: str | None, start: dict[str, Any], **options: Any
    ) -> InstanceLease:
        """A lease of an instance."""
        ...


@frozen
class Start:
    """What each instance is started with."""

    model_id: str
    hardware_type_id: str | None
    context_length: int | None
    num_workers: int
    billing_interval: str = "per_minute"

    @property
    def rest(self) -> dict[str, Any]:
        """All but the model and the hardware."""
        return {
            "context_length": self.context_length,
            "num_workers": self.num_workers,
            "billing_interval": self.billing_interval,
        }

    def check(self) -> InstanceArgs:
        """The same, checked.

        Raises:
            InvalidArgumentError: for what the service would refuse on sight.
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
    """A batch, all of whose arguments are checked.

    Args:
        services: The client's.
        start: Of each instance.
        source: The input.
        target: The output.
        key: For inference; None for the environment's.
        transport: What carries the requests.
        request_timeout: Seconds for one attempt.
        lease: Options of `client.instance`.
        options: Of `BatchOptions`.

    Raises:
        InvalidArgumentError: for bad arguments.
        ConfigurationError: when there is no key, or not this transport.
    """
    args = start.check()
    key = Secret(inference_key(key.reveal() if key is not None else None))
    check_seconds("request_timeout", request_timeout)
    if lease["on_progress"] is not None and not callable(lease["on_progress"]):
        raise InvalidArgumentError("on_provisioning must be callable")
    check_amount("max_cost", lease["max_cost"])
    how = BatchOptions(
        files=Files(_path("input", source), _path("output", target)), model=args.hf_name, **options
    )
    each = dict(lease)
    if each["max_cost"] is not None:
        each["max_cost"] /= how.instances

    def new_lease() -> InstanceLease:
        return services.lease(start.model_id, start.hardware_type_id, start.rest, **each)

    new_lease()  # whose arguments are checked before the files are read
    given = services.http_client
    access = Access(
        settings=services.settings,
        transport=choose_transport(transport, given),
        given=given,
        key=key,
        timeout=request_timeout,
    )
    return Batch(how, access, new_lease)


async def plan(
    services: BatchServices, start: Start, source: AnyPath, target: AnyPath, options: Mapping[str, Any]
) -> BatchPlan:
    """What a batch would do.

    Raises:
        InvalidArgumentError: for bad arguments, and for what the model cannot have.
        RequestError: when the service cannot be asked, or does not know the model.
    """
    args = start.check()
    how = BatchOptions(
        files=Files(_path("input", source), _path("output", target)), model=args.hf_name, **options
    )
    found = await look_through(how, None)
    found.index.close()
    model = await services.models.get(args.model_id)
    hardware_type_id = args.hardware_type_id or model.recommended_config
    context_length = _check_fit(model, hardware_type_id, args.context_length)
    types = {each.hardware_type_id: each for each in await services.hardware_types.list()}
    free = {each.hardware_type_id for each in await services.hardware_types.list_available()}
    hardware = types.get(hardware_type_id or "")
    price = hardware.price_per_minute if hardware is not None else None
    balance = await services.user.balance()
    instances = min(how.instances, max(found.plan.left, 1))
    return evolve(
        found.plan,
        context_length=context_length,
        model=args.hf_name,
        hardware_type_id=hardware_type_id,
        is_available=hardware_type_id in free if hardware_type_id else None,
        instances=instances,
        num_workers=args.num_workers,
        price_per_minute=None if price is None else price * args.num_workers * instances,
        currency=hardware.currency if hardware is not None else "",
        balance=balance.current_balance,
        balance_currency=balance.currency,
    )


def _check_fit(model: Model, hardware_type_id: str | None, context_length: int | None) -> int | None:
    """The context that there will be, where that can be told."""
    config = model.hardware_configs.get(hardware_type_id or "")
    if config is None:
        if hardware_type_id is None or not model.hardware_configs:
            return context_length
        raise InvalidArgumentError(
            f"{model.hf_name or model.model_id} does not run on {hardware_type_id!r}: "
            f"{', '.join(sorted(model.hardware_configs))} are for it"
        )
    longest = config.max_context_length
    if context_length is None:
        return None if longest is None else min(_DEFAULT_CONTEXT, longest)
    if longest is not None and context_length > longest:
        raise InvalidArgumentError(
            f"context_length={context_length} is more than the {longest} tokens that "
            f"{model.hf_name or model.model_id} has on {hardware_type_id}"
        )
    return context_length


def _path(name: str, value: AnyPath) -> Path:
    try:
        path = Path(value)
        if "\0" in str(path):
            raise ValueError  # noqa: TRY301  (as the system does, but sooner)
        # The file itself: a link would be replaced when the output is written anew.
        return path.resolve() if path.is_symlink() else path
    except TypeError:
        raise InvalidArgumentError(f"{name} must be a path, not {type(value).__name__}") from None
    except (OSError, RuntimeError):
        # What is wrong is told when it is opened. The second is Python's for links in a circle, before 3.13.
        return Path(value)
    except ValueError:
        # A null character.
        raise InvalidArgumentError(f"{name} must be a path of a file, not {value!r}") from None


# Everything that the public names come from is loaded now.
publish_loaded()
