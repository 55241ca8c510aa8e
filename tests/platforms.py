"""Check on this system what must work on every one: imports, `--help`, requests, and leases or their error.

This is a program, so that it runs with nothing but the package and its extra `demo`: in CI on macOS and
Windows, and in `tests/test_platforms.py`. With `--pretend-windows`, it first takes away what Windows lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import pkgutil
import platform
import select
import signal
import socket
import sys
import tempfile
import time
from types import ModuleType

from click.testing import CliRunner

# What Python documents as "Availability: Unix". `mypy --platform win32` finds what these lists lack.
ABSENT_MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
ABSENT_NAMES: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_TMPFILE"),
        *("P_PID", "WEXITED", "WNOHANG", "WNOWAIT", "wait", "wait3", "wait4", "waitid", "pidfd_open"),
        *("chown", "fchmod", "fchown", "mkfifo", "posix_fadvise", "posix_fallocate", "pread", "pwrite"),
        *("fork", "forkpty", "posix_spawn", "register_at_fork", "eventfd", "memfd_create", "sendfile"),
        *("get_blocking", "set_blocking", "openpty", "tcgetpgrp", "tcsetpgrp", "ttyname"),
        *("getegid", "geteuid", "getgid", "getgroups", "getuid", "getpgid", "getpgrp", "getsid"),
        *("killpg", "setpgid", "setsid", "getloadavg", "sched_getaffinity", "statvfs", "sysconf"),
    ),
    signal: (
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
        *("SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pthread_kill", "pthread_sigmask", "setitimer"),
        *("siginterrupt", "sigwait"),
    ),
    socket: ("AF_UNIX", "SCM_RIGHTS", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_PEERCRED", "SO_REUSEPORT"),
    select: ("epoll", "kqueue", "poll"),
    time: ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "clock_gettime"),
}

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def module_names() -> list[str]:
    """Return every module of the package."""
    package = importlib.import_module("cortecs_async")
    return [
        package.__name__,
        *(each.name for each in pkgutil.walk_packages(package.__path__, "cortecs_async.")),
    ]


def import_all() -> int:
    """Import every module of the package, and return how many there are."""
    # Its plugin needs pytest.
    names = [name for name in module_names() if not name.endswith("pytest_plugin")]
    for name in names:
        importlib.import_module(name)
    return len(names)


def pretend_windows() -> None:
    """Take away what Windows lacks, and load the package again.

    The packages of others stay as they are loaded, because on Windows they do things in other ways.
    """
    import_all()
    with contextlib.suppress(ImportError):
        importlib.import_module("trio")
    platform.platform()  # remembers what it finds
    for name in [name for name in sys.modules if name.partition(".")[0] == "cortecs_async"]:
        del sys.modules[name]
    for name in ABSENT_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # an import raises ModuleNotFoundError
    # Event loops need one; on Windows, it uses the network.
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
    for module, names in ABSENT_NAMES.items():
        for name in names:
            vars(module).pop(name, None)
    sys.platform = "win32"


def call(*arguments: str, exits_with: int = 0) -> str:
    """Run a command in this process, and return its output."""
    from cortecs_async._cli import cli

    done = CliRunner().invoke(cli, arguments)
    problem = (arguments, done.output, done.exception)
    assert done.exit_code == exits_with, problem
    assert "Traceback" not in done.output, problem
    return done.output


def call_commands() -> None:
    """Run the commands that need no lease."""
    assert MODEL in call("models")
    assert "NVIDIA" in call("hardware")
    call("balance")
    assert "No instances" in call("ls")
    instance_id = call("start", MODEL, "--wait").split()[0]
    assert instance_id in call("ls", "--json")
    call("show", instance_id)
    call("stop", instance_id)
    call("rm", instance_id)
    call("orphans")
    call("sweep")
    call("doctor", exits_with=int(sys.platform == "win32"))


async def enter_leases() -> list[str]:
    """Enter a lease with each `guard`, and return the errors."""
    from cortecs_async import AsyncCortecs
    from cortecs_async.errors import GuardError

    errors: list[str] = []
    for guard in ("auto", "required", "off"):
        async with AsyncCortecs(guard=guard) as client:
            try:
                async with client.instance(MODEL) as inst:
                    assert inst.base_url
            except GuardError as error:
                errors.append(str(error))
            assert not await client.instances.list()
    return errors


def main() -> None:
    """Run all checks."""
    if "--pretend-windows" in sys.argv[1:]:
        pretend_windows()
    print(import_all(), "modules")

    from cortecs_async._cli import cli
    from cortecs_async.emulator import serve_emulator

    for name in sorted(cli.summaries):
        assert call(name, "--help").startswith("Usage: "), name
    print(len(cli.summaries), "commands")
    with tempfile.TemporaryDirectory() as state, serve_emulator(step_seconds=0.01) as emulator:
        os.environ.update(emulator.env(), CORTECS_STATE_DIR=state)
        call_commands()
        errors = asyncio.run(enter_leases())
        if sys.platform == "win32":
            errors.append(call("run", MODEL, "--", sys.executable, "-c", "", exits_with=125))
    print("\n".join(errors))


if __name__ == "__main__":
    main()
