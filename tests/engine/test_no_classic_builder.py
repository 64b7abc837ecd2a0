"""A real engine that builds through BuildKit alone: what stands before its socket refuses the classic builder."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from support.cli import Cli
from support.doctor import Rewritten
from support.engine import tiny_base
from support.said import Said
from support.small_build import small_build

import docker
from reprobox.engines.docker_store import DockerImageStore
from reprobox.images.archive import load

pytestmark = pytest.mark.engine

SENTENCE = "the legacy builder was removed from this engine"


def refusing(client):
    """The machine's engine as one that refuses ``POST /build`` of the classic builder."""
    return Rewritten(client.api._custom_adapter.socket_path, without_builder=SENTENCE)


def test_buildkit_builds_where_the_engine_refuses_its_classic_builder(docker_client, small_image, tmp_path):
    base, tag = (f"reprobox-test:{uuid.uuid4().hex[:12]}" for _ in range(2))
    files = {"Dockerfile": b"ARG BASE\nFROM ${BASE}\nCOPY file /file\n", "file": b"content"}
    said = Said()
    mine = DockerImageStore(docker_client)
    load(mine, tiny_base(small_image), tag=base, scratch=tmp_path)
    try:
        with (
            refusing(docker_client) as address,
            contextlib.closing(docker.DockerClient(address["DOCKER_HOST"], version="auto")) as client,
        ):
            store = DockerImageStore(client)
            chosen = store.choose_builder(None, said)
            assert chosen == "buildkit"
            built = small_build(store, builder=chosen, base=base, tag=tag, files=files, scratch=tmp_path)
        assert any(SENTENCE in line and "BuildKit builds instead" in line for line in said.lines)
        assert mine.choose_builder(None, Said()) == "classic"
        again = small_build(mine, builder="classic", base=base, tag=tag, files=files, scratch=tmp_path)
        assert built.image_id == again.image_id
    finally:
        for name in (tag, base):
            mine.remove(name, force=True)


def test_doctor_says_what_the_engine_refuses_and_what_builds_instead(docker_client, tmp_path, image):
    cli = Cli(tmp_path, "docker")
    with refusing(docker_client) as address:
        done = cli.reprobox("doctor", check=False, environment=address)
    assert SENTENCE in done.stdout
    assert "BuildKit through" in done.stdout
