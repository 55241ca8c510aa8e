"""`cortecs-async emulator`: the built-in emulator of the service, on a port."""

from __future__ import annotations

import errno
import shlex
from typing import TYPE_CHECKING, Any

import click

from .command import cli_command
from .runtime import import_optional

if TYPE_CHECKING:
    from ..emulator import Emulator


def _parse_capacity(value: str) -> tuple[str, int]:
    hardware, _, sets = value.partition("=")
    if not hardware or not sets.isdecimal():
        raise click.BadParameter(f'capacity "{value}" is invalid (example: NVIDIA_H100_1=4)')
    return hardware, int(sets)


def _parse_model(value: str) -> tuple[str, str, int]:
    """Split NAME=HARDWARE:LENGTH. A name alone has no hardware and the length 0."""
    name, given, config = value.partition("=")
    hardware, _, length = config.partition(":")
    if not given:
        return name, "", 0
    if not hardware or not length.isdecimal():
        raise click.BadParameter(f'model "{value}" is invalid (example: org/name=NVIDIA_H100_1:32768)')
    return name, hardware, int(length)


def _group_models(
    _context: click.Context, _option: click.Parameter, values: tuple[tuple[str, str, int], ...]
) -> dict[str, dict[str, int] | None]:
    """Collect the hardware of each model. The value is None for all hardware."""
    models: dict[str, dict[str, int] | None] = {}
    for name, hardware, length in values:
        known = models.get(name, {})
        if known is None or hardware in known or (known and not hardware):
            raise click.BadParameter(f'model "{name}" is specified twice for the same hardware')
        models[name] = {**known, hardware: length} if hardware else None
    return models


@cli_command(
    examples=(
        "cortecs-async emulator",
        "cortecs-async emulator --port 0 --model org/name --capacity NVIDIA_H100_1=2",
    )
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8808, help="Port to listen on; 0 picks a free one."
)
@click.option(
    "--step-seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    help="Duration of each of the five startup steps, in seconds.",
)
@click.option(
    "--stop-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Time an instance takes to stop, in seconds.",
)
@click.option(
    "--answer-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Time an instance takes for each answer, in seconds.",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    help="Maximum requests an instance handles in parallel; the rest wait.",
)
@click.option(
    "--endpoint-lag",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Time for which the endpoint of a running instance still returns 502, in seconds.",
)
@click.option(
    "--list-lag",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Delay before changes appear in lists, in seconds.",
)
@click.option(
    "--clock-skew",
    default=0.0,
    help="Offset of the service's clock, in seconds (negative: behind).",
)
@click.option("--balance", default=1000.0, help="Balance of the account, in EUR.")
@click.option(
    "--capacity",
    type=_parse_capacity,
    metavar="HARDWARE=SETS",
    multiple=True,
    help="Number of GPU sets of a hardware type; repeatable.",
)
@click.option(
    "--model",
    "models",
    type=_parse_model,
    metavar="NAME[=HARDWARE:LENGTH]",
    multiple=True,
    callback=_group_models,
    help="Add a model, on all hardware or on HARDWARE with a maximum context of LENGTH tokens; repeatable.",
)
@click.option(
    "--allow-remote", is_flag=True, help="Allow an address that other machines can reach without encryption."
)
def emulator(
    *, host: str, port: int, capacity: tuple[tuple[str, int], ...], allow_remote: bool, **options: Any
) -> None:
    """Serve an emulated cortecs.ai until Ctrl-C.

    Prints the `export` lines that connect a client to it. Copy them into another terminal.
    """
    emulation = import_optional("cortecs_async.emulator", "emulator")

    def announce(ready: Emulator) -> None:
        for name, value in ready.env().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(
            "# The emulator is running with made-up prices, models, and answers. Press Ctrl-C to stop it.",
            err=True,
        )

    try:
        emulation.run_emulator(
            emulation.Emulator(capacity=dict(capacity) or None, **options),
            host=host,
            port=port,
            allow_remote=allow_remote,
            on_ready=announce,
        )
    except OSError as error:
        raise click.ClickException(_cannot_listen(host, port, error)) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use. Pass another --port, or 0 to pick a free one."
    if error.errno == errno.EACCES:
        advice = "Pass --port with a number above 1023, or 0 to pick a free one."
        return f"Permission denied for port {port}. {advice}"
    return f"Cannot listen on {host}, port {port}: {error.strerror or error}. Check --host and --port."
