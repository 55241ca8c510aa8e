"""`cortecs-async emulator`: the embedded emulator on a port of its own."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from .runtime import need

if TYPE_CHECKING:
    from ..emulator import Emulator


class _Capacity(click.ParamType[tuple[str, int]]):
    name = "HARDWARE=SETS"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        hardware, separator, sets = str(value).partition("=")
        if not separator or not hardware or not sets.isdecimal():
            self.fail(f"{value!r} is not of the form NVIDIA_H100_1=4", param, ctx)
        return hardware, int(sets)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8808, show_default=True, help="Port to listen on; 0 picks a free one.")
@click.option(
    "--step-seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Seconds for each of the five steps of a start.",
)
@click.option(
    "--stop-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds a stop takes.",
)
@click.option(
    "--answer-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds an instance works on each inference answer.",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    help="Answers an instance works on at once; more wait. Default: any number.",
)
@click.option("--balance", default=1000.0, show_default=True, help="The account's balance in EUR.")
@click.option(
    "--capacity",
    type=_Capacity(),
    multiple=True,
    help="GPU sets free in total, for one hardware type; can be given again.",
)
@click.option(
    "--allow-remote", is_flag=True, help="Listen beyond this machine, where anybody can reach it unencrypted."
)
def emulator(
    host: str,
    port: int,
    step_seconds: float,
    stop_seconds: float,
    answer_seconds: float,
    parallel: int | None,
    balance: float,
    capacity: tuple[tuple[str, int], ...],
    allow_remote: bool,
) -> None:
    """Serve an emulated cortecs.ai until Ctrl-C.

    Prints the lines that point any client at it, so that `eval "$(cortecs-async emulator ...)"` is not
    needed: copy them into another terminal.
    """
    emulation = need("cortecs_async.emulator", "emulator")

    def announce(ready: Emulator) -> None:
        for name, value in ready.env().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(
            "# the emulator listens; prices, models and answers are made up. Ctrl-C ends it.", err=True
        )

    try:
        emulation.run_emulator(
            emulation.Emulator(
                step_seconds=step_seconds,
                stop_seconds=stop_seconds,
                answer_seconds=answer_seconds,
                parallel=parallel,
                balance=balance,
                capacity=dict(capacity) or None,
            ),
            host=host,
            port=port,
            allow_remote=allow_remote,
            on_ready=announce,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
