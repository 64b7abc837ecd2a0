"""What real engines are asked: no question twice, and none that leaves something in them."""

from __future__ import annotations

import contextlib
import io
import os

import pytest
from support.daemon import TAG, Daemon
from support.doctor import Rewritten

from reprobox.engines import EngineName, classic, open_engine

pytestmark = pytest.mark.engine


def everything(client):
    """What an engine has of images and containers, those that have no name included."""
    images = sorted(image["Id"] for image in client.api.images(all=True))
    return images, sorted(container["Id"] for container in client.api.containers(all=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon that no other test uses needs root")
def test_asking_docker_whether_it_builds_leaves_nothing_in_it(tmp_path):
    with Daemon() as daemon, contextlib.closing(daemon.start().client()) as client:
        assert classic.refusal(client) is None
        assert everything(client) == ([], [])
        client.images.build(fileobj=io.BytesIO(b"FROM scratch\nLABEL a=b\n"))
        assert everything(client) != ([], []), "a build that comes to something is seen"


@pytest.mark.podman
def test_asking_podman_whether_it_builds_leaves_nothing_in_it(podman_service):
    with contextlib.closing(podman_service.client()) as client:
        before = everything(client)
        assert classic.refusal(client) is None
        assert everything(client) == before


def questions(proxy, variable, name, image, monkeypatch):
    """How often an engine behind ``proxy`` is asked what it is, and of what version, by all that a command asks of it."""
    with proxy as address:
        monkeypatch.setenv(variable, address["DOCKER_HOST"])
        engine = open_engine(name)
        for _ in range(2):
            assert engine.info().version == engine.describe()["ServerVersion"]
            engine.image(image)
        assert getattr(engine, "rootless", False) in {True, False}
        engine.client.close()
    return proxy.asked.count("info"), proxy.asked.count("version")


def test_docker_is_asked_once_what_it_is_and_once_of_what_version(docker_client, image, monkeypatch):
    proxy = Rewritten(docker_client.api._custom_adapter.socket_path)
    assert questions(proxy, "DOCKER_HOST", EngineName.DOCKER, image, monkeypatch) == (1, 1)


@pytest.mark.podman
def test_podman_is_asked_once_what_it_is_and_once_of_what_version(podman_service, monkeypatch):
    proxy = Rewritten(podman_service.socket)
    assert questions(proxy, "CONTAINER_HOST", EngineName.PODMAN, TAG, monkeypatch) == (1, 1)
