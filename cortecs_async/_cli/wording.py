"""Translate library messages from Python terms into command-line terms.

The library's errors, hints, and log lines name arguments and methods. A command has options, variables, and
other commands instead. One table translates all of them, so the library needs each text only once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

# Library arguments that are options here.
_OPTIONS = {
    "num_workers": "--workers",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("start_timeout", "teardown_timeout", "max_lifetime", "max_cost"),
            *("context_length", "billing_interval", "max_price_per_hour", "capacity_timeout"),
            *("idle_timeout", "project"),
        )
    },
}

# Applied in this order.
_PHRASES: tuple[tuple[str, str], ...] = (
    # A value follows an option after a space.
    *((rf"(?<![\w./'\"-]){name}=(?=[\d.])", f"{option} ") for name, option in _OPTIONS.items()),
    # If a text has both terms, only ours is left.
    (r"client_id and client_secret \((CORTECS_CLIENT_ID), (CORTECS_CLIENT_SECRET)\)", r"\1 and \2"),
    (r"\w+(?:=\w+)? \((CORTECS_\w+|--[\w-]+)\)", r"\1"),
    (r"\w+= or (?=CORTECS_)", ""),
    (r"(?i)pass client_id= and client_secret= to AsyncCortecs, or (?=set )", ""),
    (r"(?i)pass api_key=, or (?=set )", ""),
    (r", or pass allow_insecure_http=True", ""),
    (r" and not http_client=", ""),
    (r", or call inst\.touch\(\) when you use the instance in a way that the client does not see", ""),
    (
        r"The reaper, a background process, releases it",
        "A background process on this machine continues to delete it",
    ),
    (r"Call `client\.sweep\(\)` in this process, or delete it", "Delete it"),
    (r" or client\.sweep\(\)", ""),
    (r"force=True to end their blocks too", "--force to delete it anyway"),
    (r"force=True", "--force"),
    (r"`?client\.sweep\(\)`?", "`cortecs-async sweep`"),
    (r", or accept this risk with AsyncCortecs\(guard=\"off\"\)", ""),
    (r"inst\.openai\(\) fails (after billing has started).*require_key=False", r"requests fail \1"),
    (r"\bready='(\w+)'", r"--ready \1"),
    (r"\bready(?= is ')", "--ready"),
    (r"(?<=is empty: )since (.*) until ", r"--since \1 --until "),
    (r"\bcall (?=client\.)", "run "),
    (r"client\.instances\.list\(\)", "`cortecs-async ls`"),
    (r"client\.instances\.get\(\)", "`cortecs-async show`"),
    (r"client\.instances\.stop\(\)", "`cortecs-async stop`"),
    (r"client\.models\.list\(\)", "`cortecs-async models`"),
    (r"client\.hardware_types\.list_available\(\)", "`cortecs-async hardware --available`"),
    (r"client\.instance, acquire, and run_batch", "`cortecs-async run`, `start`, and `batch`"),
    (r"client\.user\.balance\(\)", "`cortecs-async balance`"),
)

# Translated as whole words, but not in a path or in quotes, where they come from the user.
_ARGUMENTS: tuple[tuple[str, str], ...] = (
    # Only where the client checks them, because the service uses these names too.
    (r"client_id(?= (?:must|contains|is)\b|:| and client_secret)", "CORTECS_CLIENT_ID"),
    (r"client_secret(?= (?:must|contains|is|are)\b|:)", "CORTECS_CLIENT_SECRET"),
    ("api_base_url", "CORTECS_API_BASE_URL"),
    (r"(instance|model|hardware)(?:_type)?_id(?= )", r"\1 id"),
    (r"linger(?= is )", "--linger"),
    (r"(instances|concurrency)(?==)", r"--\1"),
    *_OPTIONS.items(),
)


@functools.cache
def _patterns() -> Sequence[tuple[re.Pattern[str], str]]:
    # Compiled when first used: a command that succeeds does not need them.
    return (
        *((re.compile(phrase), ours) for phrase, ours in _PHRASES),
        *((re.compile(rf"(?<![\w./'\"-]){name}(?![\w'\"]|[./-]\w)"), ours) for name, ours in _ARGUMENTS),
    )


def to_command_line(text: str) -> str:
    """Return a library text in command-line terms."""
    for pattern, ours in _patterns():
        text = pattern.sub(ours, text)
    return text
