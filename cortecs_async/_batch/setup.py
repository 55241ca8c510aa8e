"""Check the arguments of `client.run_batch` and `client.plan_batch`, and create what they need.

`new_batch` creates the `Batch`, whose `run` does the work. `plan` adds the model, hardware, and price to the
contents of the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from attrs import evolve

from .._aio.threads import run_stoppable
from .._api.catalog import Model
from .._api.domain import InstanceArgs
from .._api.matching import with_defaults
from .._api.resources import HardwareTypes, Models, User
from .._api.unknown_names import too_long_message, wrong_hardware_message
from .._config import Settings
from .._durations import Duration, check_seconds
from .._errors import BatchFileError, InvalidArgumentError
from .._http.connections import HTTPClient
from .._lease.hardware import choose_hardware
from .._lease.lease import InstanceLease
from .._lease.options import LeaseOptions
from .._lease.pricing import read_price
from .._public import publish_loaded
from .._secrets import Hidden, Secret
from .plan import BatchOptions, BatchPlan, measure_left, run_preflight
from .reader import STANDARD_INPUT
from .run import Batch
from .sender import BatchTransport, SenderConfig, choose_transport


def new_batch(
    options: BatchOptions,
    lease: LeaseOptions,
    new_lease: Callable[[LeaseOptions], InstanceLease],
    *,
    settings: Settings,
    http_client: HTTPClient | None,
    key: Hidden[str | Secret | None],
    transport: BatchTransport,
    request_timeout: Duration,
) -> Batch:
    """Return a batch whose leases share the `max_cost` of `lease`."""
    timeout = check_seconds("request_timeout", request_timeout)
    found = settings.sources.inference_key(key)
    if lease.max_cost is not None:
        lease = evolve(lease, max_cost=lease.max_cost / options.instances)
    sender_config = SenderConfig(
        settings=settings,
        transport=choose_transport(transport, http_client),
        http_client=http_client,
        key=found.value,
        key_origin=found.origin,
        timeout=timeout,
    )
    return Batch(options, sender_config, lambda: new_lease(lease))


async def plan(
    options: BatchOptions, lease: LeaseOptions, models: Models, hardware_types: HardwareTypes, user: User
) -> BatchPlan:
    """Return the plan of a batch: the contents of the files, the hardware, the price, and the balance."""
    with closing(await run_preflight(options, None)) as preflight:
        left = await run_stoppable(lambda stopped: measure_left(preflight, stopped))
    model = await models.get(lease.args.model_id)
    args = with_defaults(lease.args, model)
    if not lease.hardware:
        _check_context_length(model, args)
    types = {each.hardware_type_id: each for each in await hardware_types.list()}
    available = {each.hardware_type_id for each in await hardware_types.list_available()}
    reason = ""
    if lease.selects_hardware:
        prices = {name: read_price(each) for name, each in types.items()}
        selection = choose_hardware(lease, model, prices.get)
        selection.begin_round(available)
        args = with_defaults(selection.in_order()[0], model)
        reason = selection.reason(args.hardware_type_id)
    hardware_type_id = args.hardware_type_id
    hardware = types.get(hardware_type_id or "")
    price = hardware.price_per_minute if hardware is not None else None
    balance = await user.balance()
    instances = min(options.instances, max(preflight.plan.left, 1))
    return evolve(
        preflight.plan,
        context_length=args.context_length,
        max_completion_tokens=preflight.sizes.max_completion_tokens(args.context_length),
        left_completion_tokens=left.max_completion_tokens(args.context_length),
        model=args.hf_name,
        hardware_type_id=hardware_type_id,
        hardware_reason=reason,
        is_available=hardware_type_id in available if hardware_type_id else None,
        instances=instances,
        num_workers=args.num_workers,
        price_per_minute=None if price is None else price * args.num_workers * instances,
        currency=hardware.currency if hardware is not None else "",
        balance=balance.current_balance,
        balance_currency=balance.currency,
    )


def _check_context_length(model: Model, args: InstanceArgs) -> None:
    """Check that the model runs on this hardware with this context length."""
    name = model.hf_name or model.model_id
    config = model.hardware_configs.get(args.hardware_type_id or "")
    if config is None:
        if args.hardware_type_id is None or not model.hardware_configs:
            return
        raise InvalidArgumentError(
            wrong_hardware_message(name, args.hardware_type_id, model.hardware_configs)
        )
    longest = config.max_context_length
    if args.context_length is not None and longest is not None and args.context_length > longest:
        raise InvalidArgumentError(
            too_long_message(args.context_length, name, longest, str(args.hardware_type_id))
        )


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return the path from the argument `name`."""
    if value in ("-", Path("-")):
        return _dash_path(name)
    try:
        path = Path(value)
        if "\0" in str(path):
            raise ValueError  # noqa: TRY301  (as the system does, but later)
        return path  # noqa: TRY300
    except TypeError:
        raise InvalidArgumentError(f"{name} must be a path, not {type(value).__name__}") from None
    except ValueError:
        raise InvalidArgumentError(f"{name} must be a path without null characters, not {value!r}") from None


def _dash_path(name: str) -> Path:
    if name == "input":
        return STANDARD_INPUT
    raise BatchFileError(
        "the answers cannot go to standard output, because an interrupted batch continues from its output. "
        "Pass a file path.",
        path="-",
    )


# The modules of all public names are loaded now.
publish_loaded()
