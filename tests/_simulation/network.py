"""The network between the actors of a world and the emulator."""

from __future__ import annotations

import contextvars
import json
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from cortecs_async.emulator import Emulator
from cortecs_async.emulator._catalog import HARDWARE
from cortecs_async.emulator._messages import Request, Response, json_response
from cortecs_async.emulator._routing import Match

from .data import REQUEST_TIMEOUT
from .history import LeaseHistory, SentStart, Touch

if TYPE_CHECKING:
    from .actors import Actor
    from .run import Simulation

# The lease that sends a request. All tasks inherit it, including the client's tasks.
current_lease: contextvars.ContextVar[LeaseHistory | None] = contextvars.ContextVar(
    "current_lease", default=None
)

_START, _MACHINE = "x-simulated-start", "x-simulated-machine"

_TOUCHES = frozenset({"stop", "restart", "delete", "stop_all", "delete_all"})


def observe(world: Simulation, emulator: Emulator) -> None:
    """Record the starts and the instances touched in the emulator, and apply the shortages."""
    handle = emulator._handle
    capacity = emulator._account.settings.capacity
    assert isinstance(capacity, dict)
    usual = dict(capacity)

    def observed(request: Request, match: Match, now: float, *more: Any) -> Response:
        short = _shortages(world, now)
        capacity.clear()
        capacity.update({**usual, **{each: 0 for each, kind in short.items() if kind != "hidden"}})
        response: Response = handle(request, match, now, *more)
        if match.name == "available" and response.status < 300:
            response = _as_listed(response, short)
        if _START in request.headers and response.status < 300:
            sent = world.starts[int(request.headers[_START])]
            sent.instance_id, sent.executed_at = instance_id_of(response.body), now
        if match.name in _TOUCHES:
            instance_id = match.params.get("instance_id") or json.loads(request.body or b"{}").get(
                "instance_id"
            )
            machine = int(request.headers[_MACHINE])
            world.touches.append(Touch(now, machine, str(match.name), str(instance_id)))
        return response

    setattr(emulator, "_handle", observed)  # noqa: B010  (a method, as mypy sees it)


def _shortages(world: Simulation, now: float) -> dict[str, str]:
    """Return the kind of the shortage of each hardware type that has one."""
    return {
        each: shortage.kind
        for shortage in world.plan.shortages
        if 0 <= now - shortage.begins_at < shortage.duration
        for each in ([shortage.hardware] if shortage.hardware else HARDWARE)
    }


def _as_listed(response: Response, short: dict[str, str]) -> Response:
    """Return a list of what is available as the shortages show it."""
    shown = {each["hardware_type_id"]: each for each in json.loads(response.body)["hardware_types"]}
    for name, kind in short.items():
        if kind == "listed":
            shown.setdefault(name, HARDWARE[name].json("EUR"))
        else:
            shown.pop(name, None)
    return json_response(200, {"hardware_types": [*shown.values()]})


class Network(httpx.AsyncBaseTransport):
    """The connections of one actor."""

    def __init__(self, world: Simulation, actor: Actor) -> None:
        self._world = world
        self._actor = actor

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self._actor.unblocked()
        self._actor.step()
        if not self._actor.is_alive:
            raise httpx.ConnectError("killed", request=request)
        request.headers[_MACHINE] = str(self._actor.machine.index)
        if request.url.path.endswith("/instances/start"):
            return await self._start(request)
        self._actor.probed += request.url.path.startswith("/inference/")
        self._actor.asked += request.url.path.endswith("/hardware-types/available")
        response = await self._forward(request)
        await self._actor.unblocked()
        self._actor.step()
        return response

    async def _start(self, request: httpx.Request) -> httpx.Response:
        world = self._world
        request.headers[_START] = str(len(world.starts))
        lease = current_lease.get()
        assert lease is not None
        args = json.loads(request.content)
        sent = SentStart(lease, world.last_end_of(lease), anyio.current_time(), args.get("context_length"))
        sent.hardware = args.get("hardware_type_id")
        world.starts.append(sent)
        try:
            response = await self._carry_out(request)
            body = response.content
            if not self._actor.is_alive:
                raise httpx.ReadError("killed", request=request)
            if response.is_success:
                sent.response = "ok" if instance_id_of(body) else None
            elif _is_refusal(response, body):
                sent.response = "refused"
        except httpx.ConnectError:
            sent.response = "refused"
            raise
        except anyio.get_cancelled_exc_class():
            sent.was_given_up = anyio.current_time() < sent.at + REQUEST_TIMEOUT
            raise
        finally:
            sent.ended_at = anyio.current_time()
        self._actor.step()
        return httpx.Response(response.status_code, headers=response.headers, content=body)

    async def _carry_out(self, request: httpx.Request) -> httpx.Response:
        """Forward a request. The service carries it out even if the client closes the connection."""
        outcome: list[httpx.Response | Exception] = []
        done = anyio.Event()

        async def forward() -> None:
            try:
                response = await self._forward(request)
                await response.aread()
                outcome.append(response)
            except Exception as error:  # noqa: BLE001  (raised below)
                outcome.append(error)
            done.set()

        self._world.tasks.start_soon(forward)
        await done.wait()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    async def _forward(self, request: httpx.Request) -> httpx.Response:
        world = self._world
        now = anyio.current_time()
        outage = next((each for each in world.outages if 0 <= now - each.begins_at < each.duration), None)
        match outage.kind if outage else None:
            case "busy":
                return httpx.Response(503, html="<p>Service unavailable", request=request)
            case "cut":
                raise httpx.RemoteProtocolError("cut", request=request)
            case "refused":
                raise httpx.ConnectError("refused", request=request)
            case "silent":
                await anyio.sleep_forever()
            case "lost":
                await world.transport.handle_async_request(request)
                raise httpx.RemoteProtocolError("cut", request=request)
        return await world.transport.handle_async_request(request)


def _is_refusal(response: httpx.Response, body: bytes) -> bool:
    """Return whether the service itself reports that nothing was started."""
    status = response.status_code
    if 400 <= status < 500 and status != 408:
        return True
    if status in {500, 504}:
        return False
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def instance_id_of(body: bytes) -> str | None:
    """Return the id in the response to a start."""
    try:
        return str(json.loads(body)["instance"]["instance_id"])
    except (ValueError, TypeError, LookupError):
        return None
