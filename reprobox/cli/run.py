"""``reprobox run`` and ``reprobox shell``: a command, or a shell, in the box, seeded and recorded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.cli.choice import Wanted, choose, gpu_rules, setting_texts
from reprobox.cli.console import cell, raw_say, say, silent, table_console
from reprobox.cli.failures import guarded
from reprobox.cli.flags import FLAGS, RunCommand, takes
from reprobox.cli.recipe import knob_list, knobs
from reprobox.engines import EngineName
from reprobox.errors import UsageError
from reprobox.project import Project
from reprobox.runs.background import in_background
from reprobox.runs.execute import Outside, execute
from reprobox.runs.interrupts import Interrupts
from reprobox.runs.manifest import first_manifest
from reprobox.runs.plan import RunPlan, RunRequest, make_plan
from reprobox.runs.redaction import redacted_words
from reprobox.runs.request import parse_pull, parse_request
from reprobox.runs.store import RunStore, new_run_id
from reprobox.runs.streams import Output
from reprobox.settings import Origin, Settings
from reprobox.sizes import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reprobox.cli.choice import Choice

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_CONTEXT = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


@app.command(cls=RunCommand, context_settings=_CONTEXT)
@takes(FLAGS)
def run(
    context: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND [ARG]...", help="What to run, left exactly as it is.")
    ],
    values: Mapping[str, Any],
) -> int:
    """Run COMMAND in the box: seeded, fixed, recorded. Its output and exit code are passed through.

    The project folder (nearest with reprobox.toml, [tool.reprobox] or .git) is mounted at /workspace.
    """
    return launch(tuple(command), values, debug=bool((context.obj or {}).get("debug")))


def launch(command: tuple[str, ...], values: Mapping[str, Any], *, debug: bool) -> int:
    """Carry out a command line of ``run``; return the exit code to end with."""
    if values["json"] and not values["dry_run"]:
        raise UsageError("run has no --json of its own: stdout belongs to the command", remedy="add --dry-run")
    project = Project.find(Path())
    settings = Settings.load(setting_texts(values), project.root)
    given = [flag for flag in FLAGS if values[flag.dest] not in (None, [], False)]
    request = parse_request(
        command,
        values,
        settings,
        project,
        tuple(f"--{flag.dest.replace('_', '-')}" for flag in given if flag.container),
    )
    if settings.has_file:
        _require_trust(settings, request)
    tell = _teller(request)
    # A project file may ask for silence, and does not get it where a person has to know.
    warn = _teller(replace(request, quiet=request.quiet and settings.resolve("quiet").origin is not Origin.PROJECT))
    wanted = Wanted(
        run_id=new_run_id(),
        pull=parse_pull(values["pull"]),
        platform=request.options.platform,
        rules=gpu_rules(values),
        claim=not values["dry_run"],
        signature=values["signature"],
        project=project.root,
        command=shlex.join(redacted_words(command, request.secrets.values())),
    )
    with choose(settings, wanted, tell) as choice:
        request = replace(
            request,
            engine=EngineName(choice.engine.name),
            image=choice.reference,
            gpus=choice.gpus,
            gpus_were_asked_for=choice.asked is not None,
            keep_open=() if choice.claim is None else (choice.claim.fileno(),),
        )
        store = RunStore(project.root)
        folder = store.folder / wanted.run_id
        plan = make_plan(request, wanted.run_id, folder, choice.image, choice.inventory.driver)
        if values["dry_run"]:
            _print_plan(plan, as_json=values["json"])
            return 0
        return _carried_out(plan, choice, store, tell, warn, debug=debug)


def _require_trust(settings: Settings, request: RunRequest) -> None:
    """Refuse what this run would follow of what the project asks for beyond its folder, unless it was allowed."""
    from reprobox.trust import mount_request, require_trust, setting_requests  # many project files ask for nothing

    root = request.project.root
    if request.engine is EngineName.LOCAL:
        require_trust(setting_requests(settings, ["engine"]), root)
        return
    mounts = [mount_request(text, mount, root) for text, mount in request.mounts_of_the_file]
    followed = setting_requests(settings, ["image", "network", "shm_size"])
    require_trust([*followed, *(one for one in mounts if one is not None)], root)


def _carried_out(
    plan: RunPlan,
    choice: Choice,
    store: RunStore,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
    *,
    debug: bool,
) -> int:
    """Carry the plan out, here or, detached, in a process of its own, which then minds the claim as well."""

    def carry_out(started: Callable[[], None] | None = None) -> int:
        with Interrupts(tell) as interrupts:
            manifest = first_manifest(plan, choice.engine.info(), choice.inventory)
            record = store.create(plan.run_id)
            _introduce(plan, choice, tell, warn)
            stdout = 1 if started is None else os.open(os.devnull, os.O_WRONLY)
            output = Output(stdout, ends_the_command=True, lets_go=started is not None)
            outside = Outside(interrupts=interrupts, say=tell, warn=warn, output=output, started=started)
            return execute(plan, choice.engine, record, manifest, outside)

    if not plan.request.detached:
        return carry_out()

    def minded(started: Callable[[], None]) -> int:
        with choice.claim or contextlib.nullcontext():
            return guarded(lambda: carry_out(started), debug=debug)

    code = in_background(minded)
    if choice.claim is not None:
        choice.claim.leave()
    if code == 0:
        print(plan.run_id)
    return code


def _teller(request: RunRequest) -> Callable[[str], None]:
    if request.quiet:
        return silent
    if request.terminal and request.stdin and not request.detached:
        return raw_say
    return say


def _print_plan(plan: RunPlan, *, as_json: bool) -> None:
    document = plan.to_json()
    if as_json:
        print(json.dumps({**document, "knobs": knobs(plan.recipe)}, indent=2))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key in ("engine", "image", "command", "directory", "user", "mounts", "network", "shm_bytes", "gpus"):
        value = document[key]
        table.add_row(key, cell(shlex.join(value) if key == "command" else json.dumps(value)))
    console = table_console()
    console.print(table)
    console.print()
    console.print(knob_list(plan.recipe))


def _introduce(plan: RunPlan, choice: Choice, tell: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Say what will be used that the person may not have chosen."""
    if plan.request.engine is EngineName.LOCAL:
        warn(
            f"run {plan.run_id} on this machine itself: its files, packages, users and network are not isolated, "
            f"and only the recipe is applied{_which_python(plan)}",
        )
    else:
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in choice.gpus)
        why = f" ({choice.inventory.missing})" if choice.asked is None and choice.inventory.missing else ""
        tell(
            f"run {plan.run_id} in {plan.request.image}, GPUs {names or 'none' + why}, "
            f"shm {human_size(plan.box.shm_bytes)}, network {plan.box.network}",
        )
    if plan.seed_was_drawn:
        tell(f"no seed was given, so {plan.recipe.seed} was drawn; repeat this run with --seed {plan.recipe.seed}")
    asked = choice.asked
    if asked is not None and asked.kind == "devices" and asked.text.isdigit():
        tell(f"--gpus {asked.text} is GPU number {asked.text}; docker would take it for a count")


def _which_python(plan: RunPlan) -> str:
    """Say which Python a command on this machine is, where it is one by name alone."""
    program = plan.box.command[0]
    if not re.fullmatch(r"python[0-9.]*", program):
        return ""
    found = shutil.which(program, path={**os.environ, **plan.box.environment}.get("PATH"))
    return f"; {program} is {found}" if found else ""
