"""The engine the tests use, and what they look at in it."""

from __future__ import annotations

import functools
import json
import os

import pytest

from reprobox.engines.connection import connect
from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import EngineUnavailable
from reprobox.images import BuildRequest, build
from reprobox.images.archive import CREATED, Image
from reprobox.images.layers import Layer
from reprobox.images.wheels import sha256_of
from reprobox.runs.plan import RUN_LABEL
from support.said import Said


def missing(reason):
    """Skip, with the reason, what needs a thing that this machine has not; in CI that is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@functools.cache
def connected_client():
    try:
        return connect()
    except EngineUnavailable as error:
        pytest.skip(str(error))


@functools.cache
def built_image(client):
    return build(BuildRequest(variant="cpu"), store=DockerImageStore(client), report=Said()).engine_id


def boxes_left(client, run_ids):
    """Containers of these runs that are still there, whatever their state."""
    # Not the list of objects, for which each is looked at anew: one may have been removed meanwhile.
    return [
        box["Names"][0].lstrip("/")
        for box in client.api.containers(all=True, filters={"label": RUN_LABEL})
        if box["Labels"][RUN_LABEL] in run_ids
    ]


def told(client):
    """Return what an engine tells of itself: its name, its version and its image store."""
    version, info = client.version(), client.info()
    parts = {part["Name"]: part["Version"] for part in version.get("Components", ())}
    podman = parts.get("Podman Engine")
    containerd = "io.containerd.snapshotter" in json.dumps(info.get("DriverStatus"))
    store = f"containerd ({info['Driver']})" if containerd else info["Driver"]
    number = (podman or version["Version"]).partition("+")[0]
    return {"engine": "podman" if podman else "docker", "version": number, "store": store}


def finish(box):
    """Carry a box out to its end; return that, and what came on stdout and on stderr."""
    seen = {"stdout": b"", "stderr": b""}

    def write(stream, data):
        seen[stream] += data

    with box:
        box.attach()
        box.start()
        box.stream(write, print)
        return box.wait(), seen["stdout"], seen["stderr"]


def ran(client, image, command, **options):
    """Run a command in an image without a network; return its stdout.

    The log is read after the container's end: one that is followed from its start (docker-py's ``run``) may come back
    empty when the container ends at that moment.
    """
    container = client.containers.create(image, command, network_mode="none", **options)
    try:
        container.start()
        ended = container.wait()["StatusCode"]
        assert ended == 0, container.logs()
        return container.logs(stderr=False)
    finally:
        container.remove(force=True)


def config_digest(client, name):
    """Return the config digest of an image of the engine."""
    store = DockerImageStore(client)
    return store.image_id(store.inspect(name))


def tiny_base(small_image):
    """Return the file system of a :class:`support.daemon.SmallImage` as an image that is the same in every engine."""
    digest = f"sha256:{sha256_of(small_image.archive)}"
    config = {
        "architecture": "amd64", "config": {"Env": ["PATH=/usr/bin:/bin"]}, "created": CREATED, "os": "linux",
        "history": [{"created": CREATED, "created_by": "a base"}], "rootfs": {"diff_ids": [digest], "type": "layers"},
    }  # fmt: skip
    layer = Layer(diff_id=digest, size=small_image.archive.stat().st_size, path=small_image.archive)
    return Image(config=json.dumps(config).encode(), layers=(layer,))
