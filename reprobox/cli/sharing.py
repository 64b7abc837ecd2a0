"""What ``push``, ``pull``, ``save`` and ``load`` have in common: the engine, the image that is meant, the options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from reprobox.cli.build import Variant
from reprobox.cli.console import say, silent
from reprobox.errors import UsageError
from reprobox.settings import Origin, Settings, switch_text

if TYPE_CHECKING:
    from reprobox.engines import Engine
    from reprobox.engines.store import ImageStore
    from reprobox.engines.transfer import Patience

__all__ = [
    "Sharing",
    "StallOption",
    "Variant",
    "VariantOption",
    "VerboseOption",
    "patience",
    "print_result",
]

LONGEST_STALL_SECONDS = 86400

VariantOption = Annotated[Variant, typer.Option("--variant", help="Which of reprobox's own images.")]
StallOption = Annotated[
    float | None, typer.Option("--stall-timeout", metavar="SECONDS", help="Try again after this long without progress.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show the engine's own output.")]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The engine, the settings and the project's folder that one of these commands works with."""

    engine: Engine
    store: ImageStore
    settings: Settings
    folder: Path

    @classmethod
    def begin(cls, engine: str | None, image: str | None = None, *, quiet: bool = False) -> Sharing:
        """Find the project, resolve its settings and connect to the engine.

        :raises UsageError: a setting is wrong, or the engine is this machine itself, which has no images.
        :raises EngineUnavailable: no engine answers.
        """
        from reprobox.engines import choose_engine, image_store
        from reprobox.project import Project

        folder = Project.find(Path()).root
        flags = {"engine": engine, "image": image, "quiet": switch_text(quiet or None)}
        settings = Settings.load(flags, folder)
        named = settings.resolve("engine")
        silently = silent if settings.value("quiet") else say
        found = choose_engine(named.value, chosen=named.origin is not Origin.DEFAULT, say=silently)
        return cls(engine=found, store=image_store(found), settings=settings, folder=folder)

    @property
    def quiet(self) -> bool:
        """Whether nobody is to be told anything."""
        return bool(self.settings.value("quiet"))

    def image(self, variant: Variant) -> str:
        """Return the image that is meant: one that is named; else the lock's; else this reprobox's own.

        :raises ImageNotFound: the engine does not have it.
        :raises LockError: the lock is damaged.
        """
        from reprobox.cli.supply import default_image
        from reprobox.images.lockfile import LOCK_NAME

        given = self.settings.resolve("image")
        # In a project with a lock, the project file names the repository alone.
        by_lock = given.origin is Origin.PROJECT and (self.folder / LOCK_NAME).exists()
        if not by_lock:
            self.require_trust_of_the_image()
        named: str = given.value if given.value and not by_lock else default_image(self.store, variant, self.folder)
        self.engine.image(named)
        return named

    def require_trust_of_the_image(self) -> None:
        """Refuse an image, or its registry, that the project file alone names, until the person has allowed it.

        :raises UsageError: naming it.
        """
        from reprobox.trust import require_trust, setting_requests

        require_trust(setting_requests(self.settings, ["image"]), self.folder)

    def variant_of(self, image: str) -> str:
        """Return what the image says it computes on; empty where it is no image of reprobox's."""
        return str(self.engine.image(image).labels.get("reprobox.variant", ""))


def patience(stall_seconds: float | None) -> Patience:
    """Return how long a transfer is waited for. :raises UsageError: where the time is none."""
    from reprobox.engines.transfer import Patience

    if stall_seconds is None:
        return Patience()
    if not 0 < stall_seconds <= LONGEST_STALL_SECONDS:
        raise UsageError(f"--stall-timeout cannot be {stall_seconds:g}", remedy="give seconds, up to a day")
    return Patience(stall_seconds=stall_seconds)


class _Result(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def print_result(result: _Result, line: str, *, as_json: bool) -> None:
    """Print ``line``, or the whole document."""
    print(json.dumps(result.to_json(), indent=2) if as_json else line)
