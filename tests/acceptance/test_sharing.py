"""push, pull, save and load as a user types them, with reprobox's image without torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tarfile

import docker.errors
import pytest
from support.cli import BIN, Cli
from support.proxy import BLOB, MANIFEST

from reprobox.images.lockfile import read_lock, write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedDeb, LockedImage

pytestmark = pytest.mark.engine

DIGEST = r"sha256:[0-9a-f]{64}"
ROOM = 64 << 20
"""More memory than a save or a load takes beyond an idle reprobox, in bytes."""


@pytest.fixture
def cli(tmp_path):
    return Cli(tmp_path, "docker")


@pytest.fixture
def name(docker_client, proxy):
    """A repository behind the proxy; every image with that name goes afterwards."""
    name = f"{proxy.address}/team/box"
    yield name
    forget(docker_client, name)


def forget(client, name):
    for image in client.images.list(name, all=True):
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.remove(image.id, force=True)


def make(client, name, tag, megabytes=1):
    """Make an image that this reprobox can run as far as it looks, and return its id."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("data")
        member.size = megabytes << 20
        tar.addfile(member, io.BytesIO(os.urandom(member.size)))
    changes = ["LABEL reprobox.variant=cpu", "LABEL reprobox.box-protocol=2", "CMD true"]
    client.api.import_image_from_data(archive.getvalue(), name, tag, changes=changes)
    return client.images.get(f"{name}:{tag}").id


def lock_of(cli, image):
    """A lock of this image and of a package that no other test's lock has."""
    path = cli.folder / "reprobox.lock"
    package = LockedDeb(
        name="shared", version="1", architecture="all", file="shared_1_all.deb", sha256="0" * 64, platforms=("x86_64",)
    )
    images = {"cpu": LockedImage(config_digest=image)}
    write_lock(path, Lock(inputs=Inputs(variants=("cpu",)), debs=(package,), images=images))
    return path


