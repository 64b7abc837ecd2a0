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
    from rich.console import RenderableType

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
    table_console().print(knob_list(chosen))


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


def knob_list(recipe: Recipe) -> RenderableType:
    """Return the knobs under ``recipe`` for a person to read: name and value, and below them why, and known from where.

    A list and no table: a reason is a sentence, and a column of it leaves eighty columns no room for the names.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    blocks: list[RenderableType] = [Text(f"the recipe under the profile {recipe.profile}\n")]
    for knob in knobs(recipe):
        value = "(left alone)" if knob["value"] is None else knob["value"]
        why = Text(f"{knob['why']}\n")
        why.append(f"{knob['source']}\n", style="dim")
        blocks += [Text.assemble((str(knob["name"]), "bold"), f" = {value}"), Padding(why, (0, 0, 0, 4), expand=False)]
    return Group(*blocks)


def _value(recipe: Recipe, value: str | None) -> str | None:
    """Return a value that names the seed where there is none yet."""
    return "(the seed)" if recipe.seed is None and value == "None" else value
