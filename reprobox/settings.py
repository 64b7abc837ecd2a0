"""Every setting of the host, declared once: its flag, environment variable, project-file key, default and meaning.

A value is looked for on the command line, then in the environment, then in the project file, and remembers where it was
found, so that an error or ``--dry-run`` can say it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from reprobox.engines import EngineName
from reprobox.errors import RecipeError, UsageError, near_miss
from reprobox.gpus import GpuRequest
from reprobox.project_file import ProjectFile, read_project_table
from reprobox.recipe import (
    DEFAULT_THREADS,
    VARIABLES,
    Profile,
    RankSeeds,
    Recipe,
    SelfTest,
    parse_choice,
    parse_seed,
    parse_switch,
    parse_threads,
)
from reprobox.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "SETTINGS",
    "TRUST_VARIABLE",
    "Origin",
    "Resolved",
    "Setting",
    "Settings",
    "load_project_file",
    "parse_trust",
    "setting_keys",
    "switch_text",
]

TRUST_VARIABLE = "REPROBOX_TRUST"
"""Holds the hash of the list of requests that a person allows a project; see :mod:`reprobox.trust`."""

T = TypeVar("T")


class Origin(StrEnum):
    """Where a value was found, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    PROJECT = "project file"
    DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[T]):
    """A value and where it came from."""

    value: T
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T]):
    """One setting. ``parse`` takes the text and the name it was given under, and raises a RecipeError or UsageError."""

    name: str
    flag: str
    default: T
    parse: Callable[[str, str], T]
    help: str

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return "REPROBOX_" + self.name.upper()


def _image(text: str, name: str) -> str:
    if not text:
        raise UsageError(f"{name} cannot be empty", remedy="give an image as NAME:TAG or NAME@sha256:DIGEST")
    return text  # its grammar is looked at where it is looked up: docker and podman end with 125 for it, and so do we


def _public_key(text: str, name: str) -> str | None:
    if not text:
        raise UsageError(f"{name} cannot be empty", remedy="give the file of a public key, or off")
    return None if text == "off" else text


