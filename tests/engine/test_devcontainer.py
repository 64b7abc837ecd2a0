"""The development container is the image with its entrypoint in force: what is started in it later is seeded too."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import time

import pytest
from support.cli import ROOT

pytestmark = pytest.mark.engine

HOME = ROOT / ".devcontainer"
DRAW = "import random; print(random.random())"
WITH_ENTRYPOINT = 'echo Container started\ntrap "exit 0" 15\nexec "$@"\nwhile sleep 1 & wait $!; do :; done'
WITHOUT = 'echo Container started\ntrap "exit 0" 15\nwhile sleep 1 & wait $!; do :; done'


def settings():
    lines = (HOME / "devcontainer.json").read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))


@contextlib.contextmanager
def started(client, image, *, override):
    """The image started as @devcontainers/cli 0.89 starts it, for either value of overrideCommand."""
    attributes = client.images.get(image).attrs["Config"]
    (command,) = re.findall(r"^CMD (.*)$", (HOME / "Dockerfile").read_text(), re.MULTILINE)
    words = ["-c", WITHOUT, "-"] if override else ["-c", WITH_ENTRYPOINT, "-", *attributes["Entrypoint"]]
    container = client.containers.create(
        image,
        words if override else [*words, *json.loads(command)],
        entrypoint="/bin/sh",
        environment={**settings()["containerEnv"], "REPROBOX_SELFTEST": "off"},
        network_mode="none",
    )
    try:
        container.start()
        yield container
    finally:
        container.remove(force=True)


def drawn(container):
    """What two programs draw that are started in the container, once its start-up command has ended."""
    waits = ["/bin/sh", "-c", settings()["postStartCommand"]]
    subprocess.run(["docker", "exec", "--user", settings()["remoteUser"], container.id, *waits], timeout=60, check=True)
    return {container.exec_run(["python", "-c", DRAW], user=settings()["remoteUser"]).output for _ in range(2)}


def test_what_is_started_in_it_later_is_seeded(docker_client, image):
    assert settings()["overrideCommand"] is False
    with started(docker_client, image, override=settings()["overrideCommand"]) as container:
        (number,) = drawn(container)
        assert float(number) > 0


def test_with_the_command_overridden_nothing_would_be_seeded(docker_client, image):
    with started(docker_client, image, override=True) as container:
        time.sleep(1)
        numbers = {container.exec_run(["python", "-c", DRAW], user="box").output for _ in range(2)}
        assert len(numbers) == 2
        with pytest.raises(subprocess.TimeoutExpired):
            waits = shlex.join(["/bin/sh", "-c", settings()["postStartCommand"]])
            subprocess.run(["docker", "exec", "--user", "box", container.id, "sh", "-c", waits], timeout=2)


def test_it_stands_on_the_image_that_is_built_before_it_and_adds_nothing():
    lines = [line for line in (HOME / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["FROM reprobox:devcontainer", 'CMD ["sleep", "infinity"]']
    assert settings()["initializeCommand"].endswith("reprobox build --tag reprobox:devcontainer")
    assert settings()["waitFor"] == "postStartCommand"
