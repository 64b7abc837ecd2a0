"""What a command works with: the engine, the image and the GPUs that flags, settings and this machine come to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprobox.cli.console import say
from reprobox.engines import Engine, ImageInfo, choose_engine
from reprobox.errors import GpuError, ImageNotFound
from reprobox.gpus import Gpu, GpuRequest, Inventory, allocation, take_inventory
from reprobox.project import Project
from reprobox.runs.images import choose_image
from reprobox.runs.options import parse_env_file, parse_environment
from reprobox.runs.request import Pull, parse_pull
from reprobox.selftest.proof import Subject
from reprobox.settings import SETTINGS, Origin, Settings, switch_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Choice", "choose", "find_subject", "setting_texts"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine, an image (``None`` on the local engine) and GPUs, and what was asked for of them."""

    engine: Engine
    reference: str | None
    image: ImageInfo | None
    gpus: tuple[Gpu, ...]
    inventory: Inventory
    asked: GpuRequest | None


def choose(settings: Settings, pull: Pull, platform: str | None, tell: Callable[[str], None]) -> Choice:
    """Look up what ``settings`` ask for.

    :raises ReproboxError: where it is not there: a GPU that was asked for never becomes a run on the CPU.
    """
    asked: GpuRequest | None = settings.value("gpus")
    inventory = take_inventory()
    gpus = asked.resolve(inventory, os.environ) if asked else allocation(inventory, os.environ)
    engine = settings.resolve("engine")
    backend = choose_engine(engine.value, chosen=engine.origin is not Origin.DEFAULT, say=tell)
    reference, found = _image_for(
        backend, settings, gpus, asked=asked is not None, pull=pull, platform=platform, tell=tell
    )
    if backend.isolates and gpus and not _is_cuda(found):
        if asked is not None:
            raise GpuError(
                f"--gpus {asked.text} was asked for, and {reference} computes on the CPU alone",
                remedy="choose a cuda image, or --gpus none",
            )
        gpus = ()
    return Choice(engine=backend, reference=reference, image=found, gpus=gpus, inventory=inventory, asked=asked)


def find_subject(values: Mapping[str, Any]) -> Subject:
    """Return what a self-test with these flags is of."""
    project = Project.find(Path())
    settings = Settings.load(setting_texts(values), project.root)
    choice = choose(settings, parse_pull(values.get("pull")), None, say)
    entries = [line for path in values["env_file"] or [] for line in parse_env_file(Path(path))]
    return Subject(
        engine=choice.engine,
        image=choice.image,
        recipe=settings.recipe(),
        gpus=choice.gpus,
        driver=choice.inventory.driver,
        environment=parse_environment([*entries, *(values["env"] or [])], os.environ),
        hides_gpus=choice.engine.isolates or choice.asked is not None,
    )


def setting_texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what was typed of the settings, each as a text: a setting may come from a variable or a file as well."""
    texts = {}
    for setting in SETTINGS:
        value = values.get(setting.name)
        value = values.get("self_test") if setting.name == "selftest" else value
        texts[setting.name] = switch_text(value) if isinstance(value, bool) else value
    if values.get("quiet") is False:
        texts["quiet"] = None
    return texts


def _image_for(
    backend: Engine,
    settings: Settings,
    gpus: tuple[Gpu, ...],
    *,
    asked: bool,
    pull: Pull,
    platform: str | None,
    tell: Callable[[str], None],
) -> tuple[str | None, ImageInfo | None]:
    """Return the image to run; where there are GPUs that nobody asked for, the CPU image will do, and that is said."""
    given = settings.resolve("image")
    fetch = partial(choose_image, backend, pull=pull, platform=platform, say=tell)
    if not backend.isolates:
        # Only what was typed for this run is worth refusing; a project's image is for its other runs.
        return (given.value if given.origin is Origin.FLAG else None), None
    try:
        return fetch(given.value, "cuda" if gpus else "cpu")
    except ImageNotFound:
        if asked or not gpus or given.value is not None:
            raise
        found = fetch(None, "cpu")
        tell("this machine has GPUs and only the CPU image is built; `reprobox build --variant cuda` builds the other")
        return found


def _is_cuda(image: ImageInfo | None) -> bool:
    return image is not None and image.labels.get("reprobox.variant", "cuda") == "cuda"
