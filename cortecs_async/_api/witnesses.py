"""The witness of plain starts: see `Witness`."""

from __future__ import annotations

import contextlib
from functools import partial

from .._aio.tasks import DetachedTask
from .._errors import DecodeError
from .._http.messages import Failure, Reply, Witness
from .domain import InstanceArgs
from .matching import Claims
from .wire import decode_started


class StartWitness(Witness):
    """Counts a plain start request while it is in progress and claims its instance.

    Without this, a lease of the same client that searches for its own lost start might adopt the instance.
    """

    def __init__(self, claims: Claims, args: InstanceArgs) -> None:
        self._claims = claims
        self._args = args

    def sending(self, _: DetachedTask[Reply | Failure], /) -> bool:
        self._claims.begin_request(self._args.model_id)
        return False

    def settled(self, outcome: Reply | Failure) -> None:
        self._claims.end_request(self._args.model_id)
        if isinstance(outcome, Reply):
            with contextlib.suppress(DecodeError):
                started = outcome.decode(partial(decode_started, args=self._args))
                self._claims.ids.add(started.instance_id)
                if self._claims.on_plain_start is not None:
                    self._claims.on_plain_start(started.instance_id)
