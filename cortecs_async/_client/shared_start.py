"""Start the owner process of a shared instance.

The owner gets the arguments of `client.shared` and the client's settings as one line on its standard input,
because they contain secrets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from attrs import asdict

from .._errors import ConfigurationError
from .._lease.options import LeaseOptions
from .._public import publish_loaded
from .._recovery.accounts import fingerprint
from .._secrets import Hidden
from .._sharing import lines
from .._sharing.connector import HEARTBEAT, OwnerConnector
from .._sharing.lease import SharedLease, SharedOptions
from .._sharing.listing import check_name, check_system, list_shared, place_of, release_shared
from .._sharing.membership import Membership
from .._sharing.owner_log import EventLog
from .._sharing.protocol import Hello
from .._version import __version__

if TYPE_CHECKING:
    from .._sharing.info import SharedInfo
    from .._sharing.meeting_point import MeetingPoint
    from .wiring import Wiring

# The module whose `main` the owner process runs.
_OWNER = "cortecs_async._client.shared_owner"

# Seconds to wait for an owner that answers, in addition to the teardown timeout of the one before.
_ANSWER_TIMEOUT = 330.0


def new_shared_lease(
    wiring: Wiring, name: str, options: LeaseOptions, *, linger: float, project: str | None
) -> SharedLease:
    """Return the block of one process.

    Args:
        wiring: The parts of the client.
        name: The name of the shared instance.
        options: The checked arguments of the lease.
        linger: Seconds to keep the instance after the last process leaves.
        project: The argument. `options` has the default from the environment.
    """
    check_name(name)
    check_system()
    wiring.check_start(options)
    place = _place(wiring, name)
    spec = {**_spec(options), "linger": linger, "project": project}

    async def job() -> Hidden[bytes]:
        return await _job(wiring, name, options, spec)

    def new_membership(on_end: Any) -> Membership:
        connector = OwnerConnector(place, os.fspath(place.address), _OWNER, EventLog(), job)
        connector.check()
        return Membership(
            connector,
            Hello(wish="hold", version=__version__, pid=os.getpid(), spec=spec),
            name=name,
            heartbeat=HEARTBEAT,
            answer_timeout=_ANSWER_TIMEOUT + options.teardown_timeout,
            idle_timeout=options.idle_timeout,
            on_end=on_end,
        )

    return SharedLease(
        SharedOptions(
            name=name,
            linger=linger,
            teardown_timeout=options.teardown_timeout,
            on_loss=options.on_loss,
            on_progress=options.on_progress,
            sources=wiring.settings.sources,
            loop=wiring.http.loop,
            check_open=wiring.http.check_open,
            new_membership=new_membership,
        )
    )


async def list_of(wiring: Wiring) -> tuple[SharedInfo, ...]:
    """Return the shared instances of the client's account, or of all accounts without credentials."""
    return await list_shared(wiring.state_dir, _account(wiring))


async def release(wiring: Wiring, name: str, *, force: bool, teardown_timeout: float) -> SharedInfo | None:
    """Release a shared instance of the client's account."""
    check_name(name)
    check_system()
    return await release_shared(_place(wiring, name), force=force, teardown_timeout=teardown_timeout)


def _place(wiring: Wiring, name: str) -> MeetingPoint:
    account = _account(wiring)
    if account is None:
        raise ConfigurationError(
            "A shared instance needs a client with client_id and client_secret or a profile, because another "
            "process uses the credentials"
        )
    if wiring.http_client is not None:
        raise ConfigurationError(
            "A shared instance cannot use your http_client, because another process sends the requests. "
            "Create the client without it; proxies and certificates can be set in the environment."
        )
    return place_of(wiring.state_dir, account, name)


def _account(wiring: Wiring) -> str | None:
    """Return the fingerprint of the client's account, or None if it has none that is known."""
    credentials = wiring.settings.sources.credentials
    if credentials is None or not credentials.client_id or wiring.settings.sources.is_anonymous:
        return None
    return fingerprint(wiring.settings.api_base_url, credentials.client_id)


def _spec(options: LeaseOptions) -> dict[str, Any]:
    """Return the arguments that must be the same in all processes, with one spelling for each value."""
    args = options.args
    return {
        "model_id": args.hf_name,
        "hardware_type_id": [*options.hardware] or args.hardware_type_id,
        "context_length": args.context_length,
        "num_workers": args.num_workers,
        "billing_interval": args.billing_interval,
        "start_timeout": options.start_timeout,
        "teardown_timeout": options.teardown_timeout,
        "max_lifetime": options.max_lifetime,
        "max_cost": options.max_cost,
        "max_price_per_hour": options.max_price_per_hour,
        "capacity_timeout": options.capacity_timeout,
        "ready": options.ready,
        "idle_timeout": options.idle_timeout,
    }


async def _job(wiring: Wiring, name: str, options: LeaseOptions, spec: dict[str, Any]) -> Hidden[bytes]:
    settings = wiring.settings
    credentials = Hidden(await settings.credential_provider())
    key = "" if settings.sources.inference_key_problem() else _key(wiring)
    return Hidden(
        lines.encode(
            {
                "name": name,
                "spec": spec,
                "project": options.project,
                "version": __version__,
                "heartbeat": HEARTBEAT,
                "inference_key": key,
                "client": {
                    "client_id": credentials.reveal().client_id,
                    "client_secret": credentials.reveal().client_secret.reveal(),
                    "api_base_url": settings.api_base_url,
                    "timeout": settings.timeout,
                    "retry_policy": asdict(settings.retry),
                    "poll_policy": asdict(settings.poll),
                    "default_headers": dict(settings.headers),
                    "max_connections": settings.max_connections,
                    "transport": settings.transport,
                    "tag_starts": settings.tag_starts,
                    "allow_insecure_http": wiring.allow_insecure_http,
                    "journal": wiring.journal,
                    "state_dir": os.fspath(wiring.state_dir),
                },
            }
        )
    )


def _key(wiring: Wiring) -> str:
    return wiring.settings.sources.inference_key(Hidden(None)).value.reveal()


publish_loaded()
