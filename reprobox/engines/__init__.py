"""Container engines behind one small Protocol: Docker, this machine itself, and a fake for tests."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from reprobox.engines.base import Box, BoxSpec, Engine, EngineInfo, Exit, ImageInfo, Mount, Stream

__all__ = [
    "Box",
    "BoxSpec",
    "Engine",
    "EngineInfo",
    "EngineName",
    "Exit",
    "ImageInfo",
    "Mount",
    "Stream",
    "open_engine",
]


class EngineName(StrEnum):
    """The engines a person can choose."""

    DOCKER = "docker"
    LOCAL = "local"


def open_engine(name: EngineName) -> Engine:
    """Return the engine called ``name``; its libraries are imported only here, and nothing is connected yet."""
    match name:
        case EngineName.DOCKER:
            from reprobox.engines.docker import DockerEngine

            return DockerEngine()
        case EngineName.LOCAL:
            from reprobox.engines.local import LocalEngine

            return LocalEngine()
        case _:
            assert_never(name)
