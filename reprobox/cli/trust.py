"""``reprobox trust``: what the project asks for beyond its own folder, shown and allowed on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import printable, say, silent
from reprobox.cli.options import JsonOption, QuietOption
from reprobox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reprobox.trust import Request, Trusted

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def trust(
    print_hash: Annotated[
        bool, typer.Option("--print", help="Print the list's hash for REPROBOX_TRUST, and allow nothing here.")
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Show what you have allowed, of every project.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Take back what you have allowed this project.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what the project asks for beyond its own folder, and allow it on this machine.

    A list that changes has to be allowed again.
    """
    from reprobox.project import Project
    from reprobox.trust import Trusted

    if [print_hash, list_all, forget].count(True) > 1:
        raise UsageError("--print, --list and --forget exclude one another", remedy="give one of them")
    tell = silent if quiet else say
    if list_all:
        _list_all(as_json=as_json)
        return
    trusted = Trusted.read(Project.find(Path()).root)
    if forget:
        tell(
            f"nothing is allowed {trusted.root} any more" if trusted.forget() else f"nothing was allowed {trusted.root}"
        )
    else:
        _show(trusted, tell, as_json=as_json, print_hash=print_hash)


def _show(trusted: Trusted, tell: Callable[[str], None], *, as_json: bool, print_hash: bool) -> None:
    """Print what the project asks for, and allow it unless only its hash is wanted."""
    from reprobox.trust import digest_of, requests_of

    listed = requests_of(trusted.root)
    digest = digest_of(listed)
    if listed and not print_hash:
        trusted.lists[digest] = list(listed)
        trusted.keep()
    if as_json:
        document = {"project": str(trusted.root), "hash": digest, "requests": _pairs(listed)}
        print(json.dumps({"schema": "reprobox.trust-list/1", **document}, indent=2))
    elif print_hash:
        for request in listed:
            tell(str(request))
        print(digest)
    else:
        for request in listed:
            print(printable(str(request)))
        tell(_verdict(trusted.root, len(listed)))


def _verdict(root: Path, count: int) -> str:
    if count == 0:
        return f"{root} asks for nothing beyond the project"
    return f"allowed {root} the {count} above; `reprobox trust --forget` takes it back"


def _list_all(*, as_json: bool) -> None:
    from reprobox.trust import Trusted

    every = Trusted.every()
    if as_json:
        projects = [
            {
                "project": str(one.root),
                "lists": [{"hash": digest, "requests": _pairs(listed)} for digest, listed in one.lists.items()],
                "typed": _pairs(one.typed),
            }
            for one in every
        ]
        print(json.dumps({"schema": "reprobox.trusted/1", "projects": projects}, indent=2))
        return
    for one in every:
        for digest, listed in one.lists.items():
            print(printable(f"{one.root} {digest}: {', '.join(map(str, listed))}"))
        if one.typed:
            print(printable(f"{one.root} typed: {', '.join(map(str, one.typed))}"))


def _pairs(requests: Iterable[Request]) -> list[dict[str, str]]:
    return [{"key": one.key, "value": one.value} for one in requests]
