"""The same code on Podman's service: what its stream says differs, what comes of it does not."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.podman import PodmanService, require_podman
from support.proxy import BLOB, MANIFEST, Proxy
from support.registry import running_registry
from support.said import Said

from reprobox.engines.docker_store import DockerImageStore
from reprobox.engines.transfer import Patience
from reprobox.errors import RegistryError
from reprobox.images.airgap import load_image, save_image
from reprobox.images.registry import pull_image, push_image
from reprobox.reference import parse

pytestmark = pytest.mark.podman

QUICK = Patience(stall_seconds=3.0, retries=1, first_wait_seconds=0.05)
LAYER = 100_000


class Service(PodmanService):
    """A service that takes one registry without TLS. It starts no container, so it may have the machine's network."""

    _alone = ()

    def __init__(self, image, registry):
        super().__init__(image, rootless=False)
        self.registries = self.home / "registries.conf"
        self.registries.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')

    @property
    def settings(self):
        return {**super().settings, "CONTAINERS_REGISTRIES_CONF": str(self.registries)}


def archive(path):
    """Write a file system of one file to ``path``, as ``podman import`` takes it."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("data")
        member.size = 300_000
        tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    return SimpleNamespace(archive=path, changes=[])


@pytest.fixture
def shelf(tmp_path):
    """A Podman with an image, and a registry behind a proxy."""
    require_podman()
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(running_registry(tmp_path))
        proxy = stack.enter_context(Proxy(registry.address))
        service = stack.enter_context(Service(archive(tmp_path / "first.tar"), proxy.address))
        reference = parse(f"{proxy.address}/team/box:1")
        service.load(archive(tmp_path / "box.tar"), f"{reference.name}:local")
        with contextlib.closing(service.client()) as client:
            image = client.images.get(f"{reference.name}:local").id
            yield SimpleNamespace(
                service=service, client=client, proxy=proxy, reference=reference, image=image, folder=tmp_path
            )


def options(shelf):
    return {"store": DockerImageStore(shelf.client), "report": Said(), "patience": QUICK}


def test_an_image_is_pushed_and_pulled_by_tag_and_by_digest(shelf):
    pushed = push_image(shelf.image, shelf.reference, **options(shelf))
    for wanted in (shelf.reference, parse(pushed.repo_digest)):
        shelf.client.images.remove(shelf.image, force=True)
        pulled = pull_image(wanted, **options(shelf))
        assert (pulled.image_id, pulled.repo_digest) == (shelf.image, pushed.repo_digest)


def test_of_the_digests_an_image_has_the_one_is_told_that_this_registry_has(shelf):
    told = []
    for kind in ("oci", "v2s2"):
        name = f"{shelf.proxy.address}/team/{kind}:1"
        shelf.service.podman("push", "--quiet", f"--format={kind}", shelf.image, f"docker://{name}")
    for kind in ("oci", "v2s2", "oci"):  # from the second on, each name has both digests
        pulled = pull_image(parse(f"{shelf.proxy.address}/team/{kind}:1"), **options(shelf))
        shelf.service.podman("pull", "--quiet", pulled.repo_digest)
        told.append(pulled.repo_digest.partition("@")[2])
    assert told[0] == told[2] != told[1]


FAULTS = {
    "corrupt": ({"where": BLOB, "act": "corrupt", "larger_than": LAYER}, "not what its digest says"),
    "401": ({"where": MANIFEST, "status": 401}, "log in with `docker login"),
    "503": ({"where": MANIFEST, "status": 503}, "503 Service Unavailable, also after 1 more try"),
    "cut": ({"where": MANIFEST, "act": "cut", "after": 10}, "EOF, also after 1 more try"),
    "hang": ({"where": BLOB, "act": "hang", "larger_than": LAYER}, "no progress for 3 s, also after 1 more try"),
}


def test_a_registry_that_fails_is_an_error_and_an_older_image_stays_what_it_is(shelf):
    pushed = push_image(shelf.image, shelf.reference, **options(shelf))
    shelf.client.images.remove(shelf.image, force=True)
    shelf.service.load(archive(shelf.folder / "older.tar"), str(shelf.reference))
    older = shelf.client.images.get(str(shelf.reference)).id
    for fault, sentence in FAULTS.values():
        shelf.proxy.fail(times=None, **fault)
        with pytest.raises(RegistryError, match=sentence):
            pull_image(shelf.reference, **options(shelf))
        assert shelf.client.images.get(str(shelf.reference)).id == older
        shelf.proxy.heal()
    assert pull_image(shelf.reference, **options(shelf)).repo_digest == pushed.repo_digest


def test_a_push_that_is_refused_is_an_error(shelf):
    shelf.proxy.fail("POST /v2/", status=401, times=None)
    with pytest.raises(RegistryError, match="log in with `docker login"):
        push_image(shelf.image, shelf.reference, **options(shelf))
    shelf.proxy.heal()
    push_image(shelf.image, replace(shelf.reference, tag="2"), **options(shelf))


def test_an_image_travels_as_one_file(shelf):
    name, path = f"{shelf.reference.name}:local", shelf.folder / "box.img"
    saved = save_image(name, path, store=DockerImageStore(shelf.client), report=Said())
    shelf.client.images.remove(shelf.image, force=True)
    loaded = load_image(path, store=DockerImageStore(shelf.client), report=Said())
    assert loaded.image_id == saved.image_id == shelf.client.images.get(name).id == shelf.image
