"""The reaper's accounts: the data it needs to send a client's requests after the client's death.

The parent describes an account to its reaper once it has the credentials. The description includes the
client's proxies and certificates, because the parent may later change its environment or its working
directory, and the reaper must still use the same ones.
"""

from __future__ import annotations

import hashlib
import json

from .._config import RetryPolicy, Settings
from .._environment import Environment
from .._secrets import Credentials, Secret
from .records import Record

# Seconds for one request from the reaper.
_MAX_REQUEST_TIMEOUT = 30.0


def fingerprint(api_base_url: str, client_id: str) -> str:
    """Return a name for an account that does not reveal anything about it."""
    return hashlib.sha256(f"{api_base_url}\n{client_id}".encode()).hexdigest()[:16]


def describe(settings: Settings, credentials: Credentials) -> Secret:
    """Return the description of an account for the reaper, as JSON."""
    return Secret(
        json.dumps(
            {
                "api_base_url": settings.api_base_url,
                "client_id": credentials.client_id,
                "client_secret": credentials.client_secret.reveal(),
                "headers": dict(settings.headers),
                "timeout": settings.timeout,
                "environment": settings.environment.to_data(),
            }
        )
    )


def with_network_of(sealed: Secret, proven: Secret) -> Secret:
    """Return a description with the credentials of `sealed`, and everything else from `proven`."""
    credentials = {name: json.loads(sealed.reveal())[name] for name in ("client_id", "client_secret")}
    return Secret(json.dumps({**json.loads(proven.reveal()), **credentials}))


def has_network_of(sealed: Secret, another: Secret) -> bool:
    """Return whether two descriptions have the same proxies and certificates."""
    environment, other = (json.loads(each.reveal())["environment"] for each in (sealed, another))
    return bool(environment == other)


def settings_of(account: Record) -> Settings:
    """Return the settings and credentials in the description of an account."""
    credentials = Credentials(client_id=account["client_id"], client_secret=Secret(account["client_secret"]))

    async def provide() -> Credentials:
        return credentials

    return Settings(
        api_base_url=account["api_base_url"],
        credential_provider=provide,
        timeout=min(float(account["timeout"]), _MAX_REQUEST_TIMEOUT),
        retry=RetryPolicy(),
        headers=account["headers"],
        environment=Environment.from_data(account["environment"]),
    )
