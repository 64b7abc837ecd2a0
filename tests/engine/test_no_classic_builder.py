"""A real engine that builds through BuildKit alone: what stands before its socket refuses the classic builder."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import uuid

import pytest
from support.cli import Cli
from support.engine import tiny_base
from support.said import Said
from support.small_build import small_build

import docker
from reprobox.engines.docker_store import DockerImageStore
from reprobox.images.archive import load

pytestmark = pytest.mark.engine

SENTENCE = "the legacy builder was removed from this engine"
_REFUSED = b'{"message": "%s"}' % SENTENCE.encode()
ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_REFUSED), _REFUSED)
)
_CLASSIC = re.compile(rb"POST /v[\d.]+/build\?(?!.*version=2)")


@contextlib.contextmanager
def without_classic_builder(engine="/var/run/docker.sock"):
    """Give the address of the machine's engine as one that refuses ``POST /build`` of the classic builder."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def passed(source, sink, refuses):
            with contextlib.suppress(OSError):
                while piece := source.recv(65536):
                    if refuses and _CLASSIC.match(piece):
                        source.sendall(ANSWER)
                        break
                    sink.sendall(piece)
            for end in (source, sink) if refuses else (sink,):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_WR)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    upstream = socket.socket(socket.AF_UNIX)
                    upstream.connect(engine)
                    for pair in ((client, upstream, True), (upstream, client, False)):
                        threading.Thread(target=passed, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_buildkit_builds_where_the_engine_refuses_its_classic_builder(docker_client, small_image, tmp_path):
    base, tag = (f"reprobox-test:{uuid.uuid4().hex[:12]}" for _ in range(2))
    files = {"Dockerfile": b"ARG BASE\nFROM ${BASE}\nCOPY file /file\n", "file": b"content"}
    said = Said()
    mine = DockerImageStore(docker_client)
    load(mine, tiny_base(small_image), tag=base, scratch=tmp_path)
    try:
        with (
            without_classic_builder() as address,
            contextlib.closing(docker.DockerClient(address, version="auto")) as client,
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


def test_doctor_says_what_the_engine_refuses_and_what_builds_instead(tmp_path, image):
    cli = Cli(tmp_path, "docker")
    with without_classic_builder() as address:
        done = cli.reprobox("doctor", check=False, environment={"DOCKER_HOST": address})
    assert SENTENCE in done.stdout
    assert "BuildKit through" in done.stdout
