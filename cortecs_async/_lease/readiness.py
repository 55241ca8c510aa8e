"""Wait until the endpoint of a running instance answers (`ready="models"` and `ready="answer"`).

One background task sends the requests, and another one watches the instance. The lease's own code only waits,
so that a closed coroutine leaves no request behind.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Awaitable, Mapping

import anyio
from attrs import define, evolve, field, frozen

from .._aio.background import BackgroundTask
from .._aio.eventloop import loop_clock
from .._aio.synchronization import Broadcast
from .._api.domain import Instance, Progress
from .._api.intervals import poll_interval
from .._api.waiting import ProgressCallback, report_progress
from .._credentials import FoundKey
from .._errors import (
    ConfigurationError,
    InstanceGoneError,
    LeaseExpiredError,
    LifecycleError,
    StartFailedError,
    StartTimeoutError,
)
from .._http.endpoint import EndpointClient, EndpointReply
from .._http.messages import Failure, FailureKind
from .._logging import Event, log
from .inference import ENDPOINTS, find_problem, is_refusal
from .loss import until_lost
from .options import Ready
from .state import LeaseState

# Seconds for the first attempt, doubled after each one that times out, and their maximum: the first answer of
# a model can take long.
_FIRST_TIMEOUT = 3.0
_MAX_TIMEOUT = 300.0

# Maximum seconds for which one `Retry-After` is honored.
_MAX_RETRY_AFTER = 120.0

# The statuses with which a server rejects one kind of request, such as a chat with an embedding model.
_REFUSALS = frozenset({400, 404, 405, 422, 501})

_MODELS = "/models"
_PATHS: Mapping[Ready, tuple[str, ...]] = {
    "models": (_MODELS,),
    # Each is tried if the server refuses the one before.
    "answer": ("/chat/completions", "/embeddings", _MODELS),
}


class Verdict(enum.Enum):
    """What a response says about the endpoint."""

    READY = enum.auto()
    NOT_READY = enum.auto()
    REFUSED = enum.auto()  # not this kind of request
    KEY_REJECTED = enum.auto()


@frozen
class Attempt:
    """The outcome of a request. `detail` is for messages."""

    verdict: Verdict
    detail: str = ""
    retry_after: float = 0.0
    timed_out: bool = False


def assess(outcome: EndpointReply | Failure, path: str) -> Attempt:
    """Decide what a response says about the endpoint.

    Only the JSON of the model server is evidence. While an instance starts, a proxy in front of it can send
    any status.
    """
    if isinstance(outcome, Failure):
        timed_out = outcome.kind is FailureKind.TIMED_OUT
        return Attempt(Verdict.NOT_READY, outcome.detail, timed_out=timed_out)
    status, detail = outcome.status, str(outcome)
    if 200 <= status < 300:
        problem = _problem(outcome.body, path)
        return Attempt(Verdict.NOT_READY, f"{detail}, but {problem}") if problem else Attempt(Verdict.READY)
    if status in {401, 403} and is_refusal(outcome.body):
        return Attempt(Verdict.KEY_REJECTED, detail)
    if status in _REFUSALS and is_refusal(outcome.body):
        return Attempt(Verdict.REFUSED, detail)
    return Attempt(Verdict.NOT_READY, detail, min(outcome.retry_after or 0.0, _MAX_RETRY_AFTER))


def _problem(body: bytes, path: str) -> str | None:
    """Return the reason a successful response's body is not an answer, or None."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        return "the body is not a JSON object"
    if path != _MODELS:
        return find_problem(data, (ENDPOINTS[path],))
    models = data.get("data")
    return None if isinstance(models, list) and models else "the response lists no models"


def until_ready(callback: ProgressCallback | None) -> ProgressCallback | None:
    """Return an `on_progress` for the wait before this one, after which the instance is not yet ready."""
    if callback is None:
        return None

    def report(progress: Progress) -> Awaitable[None] | None:
        return callback(evolve(progress, probe="") if progress.instance.is_usable else progress)

    return report


async def wait_until_ready(state: LeaseState) -> bool:
    """Wait until the endpoint answers, as the option `ready` defines it.

    Returns:
        Whether it is ready. If not, the service has returned a different `base_url`, which is yet to be
        checked.

    Raises:
        ConfigurationError: if the endpoint rejects the inference API key.
        StartTimeoutError: if it does not answer within `start_timeout`.
        LeaseExpiredError: if it does not answer before the lifetime ends.
        StartFailedError: if the instance stops.
        InstanceGoneError: if the instance disappears.
    """
    key = _find_key(state)
    if key is not None:
        services, base_url = state.services, state.base_url
        client = EndpointClient(services.starter.settings, services.http_client, base_url, key.value)
        if not await _Readiness(state, key.origin, client).wait():
            return False
    with anyio.CancelScope(deadline=_deadline(state)):
        await _report(state, None)
    return True


def _deadline(state: LeaseState) -> float:
    """Return the end of the wait, in seconds of `anyio.current_time`."""
    return state.on_loop(min(state.began + state.options.start_timeout, state.expires_at))


async def _report(state: LeaseState, probe: str | None) -> None:
    if (callback := state.options.on_progress) is not None:
        progress = Progress(instance=state.instance, elapsed=state.now() - state.began, probe=probe)
        await report_progress(callback, progress)


def _find_key(state: LeaseState) -> FoundKey | None:
    try:
        return state.services.sources.inference_key(state.options.inference_key)
    except ConfigurationError as error:
        if Event.LEASE_NOT_PROBED not in state.services.logged:
            state.services.logged.add(Event.LEASE_NOT_PROBED)
            log(Event.LEASE_NOT_PROBED, problem=str(error))
        return None


