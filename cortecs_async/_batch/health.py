"""Whether an endpoint is there, as far as its answers tell. Pure: no clock, no I/O.

A failure can be the request's fault or the endpoint's, and from one alone that cannot be told: an instance
that dies, or whose server starts anew, answers 404, 502 or nothing. So a request is to blame when the
endpoint has answered another one since it failed the last time. When it has not, there is doubt: nothing more
is sent but, one at a time, a small request of our own that every such endpoint answers.
"""

from __future__ import annotations

import json
import random
from typing import Any

from attrs import define

from .format import Request
from .outcome import Failed, FailureReason, backoff

# Seconds of doubt until an endpoint is given up, with all that is paid for it; and those for a key that it
# has never taken, which another try mostly does not change.
OUTAGE_TIMEOUT = 180.0
KEY_TIMEOUT = 10.0

# Seconds of pauses that an endpoint asks for, by which the patience is longer at the most.
_MOST_ASKED = 300.0

# Seconds between two of our own requests.
_LONGEST_PAUSE = 5.0

# So many failures in a row are no accident, however few are under way at once.
_FEWEST = 4

_SMALL: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/completions": {"prompt": "Hi", "max_tokens": 1},
    "/embeddings": {"input": "Hi"},
}


def small_request(path: str, model: str) -> Request:
    """One of the same kind that an endpoint which is there answers soon, whatever else it fails."""
    body = json.dumps({"model": model, **_SMALL[path]}).encode()
    return Request(number=0, custom_id="", path=path, body=body, request_id="")


@define(eq=False)
class Health:
    """What is known of one endpoint.

    Attributes:
        last_good: When it last answered.
        resume_at: When it may be asked again.
        doubt_since: Since when it is in doubt.
    """

    _rng: random.Random
    last_good: float = float("-inf")
    resume_at: float = float("-inf")
    doubt_since: float | None = None
    _in_a_row: int = 0
    _pauses: int = 0
    _asked: float = 0.0

    def answered(self, now: float) -> None:
        """It has answered."""
        self.last_good = now
        self.doubt_since = None
        self._in_a_row = self._pauses = 0
        self._asked = 0.0

    def put_off(self, failed: Failed, now: float) -> None:
        """It may be asked again when it says so."""
        resume_at = now + failed.retry_after
        if resume_at > self.resume_at:
            self._asked += resume_at - max(self.resume_at, now)
            self.resume_at = resume_at

    def failed(self, now: float, *, at_once: int, is_unclear: bool) -> None:
        """It has not answered.

        Args:
            now: Seconds, of any clock.
            at_once: How many it is asked at once.
            is_unclear: Nothing has shown whose fault it is, and nothing that is under way will.
        """
        self._in_a_row += 1
        if self.doubt_since is None and (is_unclear or self._in_a_row >= max(at_once, _FEWEST)):
            self.doubt_since = now

    def next_pause(self) -> float:
        """Seconds until it is asked again while it is in doubt."""
        self._pauses += 1
        return min(backoff(self._pauses - 1, self._rng), _LONGEST_PAUSE)

    def doubted_for(self, now: float) -> float:
        """Seconds of doubt."""
        return 0.0 if self.doubt_since is None else now - self.doubt_since

    def is_grace_over(self, failed: Failed, now: float) -> bool:
        """Whether there was doubt for too long, after another failure."""
        is_new_key = failed.reason is FailureReason.KEY and self.last_good == float("-inf")
        # What it has asked to wait does not count, or not for ever.
        asked = min(self._asked, _MOST_ASKED)
        return self.doubted_for(now) > (KEY_TIMEOUT if is_new_key else OUTAGE_TIMEOUT) + asked
