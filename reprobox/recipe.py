"""The seed recipe: what reprobox seeds and fixes, under which profile, and why.

A :class:`Recipe` is a handful of values; everything that follows from them is the table in :mod:`reprobox.knobs`. It
travels as environment variables (:data:`VARIABLES`), so the image needs no CLI and the CLI needs no torch.

This module runs on the host and in the box: standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from reprobox.errors import RecipeError, near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "BOX_PROTOCOL",
    "DEFAULT_THREADS",
    "MAX_SEED",
    "RANK_VARIABLES",
    "VARIABLES",
    "WORLD_SIZE_VARIABLES",
    "BoxSettings",
    "Profile",
    "RankSeeds",
    "Recipe",
    "SelfTest",
    "draw_seed",
    "parse_choice",
    "parse_seed",
    "parse_switch",
    "parse_threads",
    "world_size",
]

BOX_PROTOCOL = 2
"""Version of the contract between the CLI and the image; the image carries it as the label ``reprobox.box-protocol``."""

MAX_SEED = 2**32 - 1
"""Largest base seed: numpy's legacy generator and PYTHONHASHSEED take 32 bits, so every generator is given the same."""

DEFAULT_THREADS = 4
"""Intra-op threads on every machine. CPU results depend on this number and not on the cores, so it is a constant."""

MAX_THREADS = 1024


class _Word(str, Enum):
    """A closed set of words that prints as the word (``enum.StrEnum`` came with Python 3.11)."""

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


class Profile(_Word):
    """How much of PyTorch's freedom the recipe takes away."""

    STRICT = "strict"
    WARN = "warn"
    FAST = "fast"
    OFF = "off"


class RankSeeds(_Word):
    """How the seed of a rank follows from the base seed."""

    OFFSET = "offset"
    SAME = "same"


class SelfTest(_Word):
    """When the determinism self-test runs before a command."""

    AUTO = "auto"
    ALWAYS = "always"
    OFF = "off"


RANK_VARIABLES = (
    "RANK",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "JAX_PROCESS_ID",
)
"""Where launchers put the global rank, first match wins: torchrun, Slurm, Open MPI, PMIx, PMI (MPICH), MVAPICH2, JAX."""

