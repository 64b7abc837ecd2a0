"""The environment of a command: what of the recipe is set before its process starts.

The entrypoint imports this, and the hook where no entrypoint ran, so it is quick to import.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from reprobox.errors import RecipeError
from reprobox.knobs import KNOBS
from reprobox.recipe import Profile, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPE_VARIABLE = "_REPROBOX_RECIPE"
"""Where the hook of every process finds the recipe (``hook.VARIABLE``)."""

KNOB_WORD = "env."
"""What the words of the recipe begin with that say which environment a process is to find (``receipt.KNOB_WORD``)."""

SITE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "site")
"""The folder that has the hook's ``sitecustomize``, first on the path of every Python."""


def box_environment(
    environment: Mapping[str, str],
    recipe: Recipe,
    image_environment: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """Return the command's environment, and what a person should be told about it.

    A knob that still has the image's value, or none, gets the recipe's; a caller's own value wins and is told.

    :raises RecipeError: under *strict*, for a caller's value that breaks determinism.
    """
    result = dict(environment)
    notes = []
    for knob in KNOBS:
        if knob.acts != "environment":
            continue
        wanted = knob.value(recipe)
        present = environment.get(knob.name)
        if present is None or present in (wanted, image_environment.get(knob.name)):
            if wanted is None:
                result.pop(knob.name, None)
            else:
                result[knob.name] = wanted
        elif wanted is not None:
            if recipe.profile is Profile.STRICT and knob.breaks_determinism(present):
                raise RecipeError(
                    f"{knob.name}={present} breaks determinism, which the profile strict promises ({knob.why})",
                    remedy=f"unset it, give {knob.allowed_text}, or choose another profile",
                )
            notes.append(f"{knob.name}={present} is yours and stays; the recipe would set {wanted}")
    result.update(recipe.to_variables())
    words = {**recipe.to_words(), **_knob_words(result)}
    result[RECIPE_VARIABLE] = " ".join(f"{key}={value}" for key, value in words.items())
    path = [SITE, *(p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and p != SITE)]
    result["PYTHONPATH"] = os.pathsep.join(path)
    return result, notes


def _knob_words(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a process is to find in its environment, for the receipt of one that finds something else."""
    present = {k.name: environment.get(k.name) for k in KNOBS if k.acts == "environment"}
    return {KNOB_WORD + name: value for name, value in present.items() if value and not re.search(r"\s", value)}


def announcement(recipe: Recipe, environment: Mapping[str, str], seed_note: str = "") -> str:
    """Return the line that says what is in force; ``seed_note`` follows the seed."""
    if recipe.profile is Profile.OFF:
        return "profile off: nothing is seeded or fixed"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = environment.get("OMP_NUM_THREADS", str(recipe.threads))
    fewer = f" on {cores} core{'s' if cores > 1 else ''}" if threads.isdigit() and cores < int(threads) else ""
    parts = [f"seed {recipe.seed}{seed_note}", f"profile {recipe.profile}", f"{threads} threads{fewer}"]
    parts += ["the same seed on every rank"] if recipe.rank_seeds == "same" else []
    parts += ["no fill"] if not recipe.fill and recipe.profile is not Profile.FAST else []
    parts += ["portable"] if recipe.portable else []
    parts += ["bits may differ under fast"] if recipe.profile is Profile.FAST else []
    return ", ".join(parts)
