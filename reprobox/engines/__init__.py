"""Container engines behind one small Protocol: Docker, this machine itself, and a fake for tests."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from reprobox.engines.base import (
    GPUS_LABEL,
    PROJECT_LABEL,
    RUN_LABEL,
    Box,
    BoxOptions,
    BoxSpec,
    Engine,
    EngineInfo,
    Exit,
    FoundBox,
    GpuBox,
    ImageInfo,
    Mount,
    Stream,
    removed_or_told,
)
from reprobox.errors import EngineUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reprobox.engines.store import ImageStore

__all__ = [
    "GPUS_LABEL",
    "PROJECT_LABEL",
    "RUN_LABEL",
    "Box",
    "BoxOptions",
    "BoxSpec",
    "Engine",
    "EngineInfo",
    "EngineName",
    "Exit",
    "FoundBox",
    "GpuBox",
    "ImageInfo",
    "Mount",
    "Stream",
    "choose_engine",
    "image_store",
    "open_engine",
    "removed_or_told",
]


class EngineName(StrEnum):
    """The engines a person can choose."""

    DOCKER = "docker"
    PODMAN = "podman"
    LOCAL = "local"


def open_engine(name: EngineName) -> Engine:
    """Return the engine called ``name``; its libraries are imported only here, and nothing is connected yet."""
    match name:
        case EngineName.DOCKER:
            from reprobox.engines.docker import DockerEngine

            return DockerEngine()
        case EngineName.PODMAN:
            from reprobox.engines.podman import PodmanEngine

            return PodmanEngine()
        case EngineName.LOCAL:
            from reprobox.engines.local import LocalEngine

            return LocalEngine()
        case _:
            assert_never(name)


def choose_engine(name: EngineName, *, chosen: bool, say: Callable[[str], None]) -> Engine:
    """Return the engine called ``name``, or Podman where there is no Docker, nobody ``chosen`` one, and Podman answers.

    The choice is told by ``say``: the images of one are not the other's. Whoever names a Docker, by ``DOCKER_HOST`` or a
    context, has chosen it.

    :raises EngineUnavailable: as Docker's, where neither answers.
    """
    engine = open_engine(name)
    if chosen or name is not EngineName.DOCKER:
        return engine
    try:
        engine.info()
    except EngineUnavailable:
        if _a_docker_is_named():
            raise
        podman = open_engine(EngineName.PODMAN)
        try:
            podman.info()
        except EngineUnavailable:
            pass
        else:
            say("no Docker answers; using Podman (--engine podman)")
            return podman
        raise
    return engine


def image_store(engine: Engine) -> ImageStore:
    """Return where ``engine`` keeps its images. :raises UsageError: it is this machine itself, which has none."""
    if engine.store is None:
        raise UsageError(f"the {engine.name} engine has no images", remedy="use --engine docker or podman")
    return engine.store


def _a_docker_is_named() -> bool:
    """Say whether a certain Docker is meant, and not whichever this machine has."""
    from docker.context.config import get_current_context_name

    named = os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    return bool(named) and named != "default"
