"""The library's texts in the words of the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortecs_async
from cortecs_async._cli.wording import to_command_line

PACKAGE = Path(cortecs_async.__file__).parent

# These show nothing of the library to a user of a command, or only what a program can do wrong.
# Missing credentials have a text of their own on the command line: `error_text`.
NOT_SHOWN = {"_cli", "_credentials.py", "_hint_tables.py", "_hints.py", "emulator", "integrations"}
ONLY_IN_PROGRAMS = re.compile(
    r"[Tt]his AsyncCortecs |<AsyncCortecs |never closed|transport='aiohttp'|credential_provider|http_client|"
    r"\(pass a query as params=\)|client\.instances\.start or|[Tt]his lease |Listing\(|"
    r"disabled \((journal|guard)=|timedelta\(|anonymous=True|require_key=True|either profile or|<progress |"
    r"[Tt]his block (has|was)|shared lease cannot be pickled|shared instance needs a client with"
)

# Words of the library: a method of the client, a keyword, the name of an argument.
OF_THE_LIBRARY = re.compile(
    r"\bclient\.\w+|AsyncCortecs|(?<!-)\b[a-z_]+=(?!=)|(?<![\w.-])(api_base_url|max_cost|max_lifetime|start_timeout|"
    r"teardown_timeout|context_length|num_workers|billing_interval|client_id|client_secret)\b"
)


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module that have several words, with … for each value, without its docstrings."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(each) for each in node.values)
            parts = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_no_text_that_a_command_may_show_names_an_argument_or_a_method() -> None:
    left = {
        f"{path.relative_to(PACKAGE)}: {ours}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in NOT_SHOWN
        for text in texts(ast.parse(path.read_text()))
        if " " in text and not ONLY_IN_PROGRAMS.search(text)
        if OF_THE_LIBRARY.search(ours := to_command_line(text))
    }
    assert left == set()


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        (
            "Top up your account. To see the balance, call client.user.balance().",
            "Top up your account. To see the balance, run `cortecs-async balance`.",
        ),
        ("client.models.list() lists the models.", "`cortecs-async models` lists the models."),
        (
            (
                "had no request for idle_timeout=600 s. Increase idle_timeout, or call inst.touch() when you "
                "use the instance in a way that the client does not see"
            ),
            "had no request for --idle-timeout 600 s. Increase --idle-timeout",
        ),
        ("Run `cortecs-async sweep` or client.sweep()", "Run `cortecs-async sweep`"),
        (
            "BILLED. The reaper, a background process, releases it.",
            "BILLED. A background process on this machine continues to delete it.",
        ),
        (
            "Call `client.sweep()` in this process, or delete it with `cortecs-async rm --stop`",
            "Delete it with `cortecs-async rm --stop`",
        ),
        ("Increase start_timeout, or wait", "Increase --start-timeout, or wait"),
        ("pass ready='status'.", "pass --ready status."),
        ("is not ready yet", "is not ready yet"),
        ("max_cost=0.1 is less", "--max-cost 0.1 is less"),
        ("num_workers must be 1 to 8", "--workers must be 1 to 8"),
        ("check api_base_url (CORTECS_API_BASE_URL).", "check CORTECS_API_BASE_URL."),
        ("Set state_dir= or CORTECS_STATE_DIR to", "Set CORTECS_STATE_DIR to"),
        ("pass override_model=True (--override-model) to", "pass --override-model to"),
        ("Use https, or pass allow_insecure_http=True.", "Use https."),
        # The words of the service, and of the user, stay.
        ("returned 401: Unknown client_id or secret", "returned 401: Unknown client_id or secret"),
        ("cannot read /home/max_cost/x", "cannot read /home/max_cost/x"),
        ("not 'max_cost'", "not 'max_cost'"),
        ("my_max_cost", "my_max_cost"),
    ],
)
def test_each_word(text: str, ours: str) -> None:
    assert to_command_line(text) == ours
