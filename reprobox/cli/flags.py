"""The options of ``run`` and ``shell``: one table, from which the commands, their help and their values are made."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from reprobox.runs.docker_flags import DOCKER_FLAGS
from reprobox.runs.refused_flags import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FLAGS", "GPU_FLAGS", "Flag", "RunCommand", "takes"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option.

    ``names`` is what is typed; a switch (no ``metavar``) with an opposite has it behind a slash. ``many`` may be given
    again and again. ``container`` says that only a container can follow it: the local engine refuses it.
    """

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    many: bool = False
    group: str = "This run"
    container: bool = False

    @property
    def dest(self) -> str:
        """Name of the value: that of the first long name, ``cpuset_cpus`` for ``--cpuset-cpus``."""
        long = next(name for name in self.names if name.startswith("--"))
        return long.partition("/")[0].lstrip("-").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """Return the parameter that typer makes the option of; it is ``None`` where the option was not given."""
        kind: Any = bool | None if self.metavar is None else list[str] | None if self.many else str | None
        option = typer.Option(*self.names, help=self.help, metavar=self.metavar, rich_help_panel=self.group)
        return inspect.Parameter(
            self.dest, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
        )


RECIPE, BOX, DOCKER, THIS_RUN = "The recipe", "The box", "As in docker run", "This run"

FLAGS: tuple[Flag, ...] = (
    Flag(names=("--seed",), metavar="N", group=RECIPE, help="Base seed, 0 to 4294967295; drawn and said without it."),
    Flag(names=("--profile",), metavar="P", group=RECIPE, help="strict (default), warn, fast or off."),
    Flag(names=("--threads",), metavar="N", group=RECIPE, help="CPU threads per op; 4 on every machine."),
    Flag(names=("--rank-seeds",), metavar="W", group=RECIPE, help="offset (seed + rank) or same."),
    Flag(names=("--fill/--no-fill",), group=RECIPE, help="Fill uninitialised memory (default), or not: faster."),
    Flag(
        names=("--portable/--no-portable",),
        group=RECIPE,
        help="Pin the CPU instruction set, so that CPU models agree.",
    ),
    Flag(
        names=("--force-seed/--no-force-seed",),
        group=RECIPE,
        help="Fold the program's own seeds into this one.",
    ),
    Flag(
        names=("--self-test",), metavar="WHEN", group=RECIPE, help="auto (unless a certificate holds), always or off."
    ),
    Flag(names=("--gpus",), metavar="G", group=BOX, help="all, none, 0,1, UUIDs, auto, auto:2 or auto:2,mem=20G."),
    Flag(names=("--exclusive",), group=BOX, help="Refuse GPUs that another run or process uses."),
    Flag(names=("--wait-gpus",), group=BOX, help="Wait in line until the GPUs are free."),
    Flag(names=("--gpus-ignore-allocation",), group=BOX, help="Take GPUs outside CUDA_VISIBLE_DEVICES as well."),
    Flag(names=("--engine",), metavar="E", group=BOX, help="docker (podman where there is none), podman or local."),
    Flag(
        names=("--image",),
        metavar="REF",
        group=BOX,
        container=True,
        help="Image to run; reprobox's own by default.",
    ),
    Flag(
        names=("--require-signed",), metavar="KEY.pub", group=BOX, help="Refuse an image that this key has not signed."
    ),
    Flag(names=("--signature",), metavar="FILE", group=BOX, help="Its signature, instead of those of the project."),
    Flag(names=("--pull",), metavar="WHEN", group=BOX, container=True, help="missing (default), always or never."),
    Flag(
        names=("--secret",),
        metavar="NAME[=FILE]",
        many=True,
        group=BOX,
        help="A variable that no record or engine shows.",
    ),
    Flag(
        names=("--cache",),
        metavar="NAME",
        group=BOX,
        container=True,
        help="Keep downloads (HF_HOME, TORCH_HOME) under NAME.",
    ),
    Flag(names=("--writable",), group=BOX, container=True, help="Let the command change the image's own files."),
    Flag(names=("-v", "--volume"), metavar="SOURCE:TARGET[:ro]", many=True, group=BOX, container=True, help="A mount."),
    Flag(
        names=("-e", "--env"),
        metavar="NAME[=VALUE]",
        many=True,
        group=BOX,
        help="A variable; NAME alone passes yours on.",
    ),
    Flag(names=("--env-file",), metavar="FILE", many=True, group=BOX, help="A file of NAME=VALUE lines."),
    Flag(names=("-w", "--workdir"), metavar="DIR", group=BOX, help="Working directory in the box."),
    Flag(names=("--name",), metavar="NAME", group=BOX, container=True, help="The container's name."),
    Flag(
        names=("--shm-size",),
        metavar="SIZE",
        group=BOX,
        container=True,
        help="Size of /dev/shm; half of RAM by default.",
    ),
    Flag(
        names=("--network", "--net"),
        metavar="NET",
        group=BOX,
        container=True,
        help="bridge (default), none, host or a network.",
    ),
    *(
        Flag(names=flag.names, metavar=flag.metavar, many=flag.many, help=flag.help, group=DOCKER, container=True)
        for flag in DOCKER_FLAGS
    ),
    Flag(names=("-i", "--interactive"), group=THIS_RUN, help="Give the command your standard input."),
    Flag(names=("-t", "--tty"), group=THIS_RUN, help="Give the command a terminal: yours."),
    Flag(names=("-d", "--detach"), group=THIS_RUN, help="Print the run's id, and leave it running."),
    Flag(
        names=("--input",), metavar="PATH", many=True, group=THIS_RUN, help="Record the hash of a file before the run."
    ),
    Flag(
        names=("--output",), metavar="PATH", many=True, group=THIS_RUN, help="Record the hash of a file after the run."
    ),
    Flag(names=("--log/--no-log",), group=THIS_RUN, help="Keep the output beside the record (default), or not."),
    Flag(names=("--rm",), group=THIS_RUN, help="Accepted: a box is always removed at its end."),
    Flag(names=("--init",), group=THIS_RUN, help="Accepted: a box always has an init."),
    Flag(names=("--dry-run",), group=THIS_RUN, help="Print what would happen, and run nothing."),
    Flag(names=("--json",), group=THIS_RUN, help="With --dry-run: print the plan as JSON."),
    Flag(names=("-q", "--quiet"), group=THIS_RUN, help="Say nothing on stderr."),
)
"""Every option of ``reprobox run``."""