@define(eq=False)
class _Readiness:
    """The wait for one endpoint, and what its two background tasks have found out so far.

    Attributes:
        latest: The latest attempt.
        loss: How the instance was lost, if it was.
    """

    _state: LeaseState
    _key_origin: str
    _client: EndpointClient
    latest: Attempt = field(factory=lambda: Attempt(Verdict.NOT_READY, "no response"))
    loss: str = ""
    _attempts: int = 0
    _changed: Broadcast = field(factory=Broadcast)

    async def wait(self) -> bool:
        """Return True when the endpoint is ready, or False if there is a new `base_url`."""
        state = self._state
        tasks = [BackgroundTask(self._probe, self._changed.notify)]
        shown = ""  # reported when the instance was running
        try:
            while True:
                if self.latest.verdict is Verdict.KEY_REJECTED:
                    raise self._key_rejected()
                if self.loss:
                    raise self._lost()
                is_ready = self.latest.verdict is Verdict.READY
                is_expired = state.now() >= state.expires_at
                # Checked even when it is ready, because the machine may have been suspended meanwhile.
                if is_expired or (not is_ready and anyio.current_time() >= _deadline(state)):
                    raise self._timed_out(is_expired=is_expired)
                if is_ready:
                    return True
                if state.instance.base_url not in {None, "", state.base_url}:
                    return False
                with anyio.CancelScope(deadline=_deadline(state)):
                    if self._attempts and self.latest.detail != shown:
                        shown = self.latest.detail
                        await _report(state, shown)
                        continue
                    if self._attempts and len(tasks) == 1:
                        # Only now: an endpoint that answers at once costs no request to the service.
                        tasks.append(BackgroundTask(self._watch))
                    await self._changed.wait()
        finally:
            for each in tasks:
                each.stop()

    async def _watch(self) -> None:
        state = self._state
        self.loss = await until_lost(state, state.instance, self._update)
        self._changed.notify()

    def _update(self, instance: Instance) -> None:
        self._state.newest = instance
        self._changed.notify()

    async def _probe(self) -> None:
        """Send requests until the endpoint answers one or rejects the key."""
        state, policy, now = self._state, self._state.services.poll, loop_clock()
        began, timeout = now(), _FIRST_TIMEOUT
        try:
            while True:
                attempt = await self._try_each(timeout)
                is_news = attempt.detail != self.latest.detail
                self._attempts, self.latest = self._attempts + 1, attempt
                self._changed.notify()
                if attempt.verdict in {Verdict.READY, Verdict.KEY_REJECTED}:
                    return
                if is_news:
                    log(Event.LEASE_NOT_READY, instance_id=state.instance.instance_id, reason=attempt.detail)
                if attempt.timed_out:
                    timeout = min(2 * timeout, _MAX_TIMEOUT)
                await anyio.sleep(max(poll_interval(now() - began, policy), attempt.retry_after))
        finally:
            with anyio.CancelScope(shield=True):
                await self._client.aclose()

    async def _try_each(self, timeout: float) -> Attempt:
        """Send a request. If the server refuses this kind of request, send the next kind."""
        path, *others = _PATHS[self._state.options.ready]
        first = attempt = await self._try(path, timeout)
        for path in others:
            if attempt.verdict is not Verdict.REFUSED:
                break
            attempt = await self._try(path, timeout)
            if attempt.verdict is Verdict.READY and path == _MODELS:
                instance_id = self._state.instance.instance_id
                log(Event.LEASE_READY_UNANSWERED, instance_id=instance_id, reason=first.detail)
        return attempt

    async def _try(self, path: str, timeout: float) -> Attempt:
        method, body = "GET", None
        if path != _MODELS:
            model = self._state.instance.instance_args.hf_name
            method, body = "POST", {"model": model, **ENDPOINTS[path].probe}
        attempt = assess(await self._client.send(method, path, body, timeout), path)
        # A successful response can quote the key in an error, too.
        return evolve(attempt, detail=self._client.excerpt(attempt.detail))

    def _key_rejected(self) -> ConfigurationError:
        key = f"inference API key from {self._key_origin}" if self._key_origin else "inference API key"
        return ConfigurationError(
            f"The endpoint of instance {self._state.instance.instance_id} rejected the {key} "
            f"({self.latest.detail}). Create a key on cortecs.ai. The client secret is not an inference API "
            "key."
        )

    def _lost(self) -> LifecycleError:
        instance_id = self._state.instance.instance_id
        error = InstanceGoneError if self.loss == "disappeared" else StartFailedError
        return error(
            f"Instance {instance_id} {self.loss} before its endpoint answered", instance_id=instance_id
        )

    def _timed_out(self, *, is_expired: bool) -> LifecycleError:
        state, instance_id = self._state, self._state.instance.instance_id
        last = f"The last result was: {self.latest.detail.rstrip('.')}. "
        if is_expired:
            limit = state.limit.partition("=")[0]
            return LeaseExpiredError(
                f"Instance {instance_id} reached {state.limit} before its endpoint answered. {last}"
                f"Increase {limit}.",
                instance_id=instance_id,
            )
        return StartTimeoutError(
            f"Instance {instance_id} is running, but its endpoint did not answer within "
            f"start_timeout={state.options.start_timeout:g} s. {last}Increase start_timeout, or try another "
            "hardware type.",
            instance_id=instance_id,
        )
