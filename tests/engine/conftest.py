"""A real Docker Engine and the real CPU image; skipped with the reason where there is none, and never in CI."""

from __future__ import annotations

import pytest
from support.cli import Cli
from support.engine import built_image, connected_client


@pytest.fixture(scope="session")
def docker_client():
    return connected_client()


@pytest.fixture(scope="session")
def image(docker_client):
    """Engine id of the CPU image, built if it is not there."""
    return built_image(docker_client)


@pytest.fixture
def docker(tmp_path, image):
    """The command line on the Docker engine, in a project of its own."""
    return Cli(tmp_path, "docker")
