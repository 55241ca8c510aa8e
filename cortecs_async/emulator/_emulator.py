"""The emulator itself: one locked account, the fault layer, and the views that tests read."""

import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, final

import anyio
import attrs
import httpx
from starlette.applications import Starlette

from cortecs_async.emulator._account import Account, read_arguments
from cortecs_async.emulator._answers import Answer, Call, Refusal, error_answer
from cortecs_async.emulator._asgi import starlette_app
from cortecs_async.emulator._faults import Fault, FaultPlan, disguise
from cortecs_async.emulator._inference import serving
from cortecs_async.emulator._places import Place
from cortecs_async.emulator._playback import Playback, Reply
from cortecs_async.emulator._records import LedgerEntry, RequestRecord
from cortecs_async.emulator._routing import API, INFERENCE, Late, Match, decide, find_route
from cortecs_async.emulator._settings import Settings
from cortecs_async.emulator._transport import EmulatorTransport

# The time zero of a clock that is not the machine's own: 2025-01-01T00:00:00Z.
_EPOCH: Final = 1_735_689_600.0


@attrs.frozen
class _Decided:
    """What a request has come to, and when an instance works on it."""

    answer: Answer
    place: Place | None = None


@final
class Emulator:
    """A Cortecs account that costs nothing.

    What it does is a pure function of the requests so far and of ``clock()``: it has no background tasks,
    and every look computes where things are now. All of its state may be read and changed from any thread.
    """

    def __init__(
        self,
        *,
        client_id: str = "emulator-client",
        client_secret: str = "emulator-secret",  # noqa: S107 - it guards nothing
        api_key: str = "emulator-key",
        step_seconds: float = 1.0,
        num_steps: int = 5,
        stop_seconds: float = 0.0,
        token_seconds: float = 0.0,
        answer_seconds: float = 0.0,
        parallel: int | None = None,
        queue: int | None = None,
        capacity: Mapping[str, int] | None = None,
        balance: float = 1000.0,
        currency: str = "EUR",
        token_lifetime: float = 3600.0,
        unknown_status: int = 400,
        num_workers_in_args: bool = True,
        root_url: str = "http://localhost",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
    ) -> None:
        """Open the account.

        Args:
            client_id: The client id that gets a token.
            client_secret: The secret that goes with it.
            api_key: The key of the inference endpoints.
            step_seconds: Seconds that each provisioning step takes.
            num_steps: How many there are; a worker runs when it reaches the last, and each further
                worker is one step behind.
            stop_seconds: Seconds that an instance is ``stopping`` (and billed) after a stop.
            token_seconds: Seconds between two chunks of a streamed inference answer.
            answer_seconds: Seconds that an instance works on each inference answer (chat, completions,
                embeddings) before it sends anything. Refusals come at once.
            parallel: How many of them each instance works on at once, whatever its workers; more wait in
                order. None for any number. A caller that hangs up while it waits gives up its place, to
                the next that comes.
            queue: How many may wait; one more gets a 429 with a ``Retry-After``. None for any number.
            capacity: Free GPU sets in total, by hardware type; what it does not name has plenty. A
                worker takes one set.
            balance: The account's balance before any instance was started, in ``currency``. Starts are
                refused once it is used up; what runs is never stopped for it.
            currency: The currency of the balance and of the invented prices.
            token_lifetime: Seconds that an access token is good for.
            unknown_status: What an unknown instance id gives: 400, as documented, or 404.
            num_workers_in_args: False leaves ``num_workers`` out of ``instance_args``, as every
                documented example does.
            root_url: Where callers reach it, without a slash at the end; serving it sets it.
            clock: The present in seconds, from any fixed point.
            sleep: Waits so many seconds on the same clock.

        Raises:
            ValueError: For a figure out of range or an unknown hardware type.
        """
        self._settings = Settings(
            client_id=client_id,
            client_secret=client_secret,
            api_key=api_key,
            step_seconds=step_seconds,
            num_steps=num_steps,
            stop_seconds=stop_seconds,
            token_seconds=token_seconds,
            answer_seconds=answer_seconds,
            parallel=parallel,
            queue=queue,
            capacity=dict(capacity or {}),
            balance=balance,
            currency=currency,
            token_lifetime=token_lifetime,
            unknown_status=unknown_status,
            num_workers_in_args=num_workers_in_args,
            # The machine's own clock gives true dates, any other one the same dates in every run.
            epoch=time.time() - time.monotonic() if clock is time.monotonic else _EPOCH,
        )
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._account = Account(self._settings, root_url.rstrip("/"))
        self._faults = FaultPlan()
        self._requests: list[RequestRecord] = []
        self._late: list[Late] = []
        self._app = starlette_app(self)

    def __repr__(self) -> str:
        """Where it is, and nothing secret."""
        return f"Emulator(api_base_url={self.api_base_url!r}, client_id={self.client_id!r})"

    @property
    def app(self) -> Starlette:
        """The Starlette application, faults included: to be served, mounted, or wrapped in middleware."""
        return self._app

    def transport(self) -> httpx.AsyncBaseTransport:
        """A transport for an ``httpx.AsyncClient`` that reaches the emulator without a socket.

        It streams, honours the client's read time-out, and raises the exceptions that a real connection
        gives. It needs no task of its own, and works on asyncio and trio, on real and on virtual time.
        """
        return EmulatorTransport(self)

    def http_client(self) -> httpx.AsyncClient:
        """An HTTP client on such a transport, for ``AsyncCortecs(http_client=...)``."""
        return httpx.AsyncClient(transport=self.transport())

    @property
    def root_url(self) -> str:
        """Where callers reach the emulator."""
        return self._account.root_url

    @root_url.setter
    def root_url(self, value: str) -> None:
        with self._lock:
            self._account.root_url = value.rstrip("/")

    @property
    def api_base_url(self) -> str:
        """Where callers reach the provisioning API."""
        return self.root_url + API

    @property
    def client_id(self) -> str:
        """The client id that gets a token."""
        return self._settings.client_id

    @property
    def client_secret(self) -> str:
        """The secret that goes with it."""
        return self._settings.client_secret

    @property
    def api_key(self) -> str:
        """The key of the inference endpoints."""
        return self._settings.api_key

    def env(self) -> dict[str, str]:
        """The environment variables that point a program at the emulator."""
        return {
            "CORTECS_CLIENT_ID": self.client_id,
            "CORTECS_CLIENT_SECRET": self.client_secret,
            "CORTECS_API_BASE_URL": self.api_base_url,
            "OPENAI_API_KEY": self.api_key,
        }

    def add_fault(self, fault: Fault) -> None:
        """Let something go wrong with requests to come; faults added earlier go first."""
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more; what is under way keeps its fault."""
        with self._lock:
            self._faults.clear()

    @property
    def unmet_faults(self) -> tuple[Fault, ...]:
        """The faults that have met no request so far, without those that were cleared."""
        with self._lock:
            return self._faults.unmet()

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Every instance that there ever was, in the order of their starts."""
        with self._lock:
            return self._account.ledger(self._now())

    @property
    def existing(self) -> tuple[str, ...]:
        """The ids of the instances that are not deleted, whatever their status."""
        with self._lock:
            self._now()
            return tuple(self._account.alive)

    @property
    def billing(self) -> tuple[str, ...]:
        """The ids of the instances that are being billed: pending, running or stopping."""
        with self._lock:
            return self._account.billing(self._now())

    @property
    def total_cost(self) -> float:
        """What all instances cost so far."""
        with self._lock:
            return self._account.total_cost(self._now())

    @property
    def balance_now(self) -> float:
        """What is left of the balance; may be negative."""
        with self._lock:
            return self._account.balance(self._now())

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every request that arrived, in order."""
        with self._lock:
            return tuple(self._requests)

    def start_instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        billing_interval: str | None = None,
        num_workers: int | None = None,
    ) -> str:
        """Start an instance without HTTP, as another user of the account would.

        Returns:
            Its id.

        Raises:
            ValueError: When the service would refuse it.
        """
        arguments = read_arguments(
            {
                "model_id": model_id.replace("/", "--"),
                "hardware_type_id": hardware_type_id,
                "context_length": context_length,
                "billing_interval": billing_interval,
                "num_workers": num_workers,
            }
        )
        with self._lock:
            return self._account.start(arguments, self._now()).instance_id

    def stop_instance(self, instance_id: str) -> None:
        """Stop an instance without HTTP.

        Raises:
            ValueError: When it is unknown or stopped already.
        """
        with self._lock:
            self._account.stop(instance_id, self._now())

    def delete_instance(self, instance_id: str) -> None:
        """Let an instance vanish, whatever it is doing.

        Raises:
            ValueError: When it is unknown.
        """
        with self._lock:
            self._account.delete(instance_id, self._now(), force=True)

    async def exchange(self, call: Call) -> Reply:
        """Answer one request: the seam between the core and what carries it.

        The lock is held while something is decided and never while something is waited for.
        """
        match = find_route(call.method, call.path)
        decided: _Decided | None = None
        with self._lock:
            now = self._now()
            fault = self._faults.take(match.name)
            kind = None if fault is None else fault.kind
            number = len(self._requests)
            self._requests.append(RequestRecord(call.method, call.path, match.name, None, now, kind))
            if fault is None or fault.after:
                decided = self._begin(call, match, now)
        if decided is None and fault is not None and fault.kind == "delay":
            decided = await self._decide_late(call, match, now + fault.seconds, fault.seconds)
            fault = None
        answer = None if decided is None else await self._work(decided)
        if fault is not None and fault.kind == "delay":
            await self._sleep(fault.seconds)
        reply = disguise(fault, answer, inference=call.path.startswith(INFERENCE))
        if reply.answer is not None:
            reply.answer.headers["x-request-id"] = f"emulator-request-{number + 1}"
        with self._lock:
            self._requests[number] = RequestRecord(
                call.method, call.path, match.name, reply.status, now, kind
            )
        return reply

    async def _work(self, decided: _Decided) -> Answer:
        """The answer, when it is ready."""
        answer, place = decided.answer, decided.place
        if answer.instance_id is None or place is None:
            return answer
        spell = self._settings.answer_seconds
        # No event wakes a caller when its instance stops, for it may be on any loop: it looks now and then.
        for _ in range(math.ceil((place.ends - self._clock()) / spell) if spell else 0):
            try:
                await self._sleep(max(0.0, min(spell, place.ends - self._clock())))
            except BaseException:
                with self._lock:
                    self._account.give_up(answer.instance_id, place, self._clock())
                raise
            with self._lock:
                try:
                    serving(self._account, answer.instance_id, self._now())
                except Refusal as refusal:
                    return error_answer(refusal, inference=True)
        return answer

    def playback(self, reply: Reply) -> Playback:
        """The body of a reply (that is not a drop), to be sent piece by piece."""
        answer = Answer(500) if reply.answer is None else reply.answer
        return Playback(
            answer,
            cut=reply.cut,
            pause=lambda: self._sleep(self._settings.token_seconds),
            is_serving=lambda: self._is_serving(answer.instance_id),
        )

    def _is_serving(self, instance_id: str | None) -> bool:
        if instance_id is None:
            return True
        with self._lock:
            now = self._now()
            machine = self._account.alive.get(instance_id)
            return machine is not None and self._account.status(machine, now) == "running"

    async def _decide_late(self, call: Call, match: Match, due: float, seconds: float) -> _Decided:
        try:
            await self._sleep(seconds)
        except BaseException:
            # The caller has hung up. A service does not notice that: it does the deed when it comes to it.
            with self._lock:
                self._late.append(Late(due, call, match))
            raise
        with self._lock:
            return self._begin(call, match, self._now())

    def _now(self) -> float:
        """The present, with every deed done whose time has come. The lock must be held."""
        now = self._clock()
        due = sorted((late for late in self._late if late.due <= now), key=lambda late: late.due)
        if due:
            self._late = [late for late in self._late if late.due > now]
            for late in due:
                self._decide(late.call, late.match, late.due)
        return now

    def _decide(self, call: Call, match: Match, now: float) -> Answer:
        try:
            return decide(self._account, call, match, now)
        except Refusal as refusal:
            return error_answer(refusal, inference=call.path.startswith(INFERENCE))

    def _begin(self, call: Call, match: Match, now: float) -> _Decided:
        """Decide, for a caller that waits, and let the instance work on it if it takes any work."""
        answer = self._decide(call, match, now)
        if answer.instance_id is None or not self._settings.answer_seconds:
            return _Decided(answer)
        try:
            return _Decided(answer, self._account.book(answer.instance_id, now))
        except Refusal as refusal:
            return _Decided(error_answer(refusal, inference=True))
