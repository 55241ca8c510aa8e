"""`client.diagnose`: check credentials, inference API key, service, token, clock, journal, and reaper."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import anyio
from attrs import define, field, frozen

from .._config import Settings
from .._credentials import CREDENTIALS_HINT, uses_inference
from .._display import Row
from .._errors import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    CortecsError,
    GuardError,
    MissingCredentialsError,
    PermissionDeniedError,
    RequestError,
)
from .._http.messages import Call, Reply
from .._platform import NO_LOCKS, NO_REAPER
from .._public import publish_loaded
from .._recovery.dead_journals import has_work
from .._recovery.journal import JournalFile, is_owned, owner_record, read_journals, try_lock
from .._recovery.promises import Promises
from .._secrets import credentials_problem

if TYPE_CHECKING:
    from .._http.client import HTTP  # imports httpx, which `cortecs_async.types` must not

# Seconds for each check.
_CHECK_TIMEOUT = 20.0

_NO_LEASES = "Leases and batches need the journal and the reaper. Run them in WSL."

# Seconds by which the clocks may differ.
_MAX_CLOCK_DIFFERENCE = 60.0


@frozen(kw_only=True)
class Finding(Row):
    """The result of one check by `diagnose`.

    Attributes:
        name: `credentials`, `inference key`, `service`, `token`, `clock`, `journal`, or `reaper`.
        ok: Whether the check passed.
        detail: The result of the check.
        hint: The suggested action, or an empty string if there is nothing to do.

    Example:
        problems = [finding for finding in await client.diagnose() if not finding.ok]
        for finding in problems:
            print(f"{finding.name}: {finding.detail}. {finding.hint}")
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        state = "ok" if self.ok else "PROBLEM"
        return f"{self.name}: {state}, {self.detail}" + (f" ({self.hint})" if self.hint else "")

    def _columns(self) -> Mapping[str, object]:
        state = "ok" if self.ok else "PROBLEM"
        return {"check": self.name, "result": state, "found": self.detail, "to do": self.hint}


async def diagnose(settings: Settings, http: HTTP, promises: Promises) -> tuple[Finding, ...]:
    """Run one check after the other, each with a time limit. Nothing billable is started."""
    run = _Checks(settings=settings, http=http, promises=promises)
    findings: list[Finding] = []
    checks = (run.credentials, run.inference_key, run.service, run.token, run.clock, run.journal, run.reaper)
    for check in checks:
        with anyio.move_on_after(_CHECK_TIMEOUT) as scope:
            findings.append(await check())
        if scope.cancelled_caught:
            detail = f"timed out after {_CHECK_TIMEOUT:g} s"
            findings.append(Finding(name=check.__name__.replace("_", " "), ok=False, detail=detail))
    return tuple(findings)


