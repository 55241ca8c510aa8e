"""A request and its answer, as the resources and the transport speak of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from ._config import Settings
from ._errors import DecodeError
from ._failures import start_warning
from ._retry import Failure
from ._slots import Urgency
from ._wire import ShapeError

T = TypeVar("T")


@frozen(kw_only=True)
class Call:
    """A request as the resources describe it; `path` is below the API base URL and already checked."""

    method: str
    path: str
    # Bodies can hold the client secret.
    json: Mapping[str, Any] | None = field(default=None, repr=False)
    params: Mapping[str, str] | None = None
    authenticated: bool = True
    # False for the poller, whose next tick is its retry.
    retried: bool = True
    urgency: Urgency = Urgency.CALL
    # Instead of the client's: its time, retries and headers.
    settings: Settings | None = field(default=None, repr=False)

    # Given for what must not be lost to a cancellation: once sent, an attempt is seen to its end, and this is
    # told of it before the cancellation goes on. Between attempts it can be cancelled as usual.
    witness: Witness | None = field(default=None, repr=False)

    @property
    def has_effect(self) -> bool:
        """True when it changes something that outlives it; fetching a token does not."""
        return self.authenticated and self.method != "GET"


class Witness(Protocol):
    """Who must know of every attempt of a request, whatever becomes of its caller."""

    def sending(self) -> None:
        """An attempt is about to be sent."""
        ...

    def settled(self, outcome: Reply | Failure) -> None:
        """It has ended. Not called when the loop itself was broken off."""
        ...


@frozen(kw_only=True)
class Reply:
    """A success answer.

    Attributes:
        data: The JSON, or None for an empty body.
        request_id: The answer's `x-request-id`, where there is one.
        attempts: How often the request was sent.
        headers: The answer's, whatever the case of their names; nothing in them has been looked at.
    """

    call: Call
    status: int
    data: Any = field(repr=False)
    request_id: str | None = None
    attempts: int = 1
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    def decode(self, decoder: Callable[[Any], T]) -> T:
        """What the decoder makes of the data.

        Raises:
            DecodeError: when it is not of the documented shape.
        """
        try:
            return decoder(self.data)
        except ShapeError as error:
            problem = str(error)
        unknown = self.call.has_effect
        raise DecodeError(
            f"{self.call.method} {self.call.path} answered {self.status} with JSON of another shape than "
            f"documented: {problem}. The service may have changed: look for a newer cortecs-async."
            f"{start_warning(self.call.method, self.call.path, unknown=unknown)}",
            method=self.call.method,
            path=self.call.path,
            attempts=self.attempts,
            outcome_unknown=unknown,
        )
