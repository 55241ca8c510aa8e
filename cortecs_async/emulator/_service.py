"""Answer requests. Holds one locked account, its faults, and the requests to process later."""

import functools
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import attrs

from cortecs_async.emulator._account import Account
from cortecs_async.emulator._faults import Fault, FaultPlan, fault_response
from cortecs_async.emulator._inference import endpoint_lag, running_instance
from cortecs_async.emulator._messages import ApiError, ErrorBody, Request, Response, error_response
from cortecs_async.emulator._queue import Slot
from cortecs_async.emulator._records import RequestRecord
from cortecs_async.emulator._routing import INFERENCE, INFERENCE_ROUTES, Match, find_route, handle
from cortecs_async.emulator._settings import Settings
from cortecs_async.emulator._streaming import Delivery


@attrs.frozen
class _DelayedRequest:
    """A request whose caller no longer waits. It is still processed once it is due."""

    due: float
    request: Request
    match: Match


# Under load many responses are sent in the same second.
@functools.lru_cache(maxsize=64)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


class Service:
    """The part of an emulator that handles requests."""

    def __init__(
        self,
        settings: Settings,
        *,
        root_url: str,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[Any]],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._account = Account(settings, root_url.rstrip("/"))
        self._faults = FaultPlan()
        self._requests: list[RequestRecord] = []
        self._delayed: list[_DelayedRequest] = []
        self._crashes: Counter[str] = Counter()  # by instance
        self._up_at: dict[str, float] = {}

    async def exchange(self, request: Request, /) -> Delivery | None:
        """Answer one request, or return None if its connection is dropped. The transports call this.

        The lock is held while the state changes, never during a wait.
        """
        match = find_route(request.method, request.path)
        with self._lock:
            now = self._now()
            instance_id = match.params.get("instance_id", "")
            fault = self._faults.take(match.name, instance_id or None, request.body)
            kind = None if fault is None else fault.kind
            number = len(self._requests)
            record = RequestRecord(request.method, request.path, match.name, None, now, kind)
            self._requests.append(record)
            if kind == "crash" and fault is not None:
                self._crashes[instance_id] += 1
                self._up_at[instance_id] = now + fault.seconds
                self._account.queues.pop(instance_id, None)
            crashes = self._crashes[instance_id]
            response, slot = self._receive(request, match, now, fault)
            hangs_for = self._lag(match, now) if self._settings.endpoint_fault == "hang" else 0.0
        if hangs_for:
            await self._sleep(hangs_for)
        elif fault is not None and fault.kind == "delay" and not fault.after:
            response, slot = await self._begin_later(request, match, now, fault.seconds)
        if response is not None and slot is not None:
            response = await self._work(response, slot)
        response = await self._break(response, request, fault)
        if response is None:
            return None
        with self._lock:
            if self._crashes[response.instance_id] > crashes:
                return None
            self._requests[number] = attrs.evolve(record, status=response.status)
        response.headers["x-request-id"] = f"emulator-request-{number + 1}"
        if self._settings.date_header:
            response.headers.setdefault("date", _http_date(int(self._settings.epoch + self._clock())))
        return Delivery(
            response=response,
            is_cut=kind == "truncate",
            pause=lambda: self._sleep(self._settings.token_seconds),
            is_running=functools.partial(self._is_running, response.instance_id, crashes),
        )

    def _receive(
        self, request: Request, match: Match, now: float, fault: Fault | None
    ) -> tuple[Response | None, Slot | None]:
        """Process a request that has arrived. The response is None if that happens later or never."""
        if match.name in INFERENCE_ROUTES and now < self._up_at.get(match.params["instance_id"], now):
            return None, None
        if self._settings.endpoint_fault != "502" and self._lag(match, now):
            is_garbage = self._settings.endpoint_fault == "garbage"
            return fault_response(Fault("garbage"), "openai") if is_garbage else None, None
        if fault is None or fault.after:
            return self._begin(request, match, now)
        if fault.kind == "omit":
            return self._handle_with(self._account.without(fault.instance_id), request, match, now), None
        if fault.kind == "late":
            self._delayed.append(_DelayedRequest(now + fault.seconds, request, match))
        return None, None

    async def _break(
        self, response: Response | None, request: Request, fault: Fault | None
    ) -> Response | None:
        """Delay or replace a response, or drop it."""
        if fault is not None and fault.kind == "delay" and fault.after:
            await self._sleep(fault.seconds)
        if fault is not None and fault.kind in {"status", "garbage"}:
            return fault_response(fault, self._error_body(request))
        return None if fault is not None and fault.kind == "drop" else response

    def _lag(self, match: Match, now: float) -> float:
        """Return the seconds for which the endpoint that this request is for still fails."""
        instance = self._account.instances.get(match.params.get("instance_id", ""))
        if instance is None or match.name not in INFERENCE_ROUTES:
            return 0.0
        is_running = self._account.status(instance, now) == "running"
        return endpoint_lag(self._account, instance, now) if is_running else 0.0

    async def _work(self, response: Response, slot: Slot) -> Response:
        """Wait until an answer is ready and return it, or return an error if the instance stops first."""
        interval = self._settings.answer_seconds
        # Between sleeps, check that the instance still runs: an event could not wake callers on other loops.
        for _ in range(math.ceil((slot.ends - self._clock()) / interval)):
            try:
                await self._sleep(max(0.0, min(interval, slot.ends - self._clock())))
            except BaseException:
                with self._lock:
                    self._account.release_slot(response.instance_id, slot, self._clock())
                raise
            with self._lock:
                try:
                    running_instance(self._account, response.instance_id, self._now())
                except ApiError as error:
                    return error_response(error, "openai")
        return response

    def _is_running(self, instance_id: str, crashes: int) -> bool:
        with self._lock:
            if self._crashes[instance_id] > crashes:
                return False
            now = self._now()
            instance = self._account.instances.get(instance_id)
            return instance is not None and self._account.status(instance, now) == "running"

    async def _begin_later(
        self, request: Request, match: Match, now: float, seconds: float
    ) -> tuple[Response, Slot | None]:
        try:
            await self._sleep(seconds)
        except BaseException:
            # The caller has disconnected. A service does not notice and processes the request when it is due.
            with self._lock:
                self._delayed.append(_DelayedRequest(now + seconds, request, match))
            raise
        with self._lock:
            return self._begin(request, match, self._now())

    def _now(self) -> float:
        """Process every due request and return the current time. The lock must be held."""
        now = self._clock()
        due = sorted((each for each in self._delayed if each.due <= now), key=lambda each: each.due)
        if due:
            self._delayed = [each for each in self._delayed if each.due > now]
            for each in due:
                self._handle(each.request, each.match, each.due)
        return now

    def _handle(self, request: Request, match: Match, now: float) -> Response:
        return self._handle_with(self._account, request, match, now)

    def _handle_with(self, account: Account, request: Request, match: Match, now: float) -> Response:
        try:
            return handle(account, request, match, now)
        except ApiError as error:
            return error_response(error, self._error_body(request))

    def _error_body(self, request: Request) -> ErrorBody:
        return "openai" if request.path.startswith(INFERENCE) else self._settings.error_body

    def _begin(self, request: Request, match: Match, now: float) -> tuple[Response, Slot | None]:
        """Handle a request, and reserve the time that the instance needs for it, if any."""
        response = self._handle(request, match, now)
        if not response.instance_id or not self._settings.answer_seconds:
            return response, None
        try:
            return response, self._account.reserve_slot(response.instance_id, now)
        except ApiError as error:
            return error_response(error, "openai"), None