def _network(text: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise UsageError(f"{name} cannot be {text!r}", remedy="give bridge, none, host or a network's name")
    return text


SETTINGS: tuple[Setting[Any], ...] = (
    Setting(name="seed", flag="--seed", default=None, parse=parse_seed, help="base seed, 0 to 4294967295"),
    Setting(
        name="profile",
        flag="--profile",
        default=Profile.STRICT,
        parse=lambda text, name: Profile(parse_choice(text, name, Profile)),
        help="strict, warn, fast or off",
    ),
    Setting(
        name="rank_seeds",
        flag="--rank-seeds",
        default=RankSeeds.OFFSET,
        parse=lambda text, name: RankSeeds(parse_choice(text, name, RankSeeds)),
        help="offset (seed + rank) or same",
    ),
    Setting(name="threads", flag="--threads", default=DEFAULT_THREADS, parse=parse_threads, help="CPU threads per op"),
    Setting(name="fill", flag="--fill/--no-fill", default=True, parse=parse_switch, help="fill uninitialised memory"),
    Setting(
        name="portable",
        flag="--portable",
        default=False,
        parse=parse_switch,
        help="pin the CPU instruction set, so that two CPU models can agree",
    ),
    Setting(
        name="force_seed",
        flag="--force-seed",
        default=False,
        parse=parse_switch,
        help="fold the program's own seed calls into the recipe's seed",
    ),
    Setting(
        name="engine",
        flag="--engine",
        default=EngineName.DOCKER,
        parse=lambda text, name: EngineName(parse_choice(text, name, EngineName)),
        help="docker (podman where there is none), podman or local",
    ),
    Setting(name="image", flag="--image", default=None, parse=_image, help="image to run; reprobox's own by default"),
    Setting(
        name="require_signed",
        flag="--require-signed",
        default=None,
        parse=_public_key,
        help="file of the public key that must have signed the image, or off",
    ),
    Setting(
        name="gpus",
        flag="--gpus",
        default=None,
        parse=lambda text, _name: GpuRequest.parse(text),
        help="all, none, 0,1, UUIDs, auto, auto:2 or auto:2,mem=20G; all there are by default",
    ),
    Setting(
        name="shm_size",
        flag="--shm-size",
        default=None,
        parse=parse_size,
        help="size of /dev/shm, such as 8g; half of RAM by default",
    ),
    Setting(
        name="network",
        flag="--network",
        default="bridge",
        parse=_network,
        help="bridge, none, host or a network's name",
    ),
    Setting(
        name="selftest",
        flag="--self-test",
        default=SelfTest.AUTO,
        parse=lambda text, name: SelfTest(parse_choice(text, name, SelfTest)),
        help="auto (unless a certificate holds), always or off",
    ),
    Setting(name="quiet", flag="--quiet", default=False, parse=parse_switch, help="say nothing on stderr"),
)
"""Every setting there is."""

_BY_NAME = {setting.name: setting for setting in SETTINGS}


class Settings:
    """The settings of one command line, each resolved on demand."""

    def __init__(
        self, flags: Mapping[str, str | None], environment: Mapping[str, str], file: Mapping[str, object]
    ) -> None:
        self._flags = flags
        self._environment = environment
        self._file = file
        self.has_file = bool(file)
        """Whether a project file says anything at all."""
        self.project = ProjectFile.parse(file)
        """What the project file says beside settings."""

    @classmethod
    def load(
        cls,
        flags: Mapping[str, str | None],
        project_root: Path,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Take the flags given (``None``: not given), the environment and the project file at ``project_root``.

        :raises UsageError: for a REPROBOX_ variable or a project-file key that no setting has, and for any bad value.
        """
        environment = os.environ if environment is None else environment
        known = {setting.variable for setting in SETTINGS} | VARIABLES.keys() | {TRUST_VARIABLE}
        for name in sorted(environment):
            if name.startswith("REPROBOX_") and name not in known:
                raise UsageError(
                    f"unknown variable {name}{near_miss(name, known)}",
                    remedy=f"unset it; reprobox knows {', '.join(sorted(known))}",
                )
        parse_trust(environment)
        return cls(flags, environment, read_project_table(project_root, setting_keys())).checked()

    @classmethod
    def of_the_file(cls, project_root: Path) -> Settings:
        """Take the project file at ``project_root`` alone. :raises UsageError: for any bad key or value."""
        return cls({}, {}, read_project_table(project_root, setting_keys())).checked()

    def checked(self) -> Settings:
        """Return these settings once every one of them has a value: a bad one is found before anything is done."""
        for setting in SETTINGS:
            self.resolve(setting.name)
        return self

    def resolve(self, name: str) -> Resolved[Any]:
        """Return the value of the setting called ``name`` and its origin.

        :raises UsageError: for a bad value; the message names the flag, variable or key it was given under.
        """
        setting = _BY_NAME[name]
        flag = self._flags.get(name)
        if flag is not None:
            return Resolved(value=_parse(setting, flag, setting.flag.partition("/")[0]), origin=Origin.FLAG)
        if setting.variable in self._environment:
            value = _parse(setting, self._environment[setting.variable], setting.variable)
            return Resolved(value=value, origin=Origin.ENVIRONMENT)
        key = setting.name.replace("_", "-")
        if key in self._file:
            return Resolved(value=_parse(setting, _as_text(self._file[key], setting, key), key), origin=Origin.PROJECT)
        return Resolved(value=setting.default, origin=Origin.DEFAULT)

    def value(self, name: str) -> Any:
        """Return just the value of the setting called ``name``."""
        return self.resolve(name).value

    def recipe(self) -> Recipe:
        """Return the recipe the settings describe; its seed is ``None`` where none was given."""
        return Recipe(**{field.name: self.value(field.name) for field in fields(Recipe)})


def setting_keys() -> list[str]:
    """Return the settings' keys in the project file."""
    return [setting.name.replace("_", "-") for setting in SETTINGS]


def load_project_file(root: Path) -> ProjectFile:
    """Return what the project file at ``root`` says beside settings. :raises UsageError: for any bad key or value."""
    return Settings.of_the_file(root).project


def parse_trust(environment: Mapping[str, str]) -> str | None:
    """Return the hash in ``REPROBOX_TRUST``, or ``None`` where it is not set.

    :raises UsageError: for anything but a hash: a plain yes would let a project's own change allow itself.
    """
    text = environment.get(TRUST_VARIABLE)
    if text is not None and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise UsageError(
            f"{TRUST_VARIABLE} cannot be {text!r}", remedy="give the hash that `reprobox trust --print` prints"
        )
    return text


def switch_text(value: bool | None) -> str | None:
    """Return ``on`` or ``off`` for an on/off flag of the command line, ``None`` where it was not given."""
    if value is None:
        return None
    return "on" if value else "off"


def _parse(setting: Setting[T], text: str, name: str) -> T:
    try:
        return setting.parse(text, name)
    except RecipeError as error:
        raise UsageError(error.message, remedy=error.remedy) from error


def _as_text(value: object, setting: Setting[Any], key: str) -> str:
    """Return a value of the project file as the text that would be typed for it."""
    if isinstance(value, bool):
        if isinstance(setting.default, bool):
            return switch_text(value) or ""
    elif isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= 64):  # all that TOML has
        return str(value)
    raise UsageError(f"{key} cannot be this {type(value).__name__} of the project file", remedy=f"give {setting.help}")
