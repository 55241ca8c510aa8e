"""Whether everything that a lease relies on is there: credentials, the service, the journal, the reaper."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import anyio
from attrs import define, field, frozen

from .._config import Settings
from .._errors import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    CortecsError,
    GuardError,
    PermissionDeniedError,
    RequestError,
)
from .._http.messages import Call, Reply
from .._recovery.journal import JournalFile, is_owned, read_journals, try_lock
from .._recovery.promises import Promises
from .._recovery.store import check_reaper
from .._secrets import credentials_problem

if TYPE_CHECKING:
    from .._http.client import HTTP  # which would bring httpx along, to whoever imports a Finding

# Seconds for each of the checks.
_CHECK_TIMEOUT = 20.0

# Seconds that clocks may be apart.
_APART = 60.0


@frozen(kw_only=True)
class Finding:
    """What one check of `diagnose` has found.

    Attributes:
        name: `credentials`, `service`, `token`, `clock`, `journal` or `reaper`.
        ok: Whether it is as it should be.
        detail: What was found.
        hint: What to do about it; empty where there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""


async def diagnose(settings: Settings, http: HTTP, promises: Promises) -> tuple[Finding, ...]:
    """Checks one after the other, each in bounded time. Starts nothing that is billed.

    Args:
        settings: The client's.
        http: Where requests go.
        keeper: For the journal and the reaper.
    """
    doctor = _Doctor(settings=settings, http=http, promises=promises)
    checks: dict[str, Callable[[], Awaitable[Finding]]] = {
        "credentials": doctor.credentials,
        "service": doctor.service,
        "token": doctor.token,
        "clock": doctor.clock,
        "journal": doctor.journal,
        "reaper": doctor.reaper,
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        with anyio.move_on_after(_CHECK_TIMEOUT) as scope:
            findings.append(await check())
        if scope.cancelled_caught:
            findings.append(
                Finding(name=name, ok=False, detail=f"nothing came of it within {_CHECK_TIMEOUT:g} s")
            )
    return tuple(findings)


@define(kw_only=True)
class _Doctor:
    settings: Settings
    http: HTTP
    promises: Promises
    has_credentials: bool = False
    is_reached: bool = False
    replies: list[tuple[float, Reply]] = field(factory=list)

    async def credentials(self) -> Finding:
        try:
            problem = credentials_problem(await self.settings.credential_provider())
        except ConfigurationError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  (the user's own provider may raise anything)
            # Not what it says: that may show the secret.
            problem = f"credential_provider raised {type(error).__name__}"
        self.has_credentials = problem is None
        if problem is None:
            return Finding(name="credentials", ok=True, detail="a client id and a client secret are there")
        return Finding(
            name="credentials",
            ok=False,
            detail=problem,
            hint="They are made on the account's page on cortecs.ai.",
        )

    async def service(self) -> Finding:
        base = self.settings.api_base_url
        error = await self._ask("/hardware-types/", authenticated=False)
        if error is None or _has_spoken(error):
            self.is_reached = True
            return Finding(name="service", ok=True, detail=f"{base} answers")
        hint = "CORTECS_API_BASE_URL says where the service is, HTTPS_PROXY which proxy leads there."
        if isinstance(error, APIStatusError) and error.status_code >= 500:
            hint = "The service fails; try again later."
        return Finding(name="service", ok=False, detail=f"{base}: {error}", hint=hint)

    async def token(self) -> Finding:
        if not self.has_credentials:
            return Finding(name="token", ok=False, detail="not tried: there are no credentials")
        if not self.is_reached:
            # It would be repeated until the time is up, and say the same.
            return Finding(name="token", ok=False, detail="not tried: the service cannot be reached")
        error = await self._ask("/user/balance", authenticated=True)
        if error is None:
            return Finding(name="token", ok=True, detail="the service accepts the credentials")
        hint = ""
        if isinstance(error, (AuthenticationError, PermissionDeniedError)):
            hint = (
                "The provisioning API has credentials of its own: the key for inference (OPENAI_API_KEY) is "
                "another one."
            )
        return Finding(name="token", ok=False, detail=str(error), hint=hint)

    async def clock(self) -> Finding:
        apart = [ahead for at, reply in self.replies if (ahead := _ahead(at, reply)) is not None]
        if not apart:
            return Finding(name="clock", ok=True, detail="not compared: the service does not tell the time")
        # The last is that of the token's answer, which nothing on the way keeps for later.
        ahead = apart[-1]
        if abs(ahead) <= _APART:
            return Finding(name="clock", ok=True, detail="agrees with the service's")
        where = "ahead of" if ahead > 0 else "behind"
        return Finding(
            name="clock",
            ok=False,
            detail=f"this machine's is {abs(ahead):.0f} s {where} the service's",
            hint="Set it (NTP): journals are dated by it, and so is when an acquired instance's time is up.",
        )

    async def journal(self) -> Finding:
        if not self.promises.uses_journal:
            return Finding(name="journal", ok=True, detail='switched off: journal="off"')
        return await self.promises.system.off_loop(self._journal)

    async def reaper(self) -> Finding:
        if not self.promises.uses_reaper:
            return Finding(name="reaper", ok=True, detail='switched off: guard="off"')
        try:
            await self.promises.system.off_loop(check_reaper)
        except GuardError as error:
            return Finding(
                name="reaper",
                ok=False,
                detail=str(error),
                hint="Without it, instances of a process that is killed run on until `sweep`.",
            )
        return Finding(name="reaper", ok=True, detail="starts and answers")

    def _journal(self) -> Finding:
        directory = self.promises.store.directory
        hint = "state_dir= or CORTECS_STATE_DIR puts it elsewhere: on a disk that is writable and has flock."
        try:
            # Locked and without a promise: nobody who reads it has anything to do with it.
            file = JournalFile.create(directory, [])
        except OSError as error:
            detail = f"{directory} cannot be written: {error}"
            return Finding(name="journal", ok=False, detail=detail, hint=hint)
        try:
            second = try_lock(file.path)
        finally:
            file.remove()
        if second is not None:
            second.close()
            detail = f"{directory} has no working file locks: a second one was granted"
            return Finding(name="journal", ok=False, detail=detail, hint=hint)
        dead = sum(1 for path, book in read_journals(directory) if book.promises and is_owned(path) is False)
        if not dead:
            return Finding(name="journal", ok=True, detail=f"{directory} can be written and locked")
        return Finding(
            name="journal",
            ok=True,
            detail=f"{directory} can be written and locked; {dead} of processes that died",
            hint="`cortecs-async orphans` shows what they left, `cortecs-async sweep` releases it.",
        )

    async def _ask(self, path: str, *, authenticated: bool) -> CortecsError | None:
        """Asks once, and keeps the answer; returns what went wrong."""
        try:
            reply = await self.http.request(
                Call(method="GET", path=path, authenticated=authenticated, retried=False)
            )
        except (RequestError, ConfigurationError) as error:
            return error
        self.replies.append((self.promises.system.wall_clock(), reply))
        return None


def _has_spoken(error: CortecsError) -> bool:
    """Whether it was the service that refused, and not something in its place."""
    return isinstance(error, APIStatusError) and error.status_code in {401, 403, 429}


def _ahead(at: float, reply: Reply) -> float | None:
    """How many seconds the local clock is ahead, by the `Date` of an answer that came at `at`."""
    try:
        told = parsedate_to_datetime(reply.headers["date"])
        # A time zone that is not named is UTC.
        told = told if told.tzinfo is not None else told.replace(tzinfo=UTC)
        return at - told.timestamp() - float(reply.headers.get("age", 0))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
