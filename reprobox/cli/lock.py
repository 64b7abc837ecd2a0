"""``reprobox lock``: every package of the project's images by content; ``--check`` says whether it still fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.cli.console import BuildConsole, say
from reprobox.cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from reprobox.images.lockmodel import Lock

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_SHOWN = 40


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def lock(
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Take the newest versions that fit.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when project and lock disagree.")
    ] = False,
    allow_sdist: Annotated[
        list[str] | None,
        typer.Option("--allow-sdist", metavar="NAME", help="Take this package's source where it has no wheel."),
    ] = None,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the tools' own output.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Write reprobox.lock: exact versions and hashes of all that the project's images hold."""
    from reprobox.errors import LockDamaged, UsageError
    from reprobox.images.lockfile import LOCK_NAME, read_lock
    from reprobox.images.locking import LockRequest
    from reprobox.project import Project
    from reprobox.settings import load_project_file

    root = Project.find(Path()).root
    path = root / LOCK_NAME
    if check and (upgrade or allow_sdist):
        raise UsageError("--check changes nothing", remedy="leave --upgrade and --allow-sdist out")
    if not check:
        with BuildConsole(verbose=verbose, quiet=quiet) as console:
            return _write(path, allow_sdist or [], console, upgrade=upgrade, as_json=as_json)
    request = LockRequest.of(load_project_file(root), root)
    try:
        found = read_lock(path)
    except LockDamaged as error:
        disagreements = [str(error.message)]
    else:
        from reprobox.images.lockcheck import check_lock

        disagreements = [f"there is no {LOCK_NAME}"] if found is None else check_lock(request, found)
    if as_json:
        print(
            json.dumps(
                {"schema": "reprobox.lock-check/1", "same": not disagreements, "differences": disagreements}, indent=2
            )
        )
    if not quiet:
        for line in disagreements:
            say(line)
        say(f"{LOCK_NAME} has to be written again: reprobox lock" if disagreements else f"{LOCK_NAME} fits the project")
    return 1 if disagreements else 0


def _write(path: Path, allowed: list[str], console: BuildConsole, *, upgrade: bool, as_json: bool) -> int:
    from reprobox.errors import UsageError
    from reprobox.images.artefacts import ArtefactCache, artefact_folder
    from reprobox.images.lockfile import dump_lock, read_lock, write_lock
    from reprobox.images.locking import LockRequest, difference, make_lock
    from reprobox.settings import load_project_file
    from reprobox.trust import index_requests, remember_typed, require_trust, sdist_requests

    old = read_lock(path)
    # What was allowed once by the flag is in the lock, and stays allowed.
    before = old.inputs.sdists if old else ()
    request = LockRequest.of(load_project_file(path.parent), path.parent, allowed=(*before, *allowed))
    typed = set(sdist_requests(allowed))
    require_trust({*sdist_requests(request.sdists), *index_requests(request.requirements.options)} - typed, path.parent)
    cache = ArtefactCache(root=artefact_folder(), say=console.say)
    new = make_lock(request, old, cache=cache, report=console, upgrade=upgrade)
    same = old is not None and dump_lock(old) == dump_lock(new)
    if not same:
        write_lock(path, new)
    if typed:
        try:
            remember_typed(typed, path.parent)
        except UsageError as error:
            console.say(str(error))
    changes = difference(old, new)
    if as_json:
        print(json.dumps(_document(path, new, changes, written=not same), indent=2))
        return 0
    if old is not None:
        for line in changes[:_SHOWN]:
            console.say(line)
        if len(changes) > _SHOWN:
            console.say(f"and {len(changes) - _SHOWN} more")
    counts = f"{len(new.wheels) + len(new.sdists)} Python files, {len(new.debs)} Debian files"
    console.say(f"{path.name} is as it was ({counts})" if same else f"wrote {path.name}: {counts}")
    print(path)
    return 0


def _document(path: Path, lock: Lock, changes: list[str], *, written: bool) -> dict[str, Any]:
    return {
        "schema": "reprobox.lock-result/1",
        "path": str(path),
        "written": written,
        "variants": list(lock.inputs.variants),
        "wheels": len(lock.wheels),
        "sdists": len(lock.sdists),
        "debs": len(lock.debs),
        "missing": [f"{one.name}=={one.version} ({one.variant}, {one.platform})" for one in lock.missing],
        "changes": changes,
    }
