"""``reprobox run``: a command in the box, seeded and recorded."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import human_size, say, silent
from reprobox.cli.recipe import knob_table, knobs
from reprobox.engines import EngineName, ImageInfo, open_engine
from reprobox.errors import GpuError, ImageNotFound, UsageError
from reprobox.gpus import GpuRequest, Inventory, allocation, take_inventory
from reprobox.project import Project
from reprobox.runs.execute import Output, execute
from reprobox.runs.images import choose_image
from reprobox.runs.interrupts import Interrupts
from reprobox.runs.manifest import first_manifest
from reprobox.runs.options import parse_env_file, parse_environment, parse_name, parse_volume
from reprobox.runs.plan import RunPlan, RunRequest, make_plan
from reprobox.runs.store import RunStore, new_run_id
from reprobox.settings import Origin, Settings, switch_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from reprobox.engines import Engine
    from reprobox.gpus import Gpu

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND [ARG]...", help="What to run, left exactly as it is.")
    ],
    gpus: Annotated[str | None, typer.Option("--gpus", help="all, none, indices (0,1) or UUIDs.")] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", help="Base seed, 0 to 4294967295; drawn and said without it.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="strict (default), warn, fast or off.")] = None,
    threads: Annotated[str | None, typer.Option("--threads", help="CPU threads per op; 4 on every machine.")] = None,
    rank_seeds: Annotated[str | None, typer.Option("--rank-seeds", help="offset (seed + rank) or same.")] = None,
    fill: Annotated[
        bool | None, typer.Option("--fill/--no-fill", help="Fill uninitialised memory (default), or not: faster.")
    ] = None,
    portable: Annotated[
        bool | None,
        typer.Option("--portable/--no-portable", help="Pin the CPU instruction set, so that CPU models agree."),
    ] = None,
    force_seed: Annotated[
        bool | None,
        typer.Option("--force-seed/--no-force-seed", help="Fold the program's own seeds into this one."),
    ] = None,
    volume: Annotated[list[str] | None, typer.Option("-v", "--volume", help="SOURCE:TARGET[:ro].")] = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", help="NAME=VALUE, or NAME to pass yours on.")] = None,
    env_file: Annotated[list[Path] | None, typer.Option("--env-file", help="A file of NAME=VALUE lines.")] = None,
    workdir: Annotated[str | None, typer.Option("-w", "--workdir", help="Working directory in the box.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Image to run; reprobox's own by default.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The container's name.")] = None,
    shm_size: Annotated[
        str | None, typer.Option("--shm-size", help="Size of /dev/shm; half of RAM by default.")
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="bridge (default), none, host or a network.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="docker (default) or local.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would happen, and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr.")] = False,
) -> int:
    """Run COMMAND in the box: seeded, fixed, recorded. Its output and exit code are passed through.

    The project folder (nearest with reprobox.toml, [tool.reprobox] or .git) is mounted at /workspace.
    """
    if as_json and not dry_run:
        raise UsageError("run has no --json of its own: stdout belongs to the command", remedy="add --dry-run")
    project = Project.find(Path())
    flags = {
        "gpus": gpus,
        "seed": seed,
        "profile": profile,
        "threads": threads,
        "rank_seeds": rank_seeds,
        "fill": switch_text(fill),
        "portable": switch_text(portable),
        "force_seed": switch_text(force_seed),
        "image": image,
        "shm_size": shm_size,
        "network": network,
        "engine": engine,
        "quiet": "on" if quiet else None,
    }
    settings = Settings.load(flags, project.root)
    recipe = settings.recipe()
    entries = [line for path in env_file or [] for line in parse_env_file(path)] + (env or [])
    tell = silent if settings.value("quiet") else say
    engine_name: EngineName = settings.value("engine")
    gpu_request: GpuRequest | None = settings.value("gpus")
    mounts = tuple(parse_volume(text, project.directory) for text in volume or [])
    environment = parse_environment(entries, os.environ)
    checked_name = None if name is None else parse_name(name)

    inventory = take_inventory()
    chosen = gpu_request.resolve(inventory, os.environ) if gpu_request else allocation(inventory, os.environ)
    backend = open_engine(engine_name)
    reference, found = _image_for(backend, settings, chosen, asked=gpu_request is not None, tell=tell)
    if engine_name is not EngineName.LOCAL and chosen and not _is_cuda(found):
        if gpu_request is not None:
            raise GpuError(
                f"--gpus {gpu_request.text} was asked for, and {reference} computes on the CPU alone",
                remedy="choose a cuda image, or --gpus none",
            )
        chosen = ()
    request = RunRequest(
        command=tuple(command),
        recipe=recipe,
        engine=engine_name,
        project=project,
        image=reference,
        directory=workdir,
        name=checked_name,
        mounts=mounts,
        environment=environment,
        network=None if network is None and engine_name is EngineName.LOCAL else settings.value("network"),
        shm_bytes=settings.value("shm_size") if shm_size or engine_name is not EngineName.LOCAL else None,
        gpus=chosen,
        gpus_were_asked_for=gpu_request is not None,
        quiet=settings.value("quiet"),
    )
    store = RunStore(project.root)
    run_id = new_run_id()
    plan = make_plan(request, run_id, store.folder / run_id, found)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return 0
    with Interrupts(tell) as interrupts:
        answering = backend.info()
        manifest = first_manifest(plan, answering, chosen, inventory.driver)
        record = store.create(run_id)
        _introduce(plan, chosen, inventory, gpu_request, tell)
        return execute(plan, backend, record, manifest, Output(), interrupts, tell)


def _image_for(
    backend: Engine,
    settings: Settings,
    gpus: tuple[Gpu, ...],
    *,
    asked: bool,
    tell: Callable[[str], None],
) -> tuple[str | None, ImageInfo | None]:
    """Return the image to run; where there are GPUs that nobody asked for, the CPU image will do, and that is said."""
    given = settings.resolve("image")
    if not backend.isolates:
        # Only what was typed for this run is worth refusing; a project's image is for its other runs.
        return (given.value if given.origin is Origin.FLAG else None), None
    try:
        return choose_image(backend, given.value, "cuda" if gpus else "cpu")
    except ImageNotFound:
        if asked or not gpus or given.value is not None:
            raise
        found = choose_image(backend, None, "cpu")
        tell("this machine has GPUs and only the CPU image is built; `reprobox build --variant cuda` builds the other")
        return found


def _print_plan(plan: RunPlan, *, as_json: bool) -> None:
    document = plan.to_json()
    if as_json:
        print(json.dumps({**document, "knobs": knobs(plan.recipe)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key in ("engine", "image", "command", "directory", "user", "mounts", "network", "shm_bytes", "gpus"):
        value = document[key]
        table.add_row(key, Text(shlex.join(value) if key == "command" else json.dumps(value)))
    console = Console()
    console.print(table)
    console.print(knob_table(plan.recipe))


def _is_cuda(image: ImageInfo | None) -> bool:
    return image is not None and image.labels.get("reprobox.variant", "cuda") == "cuda"


def _introduce(
    plan: RunPlan,
    gpus: tuple[Gpu, ...],
    inventory: Inventory,
    asked: GpuRequest | None,
    tell: Callable[[str], None],
) -> None:
    """Say what will be used that the person may not have chosen."""
    if plan.request.engine is EngineName.LOCAL:
        tell(
            f"run {plan.run_id} on this machine itself: its files, packages, users and network are not isolated, "
            "and only the recipe is applied",
        )
    else:
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
        why = f" ({inventory.missing})" if asked is None and inventory.missing else ""
        tell(
            f"run {plan.run_id} in {plan.request.image}, GPUs {names or 'none' + why}, "
            f"shm {human_size(plan.box.shm_bytes)}, network {plan.box.network}",
        )
    if plan.seed_was_drawn:
        tell(f"no seed was given, so {plan.recipe.seed} was drawn; repeat this run with --seed {plan.recipe.seed}")
    if asked is not None and asked.kind == "devices" and asked.text.isdigit():
        tell(f"--gpus {asked.text} is GPU number {asked.text}; docker would take it for a count")