def test_a_team_shares_an_image_by_the_digest_in_the_lock(cli, docker_client, name):
    image = make(docker_client, name, "local")
    lock = lock_of(cli, image)
    pushed = cli.reprobox("push", f"{name}:1", "--image", f"{name}:local")
    digest = read_lock(lock).images["cpu"].repo_digest
    assert pushed.stdout == f"{name}@{digest}\n"
    assert "the digest is in reprobox.lock; commit it" in pushed.stderr
    forget(docker_client, name)

    pulled = cli.reprobox("pull", "reprobox.lock", "--from", name, "--json")
    document = json.loads(pulled.stdout)
    assert document.pop("seconds") > 0
    assert document == {
        "schema": "reprobox.pull/1",
        "reference": f"{name}@{digest}",
        "repo_digest": f"{name}@{digest}",
        "image_id": image,
        "engine_id": image,
        "lock": "reprobox.lock",
    }
    cli.write("reprobox.toml", f'image = "{name}"\n')
    refused = cli.reprobox("pull", "reprobox.lock", "-q", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"you have not allowed it: image = {name};" in refused.stderr
    cli.trust()
    assert cli.reprobox("pull", "reprobox.lock", "-q").stdout == f"{name}@{digest}\n", "the project says where"


def test_a_failed_pull_prints_no_digest_and_one_sentence(cli, docker_client, name, proxy):
    make(docker_client, name, "1")
    pushed = json.loads(cli.reprobox("push", f"{name}:1", "--image", f"{name}:1", "--json").stdout)
    assert (pushed["schema"], pushed["lock"]) == ("reprobox.push/1", None)
    forget(docker_client, name)
    older = make(docker_client, name, "1")
    proxy.fail(BLOB, act="corrupt", larger_than=100_000, times=None)
    failed = cli.reprobox("pull", f"{name}:1", "-q", check=False)
    assert (failed.returncode, failed.stdout) == (125, "")
    assert failed.stderr.startswith(
        f"reprobox: the engine could not pull {name}:1: what was sent is not what its digest"
    )
    assert failed.stderr.count("\n") == 1
    assert docker_client.images.get(f"{name}:1").id == older
    run = ("run", "--image", f"{name}:1", "--pull", "always", "--dry-run", "--json")
    refused = cli.reprobox(*run, "true", check=False)
    assert (refused.returncode, refused.stdout) == (125, ""), "a run does not take the older image either"
    proxy.heal()
    assert json.loads(cli.reprobox(*run, "true").stdout)["image"]["image_id"] == pushed["image_id"]


def test_a_stalled_pull_ends_after_the_time_that_was_given(cli, docker_client, name, proxy):
    make(docker_client, name, "1")
    cli.reprobox("push", f"{name}:1", "--image", f"{name}:1")
    forget(docker_client, name)
    fault = proxy.fail("GET" + MANIFEST.removeprefix("(GET|HEAD)"), act="hang", after=10)
    pulled = cli.reprobox("pull", f"{name}:1", "--stall-timeout", "1")
    assert fault.hits == 1
    assert "no progress for 1 s; trying again in 2 s (1 of 3)" in pulled.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("push", "NoSuch"), "must be lower case"),
        (("push", "host/box@sha256:" + "0" * 64, "--image", "x"), "is not on this machine"),
        (("pull", "box:1:2"), "is not an image reference"),
        (("pull", "box", "--variant", "cpu"), "--from and --variant say more of a lock"),
        (("pull", "box", "--stall-timeout", "0"), "--stall-timeout cannot be 0"),
        (("pull", "box", "--engine", "local"), "the local engine has no images"),
        (("pull", "absent.lock", "--from", "host/box"), "there is no absent.lock"),
        (("load", "absent.img"), "absent.img cannot be read"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_sent(cli, docker_client, arguments, sentence):
    done = cli.reprobox(*arguments, check=False)
    assert done.returncode in {2, 125}
    assert sentence in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_an_image_travels_as_one_file(cli, docker_client):
    name = "reprobox-test-sharing"
    try:
        image = make(docker_client, name, "1")
        first, second = (cli.reprobox("save", file, "--image", f"{name}:1") for file in ("a.img", "b.img"))
        content = (cli.folder / "a.img").read_bytes()
        assert first.stdout == f"{hashlib.sha256(content).hexdigest()}  a.img\n"
        assert (cli.folder / "b.img").read_bytes() == content
        assert first.stdout.split()[0] == second.stdout.split()[0]
        assert cli.call("sha256sum", "--check", "-", input=first.stdout).stdout == "a.img: OK\n"
        forget(docker_client, name)

        (cli.folder / "b.img").write_bytes(content[:-1000])
        refused = cli.reprobox("load", "b.img", check=False)
        assert (refused.returncode, refused.stdout) == (125, "")
        assert "b.img is damaged or cut short" in refused.stderr
        with pytest.raises(docker.errors.ImageNotFound):
            docker_client.images.get(image)

        assert cli.reprobox("load", "a.img", "-q").stdout == f"{image}\n"
        assert docker_client.images.get(f"{name}:1").id == image
        forget(docker_client, name)
        document = json.loads(cli.reprobox("load", "a.img", "--json").stdout)
        assert document == {
            "schema": "reprobox.load/1",
            "file": "a.img",
            "sha256": hashlib.sha256(content).hexdigest(),
            "image_id": image,
            "engine_id": image,
            "names": [f"{name}:1"],
        }
        by_id = json.loads(cli.reprobox("save", "c.img", "--image", image, "--json").stdout)
        assert (by_id["schema"], by_id["names"], by_id["image_id"]) == ("reprobox.save/1", [], image)
    finally:
        forget(docker_client, name)


def peak(cli, *arguments):
    """Run a command and return the most memory it had, in bytes."""
    process = subprocess.Popen(
        [BIN / "reprobox", *arguments], cwd=cli.folder, env=cli.environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss << 10


def test_memory_does_not_grow_with_the_image(cli, docker_client):
    name = "reprobox-test-large"
    try:
        make(docker_client, name, "small", 1)
        make(docker_client, name, "large", 200)
        small, large = (peak(cli, "save", f"{size}.img", "--image", f"{name}:{size}") for size in ("small", "large"))
        assert large - small < ROOM
        assert (cli.folder / "large.img").stat().st_size > 3 * ROOM, "or it would prove nothing"
        small, large = (peak(cli, "load", f"{size}.img") for size in ("small", "large"))
        assert large - small < ROOM
    finally:
        forget(docker_client, name)