WORLD_SIZE_VARIABLES = (
    "WORLD_SIZE",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JAX_NUM_PROCESSES",
)
"""Where the same launchers put the number of ranks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is seeded and fixed.

    :param seed: base seed, 0 to 4294967295; ``None`` while none is chosen yet.
    :param profile: how much is constrained.
    :param rank_seeds: whether rank *r* gets ``(seed + r) mod 2**32`` or the base seed itself.
    :param threads: intra-op CPU threads.
    :param fill: whether uninitialised memory is filled.
    :param portable: whether the CPU instruction set is pinned so that two CPU models can agree.
    :param force_seed: whether the program's own seed calls fold into this recipe's seed.
    """

    seed: int | None = None
    profile: Profile = Profile.STRICT
    rank_seeds: RankSeeds = RankSeeds.OFFSET
    threads: int = DEFAULT_THREADS
    fill: bool = True
    portable: bool = False
    force_seed: bool = False

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with ``seed``."""
        return replace(self, seed=seed)

    def seed_for(self, rank: int) -> int:
        """Return the seed of the generators on global rank ``rank`` (PYTHONHASHSEED stays the base seed)."""
        if self.seed is None:
            raise RecipeError("the recipe has no seed yet", remedy="choose one with with_seed()")
        return self.seed if self.rank_seeds is RankSeeds.SAME else (self.seed + rank) % (MAX_SEED + 1)

    def to_variables(self) -> dict[str, str]:
        """Render to the ``REPROBOX_*`` variables that :meth:`BoxSettings.parse` reads back."""
        variables = {
            "REPROBOX_PROFILE": str(self.profile),
            "REPROBOX_RANK_SEEDS": str(self.rank_seeds),
            "REPROBOX_THREADS": str(self.threads),
            "REPROBOX_FILL": _switch(self.fill),
            "REPROBOX_PORTABLE": _switch(self.portable),
            "REPROBOX_FORCE_SEED": _switch(self.force_seed),
        }
        return variables if self.seed is None else {"REPROBOX_SEED": str(self.seed), **variables}

    def to_words(self, run_dir: str = "") -> dict[str, str]:
        """Return the recipe as the hook reads it: plain strings, with the rank variables it is to look at."""
        words = {k.removeprefix("REPROBOX_").lower(): v for k, v in self.to_variables().items()}
        words["ranks"] = ",".join(RANK_VARIABLES)
        return {**words, "run_dir": run_dir} if run_dir else words

    def to_json(self) -> dict[str, str | int | bool | None]:
        """Return the recipe as it stands in manifests and in ``recipe.json``."""
        return {
            "seed": self.seed,
            "profile": str(self.profile),
            "rank_seeds": str(self.rank_seeds),
            "threads": self.threads,
            "fill": self.fill,
            "portable": self.portable,
            "force_seed": self.force_seed,
        }


@dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """Everything the box reads from its environment: the recipe and how the box itself behaves."""

    recipe: Recipe
    quiet: bool = False
    selftest: SelfTest = SelfTest.AUTO
    run_dir: str | None = None

    @classmethod
    def parse(cls, environment: Mapping[str, str]) -> BoxSettings:
        """Read the ``REPROBOX_*`` variables of ``environment``.

        :raises RecipeError: for a bad value, and for any ``REPROBOX_`` name that :data:`VARIABLES` does not list.
        """
        ours = {name: value for name, value in environment.items() if name.startswith("REPROBOX_")}
        for name in sorted(ours.keys() - VARIABLES.keys()):
            raise RecipeError(
                f"unknown variable {name}{near_miss(name, VARIABLES)}",
                remedy=f"the box knows {', '.join(VARIABLES)}",
            )

        def read(name: str, parse: Callable[[str, str], _T], default: _T) -> _T:
            return parse(ours[name], name) if name in ours else default

        return cls(
            recipe=Recipe(
                seed=parse_seed(ours["REPROBOX_SEED"], "REPROBOX_SEED") if "REPROBOX_SEED" in ours else None,
                profile=Profile(read("REPROBOX_PROFILE", _choice_of(Profile), "strict")),
                rank_seeds=RankSeeds(read("REPROBOX_RANK_SEEDS", _choice_of(RankSeeds), "offset")),
                threads=read("REPROBOX_THREADS", parse_threads, DEFAULT_THREADS),
                fill=read("REPROBOX_FILL", parse_switch, True),
                portable=read("REPROBOX_PORTABLE", parse_switch, False),
                force_seed=read("REPROBOX_FORCE_SEED", parse_switch, False),
            ),
            quiet=read("REPROBOX_QUIET", parse_switch, False),
            selftest=SelfTest(read("REPROBOX_SELFTEST", _choice_of(SelfTest), "auto")),
            run_dir=ours.get("REPROBOX_RUN_DIR") or None,
        )


VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "REPROBOX_SEED": "base seed, 0 to 4294967295; drawn and announced when unset",
        "REPROBOX_PROFILE": "strict, warn, fast or off",
        "REPROBOX_RANK_SEEDS": "offset (seed + global rank) or same",
        "REPROBOX_THREADS": "intra-op CPU threads",
        "REPROBOX_FILL": "on or off: fill uninitialised memory",
        "REPROBOX_PORTABLE": "on or off: pin the CPU instruction set",
        "REPROBOX_FORCE_SEED": "on or off: fold the program's own seed calls into the recipe's seed",
        "REPROBOX_QUIET": "on or off: say nothing on stderr",
        "REPROBOX_SELFTEST": "auto, always or off",
        "REPROBOX_RUN_DIR": "where the box writes what it saw",
    },
)
"""The environment of the box: exactly these names, and what each means."""

_T = TypeVar("_T")


def parse_seed(text: str, name: str = "seed") -> int:
    """Return the base seed ``text`` stands for: decimal digits, 0 to 4294967295.

    :raises RecipeError: for anything else; the message names ``name`` and the range.
    """
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= MAX_SEED:
        return int(text)
    shown = repr(text) if text else "an empty value"
    raise RecipeError(f"{name} cannot be {shown}", remedy=f"give a whole number from 0 to {MAX_SEED}")


def parse_threads(text: str, name: str = "threads") -> int:
    """Return a thread count, 1 to 1024.

    :raises RecipeError: for anything else.
    """
    if re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MAX_THREADS:
        return int(text)
    raise RecipeError(f"{name} cannot be {text!r}", remedy=f"give a whole number from 1 to {MAX_THREADS}")


def parse_switch(text: str, name: str = "switch") -> bool:
    """Return the truth of ``on`` or ``off``.

    :raises RecipeError: for anything else.
    """
    return parse_choice(text, name, ("on", "off")) == "on"


def parse_choice(text: str, name: str, allowed: Iterable[str]) -> str:
    """Return ``text`` if it is one of ``allowed``.

    :raises RecipeError: otherwise, naming the allowed words and the nearest one.
    """
    words = [str(word) for word in allowed]
    if text in words:
        return text
    raise RecipeError(
        f"{name} cannot be {text!r}{near_miss(text, words)}",
        remedy=f"choose one of {', '.join(words)}",
    )


def draw_seed() -> int:
    """Return a seed from the operating system's entropy; whoever draws one announces and records it."""
    return int.from_bytes(os.urandom(4), "little")


def world_size(environment: Mapping[str, str]) -> int:
    """Return the number of ranks the launcher announces in ``environment``, or 1."""
    for name in WORLD_SIZE_VARIABLES:
        value = environment.get(name, "")
        if re.fullmatch(r"[0-9]{1,18}", value):
            return int(value)
    return 1


def _choice_of(words: Iterable[str]) -> Callable[[str, str], str]:
    return lambda text, name: parse_choice(text, name, words)


def _switch(value: bool) -> str:
    return "on" if value else "off"
