"""What every image store does alike: Docker's and Podman's, held to the one Protocol."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import uuid

import pytest
from support.engine import tiny_base

from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import ImageNotFound
from reprobox.images.archive import load

ABSENT = "reprobox-test:absent"


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.engine), pytest.param("podman", marks=pytest.mark.podman)]
)
def store(request):
    if request.param == "docker":
        yield DockerImageStore(request.getfixturevalue("docker_client"))
        return
    with contextlib.closing(request.getfixturevalue("podman_with_root").client()) as client:
        yield DockerImageStore(client)


@pytest.fixture
def base(small_image):
    return tiny_base(small_image)


@pytest.fixture
def name(store, base, tmp_path):
    """An image of the store, by a name of its own."""
    name = f"reprobox-test:{uuid.uuid4().hex[:12]}"
    load(store, base, tag=name, scratch=tmp_path)
    yield name
    with contextlib.suppress(ImageNotFound):
        store.remove(name, force=True)


def test_a_loaded_image_is_what_was_sent(store, base, name):
    found = store.inspect(name)
    assert store.image_id(found) == base.image_id
    assert found.layers == tuple(layer.diff_id for layer in base.layers)
    assert (found.architecture, found.os, found.environment) == ("amd64", "linux", ("PATH=/usr/bin:/bin",))
    assert found.engine_id in store.ids()
    assert store.history(name) == ("a base",)
    assert any(each.endswith(name) for each in found.names)


def test_an_image_is_found_by_its_name_and_by_its_image_id(store, base, name):
    assert store.find(name) == store.find(base.image_id) == store.find(store.inspect(name).engine_id)
    assert store.find(ABSENT) is None
    assert store.find("sha256:" + "0" * 64) is None


@pytest.mark.parametrize(
    "verb",
    [
        lambda store: store.inspect(ABSENT),
        lambda store: store.history(ABSENT),
        lambda store: b"".join(store.export(ABSENT)),
        lambda store: store.tag(ABSENT, "reprobox-test:new"),
        lambda store: store.remove(ABSENT),
        lambda store: store.files(ABSENT).__enter__(),
        lambda store: store.step(ABSENT, ["/bin/true"]).__enter__(),
    ],
    ids=["inspect", "history", "export", "tag", "remove", "files", "step"],
)
def test_an_image_that_is_not_there_is_said_by_name_whatever_is_asked_of_it(store, verb):
    with pytest.raises(ImageNotFound, match=f"the engine has no image {ABSENT}; build, pull or load it first"):
        verb(store)


def test_a_further_name_is_given_and_taken_away_and_the_image_goes_with_its_last(store, name):
    further = f"{name}-b"
    image = store.inspect(name).engine_id
    store.tag(image, further)
    assert store.inspect(further).engine_id == image
    store.remove(name)
    assert store.find(name) is None
    assert store.inspect(further).engine_id == image
    store.remove(further)
    assert store.find(further) is None


def test_what_is_exported_is_loaded_again(store, name):
    image_id = store.image_id(store.inspect(name))
    archive = b"".join(store.export(name))
    store.remove(name, force=True)
    said = []
    store.load([archive], said.append)
    assert store.image_id(store.inspect(name)) == image_id


def test_the_files_are_read_and_nothing_is_left(store, name):
    with store.files(name) as chunks, tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert "etc/passwd" in {member.removeprefix("./") for member in tar.getnames()}
    store.remove(name)  # without force, which an engine refuses where a container is left
    assert store.find(name) is None


def test_a_step_takes_files_runs_as_root_and_gives_files_back(store, name):
    script = (
        "import os, sys; sys.stderr.write('err'); print('out'); open('/tmp/back', 'w').write(open('/tmp/given').read()"
    )
    script += " + str(os.getuid()) + os.environ['WORD'])"
    given = io.BytesIO()
    with tarfile.open(fileobj=given, mode="w") as tar:
        member = tarfile.TarInfo("given")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"given"))
    given.seek(0)
    with store.step(name, ["/usr/bin/python3", "-ISc", script], environment={"WORD": "word"}) as step:
        step.put("/tmp", given)
        assert step.run() == 0
        assert step.said(stderr=False) == "out\n"
        assert {"err", "out"} == set(step.said().replace("err", "err ").split())
        with tarfile.open(fileobj=io.BytesIO(b"".join(step.get("/tmp/back")))) as tar:
            assert tar.extractfile("back").read() == b"given0word"
    with store.step(name, ["/bin/sh", "-c", "exit 7"]) as step:
        assert step.run() == 7


def test_a_step_has_no_network(store, name):
    look = "import json, os; print(json.dumps(sorted(os.listdir('/sys/class/net'))))"
    with store.step(name, ["/usr/bin/python3", "-ISc", look]) as step:
        assert step.run() == 0
        assert json.loads(step.said(stderr=False)) == ["lo"]
