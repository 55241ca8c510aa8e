"""The appearance of the commands: their groups, their help, and their messages about unknown names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .global_options import GLOBAL_OPTIONS, accept_global_options, apply_global_options
from .options import JSON
from .output import wrap, wrap_errors
from .program import remember_arguments
from .runtime import exit_interrupted
from .suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Rows = Sequence[tuple[str, str]]

# Below this width, the help puts an option's description under its name.
_NARROW = 60

# Command names that people know from other tools.
_OTHER_NAMES = {
    **dict.fromkeys(["list", "instances", "status"], "ls"),
    **dict.fromkeys(["delete", "del", "remove", "destroy", "terminate"], "rm"),
    **dict.fromkeys(["get", "describe", "inspect", "info"], "show"),
    **dict.fromkeys(["create", "launch"], "start"),
    **dict.fromkeys(["kill", "halt"], "stop"),
    **dict.fromkeys(["wait", "logs", "follow"], "watch"),
    **dict.fromkeys(["monitor", "dashboard"], "top"),
    **dict.fromkeys(["gpu", "gpus", "price", "prices"], "hardware"),
    **dict.fromkeys(["credit", "credits"], "balance"),
    **dict.fromkeys(["cost", "spend", "spent", "usage", "billing", "ledger"], "costs"),
    **dict.fromkeys(["clean", "cleanup", "prune", "gc"], "sweep"),
    "check": "doctor",
    "exec": "run",
    "serve": "emulator",
    "mock": "emulator",
}

# Options that a command cannot have, and why.
_MISSING_OPTIONS = dict.fromkeys(
    [("run", "--idle-timeout"), ("start", "--idle-timeout")],
    "No process sees all requests to the instance, so there is no --idle-timeout. Use --max-lifetime.",
)


class _HelpFormatter(click.HelpFormatter):
    """Wraps only at spaces, in the terminal's width. click breaks at hyphens and assumes 50 columns."""

    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        if width is None:
            import shutil  # noqa: PLC0415  (slow to import)

            width = max(min(shutil.get_terminal_size().columns, max_width or 80) - 2, 20)
        super().__init__(indent_increment, width, max_width)

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        paragraphs = re.split(r"\n\s*\n", text.strip())
        wrapped = (wrap(" ".join(each.split()), self.width, indent) for each in paragraphs)
        self.write("\n\n".join(wrapped) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        most = col_max if self.width >= _NARROW else 10
        first_width = min(max(len(name) for name, _ in rows), most) + col_spacing
        indent = " " * self.current_indent
        for name, meaning in rows:
            lines = wrap(meaning, self.width - self.current_indent - first_width).splitlines() or [""]
            fits = len(name) <= first_width - col_spacing
            self.write(f"{indent}{name:{first_width}}{lines[0]}".rstrip() if fits else f"{indent}{name}")
            self.write("\n")
            for line in lines[1:] if fits else lines:
                self.write(f"{indent}{'':{first_width}}{line}\n")


def wrap_example(command: str, width: int) -> list[str]:
    """Split a command into lines that a shell joins again, without breaking a word."""
    lines = wrap(command, width - 2).splitlines() if len(command) > width else [command]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


class _Context(click.Context):
    formatter_class = _HelpFormatter


class Command(click.Command):
    """A command that has examples and tables in its help and accepts the global options.

    Args:
        examples: Two commands to copy.
        tables: More facts for the help: for each title, rows of a name and its meaning.
    """

    context_class = _Context

    def __init__(
        self, *args: Any, examples: Sequence[str], tables: Mapping[str, Rows] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.examples = examples
        self._tables = tables or {}

    @property
    def summary(self) -> str:
        """A one-sentence summary of the command."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the summary, which is never truncated."""
        del limit
        return self.summary

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Explain an option that this command cannot have."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            reason = _MISSING_OPTIONS.get((str(self.name), error.option_name))
            if reason is None:
                raise
            raise click.UsageError(reason, ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Apply the global options and run the command."""
        apply_global_options(ctx)
        return super().invoke(ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the global options too, although a command's help hides them."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  (only for completion)

        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            for each in self._global_options:
                found += [
                    CompletionItem(name, help=each.help) for name in each.opts if name.startswith(incomplete)
                ]
        return found

    @property
    def _global_options(self) -> list[click.Option]:
        """Return the global options that work after this command and are not its own."""
        shown = {name for each in self.params if not getattr(each, "hidden", False) for name in each.opts}
        return [each for each in GLOBAL_OPTIONS if each.name != JSON and shown.isdisjoint(each.opts)]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        for title, rows in self._tables.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        with formatter.section("Examples"):
            for example in self.examples:
                first, *rest = wrap_example(example, formatter.width - 6)
                formatter.write("".join([f"  {first}\n", *(f"      {line}\n" for line in rest)]))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        names = [max(each.opts, key=len) for each in self._global_options]
        formatter.write_paragraph()
        formatter.write_text(f"Options for all commands: {', '.join(names)}. See `cortecs-async help`.")


def cli_command(
    *, examples: Sequence[str], tables: Mapping[str, Rows] | None = None, cls: type[Command] = Command
) -> Callable[[Callable[..., Any]], Command]:
    """Turn a function into a `Command`. Its docstring is the help."""

    def decorate(function: Callable[..., Any]) -> Command:
        name = function.__name__.rstrip("_")
        return click.command(name, cls=cls, examples=examples, tables=tables)(function)

    return decorate


class Listed(NamedTuple):
    """A command that is listed in the help of its group. Its module is loaded only when it is needed.

    Attributes:
        location: Its module and its name in this module, such as "run:run".
        summary: The first paragraph of its docstring.
    """

    location: str
    summary: str


class Group(click.Group):
    """The commands, in groups. A command's module is loaded only when the command or its help is needed.

    Args:
        groups: The title of each group in the help, and the group's commands by name.
    """

    context_class = _Context

    def __init__(self, *args: Any, groups: Mapping[str, Mapping[str, Listed]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._groups = groups
        self._listed = {name: each for group in groups.values() for name, each in group.items()}

    @property
    def summaries(self) -> dict[str, str]:
        """The summaries of all commands by name, in the order of the help."""
        return {name: each.summary for name, each in self._listed.items()}

    def load(self, name: str) -> Command:
        """Load a command."""
        if name not in self.commands:
            module, _, attribute = self._listed[name].location.partition(":")
            command = getattr(importlib.import_module(f".{module}", __package__), attribute)
            accept_global_options(command)
            self.add_command(command)
        command = self.commands[name]
        assert isinstance(command, Command)  # noqa: S101  (for the type checker)
        return command

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*self._listed]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        return self.load(cmd_name) if cmd_name in self._listed else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the names of commands without loading the commands."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  (only for completion)

        commands = sorted(self.summaries.items())
        found = [CompletionItem(name, help=text) for name, text in commands if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        remember_arguments(ctx, args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self._listed or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from .error_help import find_error  # noqa: PLC0415  (only for a mistake)

        # Not for a word such as `journal`, which `find_error` accepts too.
        if name.lower().endswith("error") and (error := find_error(name)):
            explain = f"cortecs-async help {error.__name__}"
            raise click.UsageError(f'"{name}" is an error. To explain it, run `{explain}`.', ctx)
        raise click.UsageError(f'"{name}" is not a command.{did_you_mean(self.suggestions(name))}', ctx)

    def suggestions(self, name: str) -> list[str]:
        """Return the commands that a wrong name may mean, best first."""
        known = _OTHER_NAMES.get(name.lower())
        return [known] if known else nearest(name, self._listed)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with wrap_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        # Ctrl-C while no event loop is running. click itself would exit with 1.
        try:
            with wrap_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            exit_interrupted()
        except click.Abort as abort:
            click.echo(err=True)  # the cursor is still on the question's line
            if isinstance(abort.__context__, EOFError):
                command = self.commands.get(ctx.invoked_subcommand or "")
                has_yes = command is not None and any(each.name == "yes" for each in command.params)
                advice = " Pass --yes to skip the question." if has_yes else ""
                raise click.ClickException(f"Standard input closed before you answered.{advice}") from None
            exit_interrupted()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, commands in self._groups.items():
            with formatter.section(title):
                formatter.write_dl([(name, each.summary) for name, each in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        formatter.write_paragraph()
        formatter.write_text(
            "These options also work after the command. For a command's examples and options, run "
            "`cortecs-async help COMMAND`."
        )
