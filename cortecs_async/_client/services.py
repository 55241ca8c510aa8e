"""The services of a client's leases. Imported for the first lease."""

from __future__ import annotations

from .._api.instances import Instances
from .._api.resources import HardwareTypes, Models
from .._api.unknown_names import UnknownNames
from .._config import Settings
from .._http.client import HTTP
from .._http.connections import HTTPClient
from .._lease.capacity import CapacityQueue
from .._lease.pricing import Prices
from .._lease.starter import Starter
from .._lease.state import LeaseServices
from .._public import publish_loaded
from .._recovery.promises import Promises
from .._telemetry import Observer


def lease_services(
    settings: Settings,
    http: HTTP,
    promises: Promises,
    observer: Observer,
    names: UnknownNames,
    *,
    instances: Instances,
    releasing: Instances,
    http_client: HTTPClient | None,
    allow_insecure_http: bool,
) -> LeaseServices:
    """Return the services of a client with these parts."""
    models = Models(http.request_for_lease, instances.reader)
    hardware_types = HardwareTypes(http.request_for_lease, instances.reader)
    return LeaseServices(
        http=http,
        instances=instances,
        releasing=releasing,
        poll=settings.poll,
        promises=promises,
        starter=Starter(
            instances=instances, models=models, promises=promises, settings=settings, observer=observer
        ),
        prices=Prices(hardware_types, models),
        capacity=CapacityQueue(hardware_types, http.check_open),
        observer=observer,
        names=names,
        allow_insecure_http=allow_insecure_http,
        sources=settings.sources,
        http_client=http_client,
    )


# Includes the classes of `_lease/lease.py`, which `wiring.py` imports before this module.
publish_loaded()
