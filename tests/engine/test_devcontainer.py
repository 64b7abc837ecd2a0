"""The development container is the image as it is: what is started in it later is seeded, whoever starts the container."""

from __future__ import annotations

import contextlib
import json

import pytest
from support.cli import ROOT

pytestmark = pytest.mark.engine

DRAW = "import random; print(random.random())"
KEPT_ALIVE = 'echo Container started\ntrap "exit 0" 15\n{exec}while sleep 1 & wait $!; do :; done'


def settings():
    lines = (ROOT / ".devcontainer" / "devcontainer.json").read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))


@contextlib.contextmanager
def started(client, image, *, override, environment):
    """The image started as @devcontainers/cli 0.89 starts it, for either value of overrideCommand."""
    entrypoint = client.images.get(image).attrs["Config"]["Entrypoint"]
    words = ["-c", KEPT_ALIVE.format(exec="" if override else 'exec "$@"\n'), "-"]
    container = client.containers.create(
        image,
        words if override else [*words, *entrypoint, "sleep", "infinity"],
        entrypoint="/bin/sh",
        environment={**environment, "REPROBOX_SELFTEST": "off"},
        network_mode="none",
    )
    try:
        container.start()
        yield container
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("override", [True, False])
def test_what_is_started_in_it_later_is_seeded(docker_client, image, override):
    given = settings()["containerEnv"]
    with started(docker_client, image, override=override, environment=given) as container:
        numbers = {container.exec_run(["python", "-c", DRAW], user=settings()["remoteUser"]).output for _ in range(2)}
        other = {"REPROBOX_SEED": "1"}
        twin = container.exec_run(["python", "-c", DRAW], user=settings()["remoteUser"], environment=other).output
    assert len(numbers) == 1
    assert float(twin) not in map(float, numbers)


def test_it_is_the_image_that_is_built_before_it():
    assert settings()["initializeCommand"].endswith(f"reprobox build --tag {settings()['image']}")
    assert settings()["containerEnv"]["REPROBOX_SEED"] == "0"
