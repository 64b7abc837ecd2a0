"""Who builds, found out by asking real engines: as they are, and as they are without a classic builder."""

from __future__ import annotations

import contextlib
import io
import os
import uuid

import pytest
from support.daemon import TAG, Daemon
from support.doctor import Rewritten
from support.said import Said

import docker
from reprobox.engines import EngineName, classic, open_engine
from reprobox.errors import BuildError, EngineError
from reprobox.images.builders import BuildJob, build_buildkit, build_classic, choose_builder
from reprobox.images.context import context_file

REMOVED = "the legacy builder is not supported: use BuildKit"

pytestmark = pytest.mark.engine


@pytest.fixture
def without_builder(docker_client):
    """A client of this machine's Docker, which refuses its classic builder."""
    socket = docker_client.api._custom_adapter.socket_path
    with (
        Rewritten(socket, without_builder=REMOVED) as address,
        contextlib.closing(docker.DockerClient(address["DOCKER_HOST"], version="auto")) as client,
    ):
        yield client


def everything(client):
    """What an engine has of images and containers, those that have no name included."""
    images = sorted(image["Id"] for image in client.api.images(all=True))
    return images, sorted(container["Id"] for container in client.api.containers(all=True))


def built(builder, client, tmp_path):
    tag = f"reprobox-test:{uuid.uuid4().hex[:12]}"
    with context_file({"Dockerfile": b"FROM scratch\nCOPY file /file\n", "file": b"content"}, tmp_path) as context:
        job = BuildJob(context=context, args={}, tag=tag, network="none", no_cache=True)
        image = builder(job, client=client, report=Said())
    client.images.remove(tag)
    return image


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


def test_an_engine_without_a_classic_builder_builds_by_buildkit(docker_client, without_builder, tmp_path):
    said = Said()
    assert choose_builder(None, client=docker_client, report=said) == "classic"
    assert said.lines == []
    assert choose_builder(None, client=without_builder, report=said) == "buildkit"
    assert said.lines == [f"the engine does not build with its classic builder ({REMOVED}); BuildKit builds instead"]
    assert built(build_buildkit, without_builder, tmp_path).startswith("sha256:")
    with pytest.raises(EngineError, match="refused"):
        built(build_classic, without_builder, tmp_path)


def test_without_buildkit_either_the_sentence_names_what_to_install(without_builder, monkeypatch):
    monkeypatch.setattr("reprobox.images.builders._answer", lambda *_: None)
    with pytest.raises(BuildError) as failure:
        choose_builder(None, client=without_builder, report=Said())
    assert REMOVED in failure.value.message
    assert "docker-buildx" in failure.value.remedy


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
