"""``reprobox recipe``: what is seeded and fixed, with the reason and the source of each knob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import table_console
from reprobox.cli.options import JsonOption
from reprobox.knobs import KNOBS
from reprobox.project import Project
from reprobox.recipe import Recipe
from reprobox.settings import Settings, switch_text

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def recipe(
    profile: Annotated[str | None, typer.Option("--profile", help="strict (default), warn, fast or off.")] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="Base seed, 0 to 4294967295.")] = None,
    threads: Annotated[str | None, typer.Option("--threads", help="CPU threads per op; 4 on every machine.")] = None,
    rank_seeds: Annotated[str | None, typer.Option("--rank-seeds", help="offset (seed + rank) or same.")] = None,
    fill: Annotated[bool | None, typer.Option("--fill/--no-fill", help="Fill uninitialised memory, or not.")] = None,
    portable: Annotated[
        bool | None, typer.Option("--portable/--no-portable", help="Pin the CPU instruction set.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every knob of the recipe: its value, where it acts, why it is turned and where that is known from."""
    flags = {
        "profile": profile,
        "seed": seed,
        "threads": threads,
        "rank_seeds": rank_seeds,
        "fill": switch_text(fill),
        "portable": switch_text(portable),
    }
    chosen = Settings.load(flags, Project.find(Path()).root).recipe()
    if as_json:
        print(json.dumps({"schema": "reprobox.recipe/1", **chosen.to_json(), "knobs": knobs(chosen)}, indent=2))
        return
    table_console().print(knob_table(chosen))


def knobs(recipe: Recipe) -> list[dict[str, str | None]]:
    """Return the knob table under ``recipe``, one entry a knob; ``value`` is ``None`` where it is left alone."""
    return [
        {
            "name": knob.name,
            "value": _value(recipe, knob.value(recipe)),
            "acts": knob.acts,
            "why": knob.why,
            "source": knob.source,
        }
        for knob in KNOBS
    ]


def knob_table(recipe: Recipe) -> Table:
    """Return the knob table under ``recipe`` for a person to read."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=f"the recipe under the profile {recipe.profile}", title_justify="left")
    table.add_column("knob", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("why, and where that is known from", overflow="fold", ratio=1)
    for knob in knobs(recipe):
        value = "(left alone)" if knob["value"] is None else knob["value"]
        why = Text(f"{knob['why']}\n")
        why.append(str(knob["source"]), style="dim")
        table.add_row(Text(str(knob["name"])), Text(value), why)
    return table


def _value(recipe: Recipe, value: str | None) -> str | None:
    """Return a value that names the seed where there is none yet."""
    return "(the seed)" if recipe.seed is None and value == "None" else value
