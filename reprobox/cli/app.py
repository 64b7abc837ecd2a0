"""The root command: knows each command's name and help by heart and imports a command's module when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from reprobox import __version__
from reprobox.cli.console import say
from reprobox.errors import ReproboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "run_app"]

COMMANDS = {
    "run": "Run a command in the box, seeded and recorded.",
    "runs": "List and show recorded runs.",
    "recipe": "Show what is seeded and fixed, and why.",
    "build": "Build the image.",
}
"""Every command: the module of this package with its name, and its one-line help."""

UNEXPECTED_EXIT = 125


class _LazyGroup(TyperGroup):
    """Imports the module of a command when it is called; ``--help`` and completion read the table alone."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"reprobox.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}" + (f", did you mean {close[0]}" if close else ""))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="reprobox COMMAND --help says more.",
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback and the engine's answer on a failure.")
    ] = False,
) -> None:
    """Run PyTorch training in a box that gives the same bits every time, and prove it."""
    if version:
        print(f"reprobox {__version__}")
        raise typer.Exit
    context.obj = {"debug": debug}


def run_app(arguments: Sequence[str]) -> int:
    """Parse and run ``arguments``; return the exit code. Every failure ends in one sentence on stderr."""
    debug = "--debug" in arguments[:1]
    try:
        code = app(args=list(arguments), prog_name="reprobox", standalone_mode=False)
    except ReproboxError as error:
        if debug:
            _print_traceback(error.detail)
        _say(str(error))
        return error.exit_code
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        if not message or type(error).__name__ == "NoArgsIsHelpError":
            print(error)
        else:
            _say(f"{message[:1].lower()}{message[1:]}; see {_help_of(error)}")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read our output has stopped; python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if debug:
            _print_traceback(None)
        _say(
            f"reprobox itself failed ({type(error).__name__}: {error}); run it again with `reprobox --debug` and report this"
        )
        return UNEXPECTED_EXIT
    return code if isinstance(code, int) else 0


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "reprobox"
    return f"`{path} --help`"


def _print_traceback(detail: str | None) -> None:
    import traceback

    traceback.print_exc()
    if detail:
        sys.stderr.write(detail.rstrip() + "\n")


def _say(line: str) -> None:
    say(" ".join(line.split()))
