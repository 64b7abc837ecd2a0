"""Images to be pushed and pulled: made here, stored at a registry of the tests' own, reached through a proxy."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import urllib.request

import docker.errors
import pytest

from reprobox.engines.docker_store import DockerImageStore
from reprobox.engines.transfer import Patience
from reprobox.images.registry import pull_image, push_image
from reprobox.reference import parse
from support.said import Said

LAYER_BYTES = 300_000
LAYER = 100_000
"""Blobs above this are layers, and no configs."""
QUICK = Patience(stall_seconds=3.0, retries=3, first_wait_seconds=0.05)


class Bench:
    """Images of a layer or two with random content, and the names they go by at the registry and behind the proxy."""

    def __init__(self, client, registry, proxy):
        self.client, self.registry, self.proxy = client, registry, proxy
        self.said = Said()
        self.name = f"{proxy.address}/team/box"
        self.reference = parse(f"{self.name}:1")

    def make(self, tag="1", *, layers=1):
        """Make an image under the proxy's name, and return its id."""
        options = {"changes": ["LABEL reprobox.variant=cpu", "LABEL reprobox.box-protocol=2", "CMD true"]}
        self.client.api.import_image_from_data(random_archive("0"), self.name, tag, **options)
        for number in range(1, layers):
            container = self.client.containers.create(f"{self.name}:{tag}")
            try:
                container.put_archive("/", random_archive(str(number)))
                container.commit(self.name, tag)
            finally:
                container.remove()
        return self.client.images.get(f"{self.name}:{tag}").id

    def published(self, **options):
        """Make an image, push it past the proxy, forget it here; return its id and its digest at the registry."""
        image = self.make(**options)
        direct = f"{self.registry.address}/team/box"
        self.client.images.get(image).tag(direct, "1")
        told = list(self.client.api.push(direct, tag="1", stream=True, decode=True))
        self.forget()
        with pytest.raises(docker.errors.ImageNotFound):
            self.client.images.get(image)
        return image, next(line["aux"]["Digest"] for line in told if "aux" in line)

    def forget(self):
        for repository in (self.name, f"{self.registry.address}/team/box"):
            for image in self.client.images.list(repository, all=True):
                with contextlib.suppress(docker.errors.ImageNotFound):
                    self.client.images.remove(image.id, force=True)

    def has(self, reference):
        with contextlib.suppress(docker.errors.ImageNotFound):
            return self.client.images.get(reference).id
        return None

    def pull(self, reference=None, *, patience=QUICK, client=None):
        wanted = parse(reference or f"{self.name}:1")
        return pull_image(wanted, store=DockerImageStore(client or self.client), report=self.said, patience=patience)

    def push(self, image, *, patience=QUICK, client=None):
        return push_image(
            image, self.reference, store=DockerImageStore(client or self.client), report=self.said, patience=patience
        )

    def at_registry(self, tag="1"):
        """Return the digest that the registry itself has under a tag, or ``None``."""
        url = f"http://{self.registry.address}/v2/team/box/manifests/{tag}"
        kinds = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
        accept = {"Accept": ", ".join(kinds)}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=accept)) as answer:
                return "sha256:" + hashlib.sha256(answer.read()).hexdigest()
        except urllib.error.HTTPError:
            return None

    @property
    def tries(self):
        """How often the caller was told of another try."""
        return sum("trying again" in line for line in self.said.lines)


def random_archive(name):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = LAYER_BYTES
        tar.addfile(member, io.BytesIO(os.urandom(LAYER_BYTES)))
    return archive.getvalue()
