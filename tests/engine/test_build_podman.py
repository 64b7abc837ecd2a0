"""Images built by Podman: the very images that Docker builds, and a base that is there is found again."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from support.engine import config_digest, tiny_base
from support.small_build import small_build

from reprobox.engines.docker_store import DockerImageStore
from reprobox.images.archive import load
from reprobox.images.rebuild import build_twice

pytestmark = pytest.mark.podman

DOCKERFILE = b"""
ARG BASE
FROM ${BASE} AS made
LABEL reprobox.stage=test
USER root
COPY steps.py a /opt/steps/
RUN /usr/bin/python3 -ISB /opt/steps/steps.py /opt/made && rm /usr/bin/seq

FROM ${BASE}
USER root
COPY --from=made /opt/made /opt/made
COPY a /run/kept/a
RUN /usr/bin/python3 -ISB -c "import os, shutil; shutil.rmtree('/opt/made/deep'); os.mkdir('/srv'); os.chmod('/srv', 0o1777)"
ENV B=1 A=2
LABEL z=1 a=2
USER 1000:1000
WORKDIR /srv
ENTRYPOINT ["/usr/bin/python3"]
"""
STEPS = b"""
import os, sys
top = sys.argv[1]
os.makedirs(top + "/deep/er")
for name in ("x", "deep/er/y"):
    with open(f"{top}/{name}", "w") as out:
        out.write(name)
os.link(top + "/x", top + "/link")
os.symlink("x", top + "/sym")
os.chown(top + "/x", 7, 8)
"""
FILES = {"Dockerfile": DOCKERFILE, "steps.py": STEPS, "a": b"content"}


@pytest.fixture
def base(small_image):
    return tiny_base(small_image)


@contextlib.contextmanager
def on(client, base, scratch):
    """An image store with the base in it, and names for it and for what is built; both go afterwards."""
    store = DockerImageStore(client)
    named, tag = (f"reprobox-test:{uuid.uuid4().hex[:12]}" for _ in range(2))
    load(store, base, tag=named, scratch=scratch)
    try:
        yield store, named, tag
    finally:
        for name in (tag, named):
            with contextlib.suppress(Exception):
                store.remove(name, force=True)


def built(store, named, tag, scratch, **options):
    return small_build(store, builder="classic", base=named, tag=tag, files=FILES, scratch=scratch, **options)


@pytest.fixture
def podman_client(podman_service):
    with contextlib.closing(podman_service.client()) as client:
        yield client


def test_podman_builds_the_image_that_docker_builds_and_builds_it_again(podman_client, docker_client, base, tmp_path):
    with on(docker_client, base, tmp_path) as place:
        expected = built(*place, tmp_path).image_id
    with on(podman_client, base, tmp_path) as (store, named, tag):

        def make(within):
            return built(store, named, tag, within.scratch if within else tmp_path, backwards=bool(within))

        first, seen = build_twice(make, store=store, scratch=tmp_path)
        assert (first.image_id, seen.same, seen.difference) == (expected, True, None)
        assert config_digest(podman_client, tag) == expected