GPU_FLAGS = ("gpus", "exclusive", "wait_gpus", "gpus_ignore_allocation")
"""Of them, those that choose GPUs."""


def takes(flags: Sequence[Flag]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a typer command the options of ``flags``: it is called with their values as one mapping, ``values``."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        def command(**arguments: Any) -> int:
            values = {flag.dest: arguments.pop(flag.dest) for flag in flags}
            return function(**arguments, values=values)

        function.__annotations__.pop("values", None)  # not typer's to look at
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "values"]
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        command.__signature__ = inspect.Signature([*keywords, *(f.parameter() for f in flags)])  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.__doc__ = function.__doc__
        return command

    return decorate


class RunCommand(TyperCommand):
    """A command whose options are many: grouped in its help, and with the reason where one of Docker's is refused."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return self._parse(ctx, args)
        except typer.TyperException as error:
            refused = refusal(getattr(error, "option_name", ""))
            if refused is None:
                raise
            raise refused from error

    def _parse(self, ctx: Any, args: list[str]) -> list[str]:
        """Take every value as the text it is: typer would import pydantic for it, which costs a third of a short run."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if ctx.resilient_parsing or any(p.is_eager and p.name in given for p in self.get_params(ctx)):
            return super().parse_args(ctx, args)  # --help, and completion
        for parameter in self.params:
            value = given.get(parameter.name)
            if parameter.param_type_name == "argument" and not value:
                return super().parse_args(ctx, args)  # which says what is missing
            ctx.params[parameter.name] = value
        return []

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        del ctx
        takes_command = any(parameter.param_type_name == "argument" for parameter in self.params)
        return ["[OPTIONS]", *(["COMMAND [ARG]..."] if takes_command else [])]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in (RECIPE, BOX, DOCKER, THIS_RUN)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if parameter.param_type_name == "option" else None
            if record is not None:
                groups[getattr(parameter, "rich_help_panel", None) or THIS_RUN].append(record)
        for title, records in groups.items():
            if not records:
                continue
            with formatter.section(title):
                formatter.write_dl(records)