@define(kw_only=True)
class _Checks:
    settings: Settings
    http: HTTP
    promises: Promises
    has_credentials: bool = False
    is_reached: bool = False
    replies: list[tuple[float, Reply]] = field(factory=list)

    async def credentials(self) -> Finding:
        if self.settings.sources.is_anonymous:
            return Finding(name="credentials", ok=True, detail="none (anonymous=True)")
        try:
            problem = credentials_problem(await self.settings.credential_provider())
        except MissingCredentialsError as error:
            found = self.settings.sources
            where = f" in {found.profile}" if found.profile else ""
            names = " and ".join(
                each if found.profile else f"CORTECS_{each.upper()}" for each in error.missing
            )
            is_started = found.profile is not None or len(error.missing) == 1
            hint = str(error) if is_started else CREDENTIALS_HINT
            return Finding(name="credentials", ok=False, detail=f"missing: {names}{where}", hint=hint)
        except ConfigurationError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  (the user's own provider may raise anything)
            # Without the error's message, which may contain the secret.
            problem = f"credential_provider raised {type(error).__name__}"
        self.has_credentials = problem is None
        if problem is None:
            detail = f"found a client id and a client secret from {self.settings.sources.origin}"
            return Finding(name="credentials", ok=True, detail=detail)
        return Finding(name="credentials", ok=False, detail=problem, hint=CREDENTIALS_HINT)

    async def inference_key(self) -> Finding:
        sources, name = self.settings.sources, "inference key"
        if not (problem := sources.inference_key_problem()):
            return Finding(name=name, ok=True, detail=f"found in {sources.inference_key_origin()}")
        is_needed = uses_inference() and not sources.is_anonymous
        if not sources.inference_key_origin() and not is_needed:
            return Finding(name=name, ok=True, detail="not set (needed for cortecs-async run and batch)")
        hint = "Without it, requests to your instance fail while you pay for it."
        return Finding(name=name, ok=False, detail=problem, hint=hint)

    async def service(self) -> Finding:
        base = self.settings.api_base_url
        error = await self._ask("/hardware-types/", authenticated=False)
        if error is None or _is_from_service(error):
            self.is_reached = True
            source = self.settings.sources.url_origin(base)
            detail = f"{base} responds{f' (the base URL is from {source})' if source else ''}"
            return Finding(name="service", ok=True, detail=detail)
        place = self.settings.sources.url_place(base)
        hint = f"Check the network, {place}, and HTTPS_PROXY if you use a proxy."
        if isinstance(error, APIStatusError) and error.status_code >= 500:
            hint = "The service has a problem. Try again later."
        return Finding(name="service", ok=False, detail=str(error), hint=hint)

    async def token(self) -> Finding:
        if not self.has_credentials:
            is_ok = self.settings.sources.is_anonymous
            return Finding(name="token", ok=is_ok, detail="not tried: there are no credentials")
        if not self.is_reached:
            # The request would be retried until the check times out.
            return Finding(name="token", ok=False, detail="not tried: the service cannot be reached")
        error = await self._ask("/user/balance", authenticated=True)
        if error is None:
            return Finding(name="token", ok=True, detail="the service accepts the credentials")
        hint = ""
        if isinstance(error, (AuthenticationError, PermissionDeniedError)):
            hint = (
                "The provisioning API needs a client id and secret. Your inference API key (OPENAI_API_KEY) "
                "does not work for it."
            )
        return Finding(name="token", ok=False, detail=str(error), hint=hint)

    async def clock(self) -> Finding:
        differences = [ahead for at, reply in self.replies if (ahead := _ahead(at, reply)) is not None]
        if not differences:
            reason = "the service does not send a valid Date header"
            if not self.replies:
                reason = "no request succeeded" if self.is_reached else "the service cannot be reached"
            return Finding(name="clock", ok=True, detail=f"not checked: {reason}")
        # The last response comes from the token check, which proxies do not cache.
        ahead = differences[-1]
        if abs(ahead) <= _MAX_CLOCK_DIFFERENCE:
            return Finding(name="clock", ok=True, detail="in sync with the service")
        where = "ahead of" if ahead > 0 else "behind"
        return Finding(
            name="clock",
            ok=False,
            detail=f"this machine is {abs(ahead):.0f} s {where} the service",
            hint="Synchronize the clock (NTP). Journals and the expiry of acquired instances depend on it.",
        )

    async def journal(self) -> Finding:
        if sys.platform == "win32":
            return Finding(name="journal", ok=False, detail=NO_LOCKS, hint=_NO_LEASES)
        if not self.promises.uses_journal:
            return Finding(name="journal", ok=True, detail='disabled (journal="off")')
        return await self.promises.system.off_loop(self._journal)

    async def reaper(self) -> Finding:
        if sys.platform == "win32":
            return Finding(name="reaper", ok=False, detail=NO_REAPER, hint=_NO_LEASES)
        if not self.promises.uses_reaper:
            return Finding(name="reaper", ok=True, detail='disabled (guard="off")')
        try:
            detail = await self.promises.check_reaper()
        except GuardError as error:
            hint = "Without it, the instances of a killed process run until you run `cortecs-async sweep`."
            return Finding(name="reaper", ok=False, detail=str(error), hint=hint)
        return Finding(name="reaper", ok=True, detail=detail)

    def _journal(self) -> Finding:
        directory = self.promises.store.directory
        hint = "Set state_dir= or CORTECS_STATE_DIR to a directory of your own that supports flock."
        try:
            # Locked, so that a sweep leaves it alone.
            file = JournalFile.create(directory, [owner_record(self.promises.system.wall_clock())])
        except OSError as error:
            detail = f"{directory} cannot be written: {error}"
            return Finding(name="journal", ok=False, detail=detail, hint=hint)
        try:
            second = try_lock(file.path)
        finally:
            file.remove()
        if second is not None:
            second.close()
            detail = f"{directory} has no working file locks: the same file was locked twice"
            return Finding(name="journal", ok=False, detail=detail, hint=hint)
        now = self.promises.system.wall_clock()
        dead = busy = 0
        for path, state in read_journals(directory):
            is_living = is_owned(path) if state.promises else None
            dead += is_living is False
            busy += is_living is True and has_work(state, now)
        detail = f"{directory} can be written and locked"
        if not dead and not busy:
            return Finding(name="journal", ok=True, detail=detail)
        detail += f"; {dead} journal(s) of dead processes" if dead else ""
        detail += f"; {busy} journal(s) that a reaper is still working on" if busy else ""
        return Finding(
            name="journal",
            ok=True,
            detail=detail,
            hint="To see what is left, run `cortecs-async orphans`. To release it, run "
            "`cortecs-async sweep`. `cortecs-async sweep --force` also releases what a reaper is working on.",
        )

    async def _ask(self, path: str, *, authenticated: bool) -> CortecsError | None:
        """Send a request once and keep the response; return the error, if any."""
        try:
            reply = await self.http.request(
                Call(method="GET", path=path, authenticated=authenticated, retried=False)
            )
        except (RequestError, ConfigurationError) as error:
            return error
        self.replies.append((self.promises.system.wall_clock(), reply))
        return None


def _is_from_service(error: CortecsError) -> bool:
    """Return whether this error was sent by the service, not by a proxy or a different site."""
    return isinstance(error, APIStatusError) and error.status_code in {401, 403, 429}


def _ahead(at: float, reply: Reply) -> float | None:
    """Return the number of seconds the local clock is ahead of the `Date` in a reply received at `at`."""
    try:
        date = parsedate_to_datetime(reply.headers["date"])
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return at - date.timestamp() - float(reply.headers.get("age", 0))
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


publish_loaded()
