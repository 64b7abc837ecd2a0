"""The root command: knows each command's name and help by heart and imports a command's module when it is used."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from reprobox import __version__
from reprobox.cli.failures import guarded
from reprobox.stopping import signals_raise

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "run_app"]

COMMANDS = {
    "run": "Run a command in the box, seeded and recorded.",
    "shell": "Open a shell in the box.",
    "gpus": "Show the GPUs, and who has them.",
    "doctor": "Look for what keeps runs from working here.",
    "selftest": "Prove that this machine gives the same bits.",
    "runs": "List recorded runs; show, follow, stop or remove one.",
    "recipe": "Show what is seeded and fixed, and why.",
    "trust": "Allow what the project asks for beyond its folder.",
    "init": "Write a project file with every key explained.",
    "lock": "Fix every package of the project's image by hash.",
    "fetch": "Fetch what the lock names, so that a build needs no network.",
    "build": "Build the image.",
    "push": "Push an image to a registry.",
    "pull": "Pull an image from a registry.",
    "save": "Save an image to one file.",
    "load": "Load an image from a saved file.",
    "sbom": "List the packages in an image (CycloneDX).",
    "provenance": "Say what an image was made of (SLSA).",
    "sign": "Sign an image, or check its signature.",
}
"""Every command: the module of this package with its name, and its one-line help."""


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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0].startswith("-") or ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        # A command at once: typer would import pydantic, a tenth of a short run, to find our own options unset.
        ctx.params = {"version": False, "debug": False}
        ctx._protected_args, ctx.args = args[:1], args[1:]  # noqa: SLF001  # as the base class leaves them
        return list(ctx.args)

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

    def work() -> object:
        with signals_raise():
            return app(args=list(arguments), prog_name="reprobox", standalone_mode=False)

    return guarded(work, debug="--debug" in arguments[:1])
