"""Images pushed to a real registry through a proxy that lets them down; the login for both ways; the digest in the lock."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace

import pytest
from support.bench import QUICK, Bench
from support.proxy import UPLOAD, Proxy

from reprobox.engines.connection import connect
from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import LockError, RegistryError, UsageError
from reprobox.images.lockfile import read_lock, write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedImage
from reprobox.images.project_name import project_tag
from reprobox.images.registry import note_in_lock, pull_locked, push_image

pytestmark = pytest.mark.engine

PUT_MANIFEST = r"PUT /v2/.+/manifests/"


def test_an_image_is_pushed_and_known_by_the_digest_that_the_registry_has(bench):
    image = bench.make(tag="local")
    pushed = bench.push(image)
    assert (pushed.image_id, pushed.engine_id) == (image, image)
    assert pushed.repo_digest == f"{bench.name}@{bench.at_registry()}"
    assert bench.has(str(bench.reference)) == image
    bench.forget()
    assert bench.pull(pushed.repo_digest).image_id == image


def test_a_push_needs_a_tag_and_not_a_digest(bench):
    image = bench.make()
    with pytest.raises(UsageError, match="give NAME:TAG"):
        push_image(
            image, replace(bench.reference, digest=image), store=DockerImageStore(bench.client), report=bench.said
        )


PUSHES = {
    "cut": {"where": UPLOAD, "act": "cut"},
    "corrupt": {"where": UPLOAD, "act": "corrupt"},
    "503 for a layer": {"where": "POST /v2/", "status": 503},
    "503 for the manifest": {"where": PUT_MANIFEST, "status": 503},
    "429 for the manifest": {"where": PUT_MANIFEST, "status": 429},
    "hang": {"where": PUT_MANIFEST, "act": "hang", "after": 10},
    # Engine 20.10 does not let go of an upload that hangs before its connection ends; another try waits for it.
    "hang of a layer": {"where": UPLOAD, "act": "hang", "seconds": 4.5},
}


@pytest.mark.parametrize("fault", PUSHES.values(), ids=PUSHES)
def test_a_push_that_is_let_down_once_arrives_whole(bench, fault):
    image = bench.make(tag="local")
    happened = bench.proxy.fail(**fault)
    pushed = bench.push(image)
    assert happened.hits == 1
    assert pushed.repo_digest.endswith(bench.at_registry())
    bench.forget()
    assert bench.pull(pushed.repo_digest).image_id == image


BROKEN_PUSHES = {
    "401": ({"where": "POST /v2/", "status": 401}, "log in with `docker login"),
    "403": ({"where": "POST /v2/", "status": 403}, "log in with `docker login"),
    "503": ({"where": PUT_MANIFEST, "status": 503}, "503 Service Unavailable, also after 3 more tries"),
    "429": ({"where": "POST /v2/", "status": 429}, "takes no more requests now, also after 3 more tries"),
    "cut": ({"where": PUT_MANIFEST, "act": "cut", "after": 10}, "EOF, also after 3 more tries"),
    "hang": ({"where": UPLOAD, "act": "hang"}, "no progress for 3 s, also after 3 more tries"),
}


@pytest.mark.parametrize(("fault", "sentence"), BROKEN_PUSHES.values(), ids=BROKEN_PUSHES)
def test_a_push_that_fails_is_an_error_and_names_nothing_here(bench, fault, sentence):
    image, before = bench.make(tag="local"), bench.at_registry()
    bench.proxy.fail(times=None, **fault)
    with pytest.raises(RegistryError, match=sentence):
        bench.push(image)
    assert bench.has(str(bench.reference)) is None
    assert bench.at_registry() == before, "and nothing new at the registry"
    assert bench.has(f"{bench.name}:local") == image, "the image itself stays"


def test_a_push_that_fails_gives_the_name_back_and_loses_no_image(bench):
    other, image = bench.make(tag="1"), bench.make(tag="local")
    bench.proxy.fail("POST /v2/", status=401, times=None)
    with pytest.raises(RegistryError):
        bench.push(image)
    assert bench.has(str(bench.reference)) == other
    bench.client.images.remove(str(bench.reference))
    bench.client.images.get(image).tag(bench.name, "1")
    bench.client.images.remove(f"{bench.name}:local", noprune=True)
    with pytest.raises(RegistryError):
        bench.push(image)
    assert bench.has(image), "an image that has no other name is kept by this one"


HELPER = """#!/bin/sh
echo "$1 $(cat)" >> "$0.asked"
[ "$1" = get ] && printf '{"ServerURL": "", "Username": "user", "Secret": "%s"}' "$HELPERS_SECRET"
"""


@pytest.fixture
def guarded(registry, docker_client):
    """A bench behind a proxy that wants a password."""
    with Proxy(registry.address, password="of the registry") as proxy:
        bench = Bench(docker_client, registry, proxy)
        yield bench
        bench.forget()


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """Write docker's configuration, and return a client that reads it and finds a credential helper."""
    helper = tmp_path / "bin" / "docker-credential-reproboxtest"
    helper.parent.mkdir()
    helper.write_text(HELPER)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")

    def write(secret="", **config):
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("HELPERS_SECRET", secret)
        (tmp_path / "config.json").write_text(json.dumps(config))
        return connect()

    write.asked = helper.with_name(f"{helper.name}.asked")
    return write


def test_the_login_comes_from_the_helper_of_the_registry(guarded, configured):
    address = guarded.proxy.address
    client = configured("of the registry", credHelpers={address: "reproboxtest"})
    image = guarded.make(tag="local")
    pushed = guarded.push(image, client=client)
    guarded.forget()
    assert guarded.pull(pushed.repo_digest, client=client).image_id == image
    assert configured.asked.read_text().splitlines() == [f"get {address}"] * 2
    wrong = configured("a wrong one", credHelpers={address: "reproboxtest"})
    guarded.forget()
    with pytest.raises(RegistryError, match=f"log in with `docker login {address}`"):
        guarded.pull(pushed.repo_digest, client=wrong)


def test_the_login_comes_from_the_store_of_all_registries_and_from_the_file(guarded, configured):
    image = guarded.make(tag="local")
    pushed = guarded.push(image, client=configured("of the registry", credsStore="reproboxtest"))
    guarded.forget()
    word = base64.b64encode(b"user:of the registry").decode()
    client = configured(auths={guarded.proxy.address: {"auth": word}})
    assert guarded.pull(pushed.repo_digest, client=client).image_id == image
    guarded.forget()
    with pytest.raises(RegistryError, match="log in with `docker login"):
        guarded.pull(pushed.repo_digest, client=configured())


def test_a_helper_that_is_missing_or_broken_is_named_and_the_registry_not_asked(guarded, configured):
    address = guarded.proxy.address
    client = configured(credHelpers={address: "no-such-helper"})
    with pytest.raises(RegistryError, match=f"login for {address} cannot be read .*docker-credential-no-such-helper"):
        guarded.pull(client=client)
    assert guarded.proxy.requests == []


def locked(bench, folder, *, config_digest, repo_digest=""):
    image = LockedImage(config_digest=config_digest, repo_digest=repo_digest, torch="2.13.0")
    write_lock(folder / "reprobox.lock", Lock(inputs=Inputs(variants=("cpu",)), images={"cpu": image}))
    return folder / "reprobox.lock"


def pull_by(bench, path, repository="", variant=None):
    options = {"store": DockerImageStore(bench.client), "report": bench.said, "patience": QUICK}
    return pull_locked(path, bench.name if repository == "" else repository, variant, **options)


def test_an_image_is_pulled_by_the_digest_of_the_lock(bench, tmp_path):
    image, digest = bench.published()
    path = locked(bench, tmp_path, config_digest=image, repo_digest=digest)
    pulled = pull_by(bench, path)
    assert (pulled.image_id, pulled.repo_digest, pulled.lock) == (image, f"{bench.name}@{digest}", str(path))
    name = project_tag(read_lock(path), "cpu")
    assert bench.has(name) == image, "as if it had been built here: runs look for that name"
    bench.client.images.remove(name)
    assert pull_by(bench, path, f"{bench.name}:a-tag-that-counts-for-nothing", "cpu").image_id == image


def test_an_image_that_is_not_the_locks_is_refused_with_both_digests_and_let_go(bench, tmp_path):
    image, digest = bench.published()
    other = "sha256:" + "0" * 64
    path = locked(bench, tmp_path, config_digest=other, repo_digest=digest)
    with pytest.raises(RegistryError, match=f"is the image {image}, and {path} names {other}; it is not used"):
        pull_by(bench, path)
    assert bench.has(image) is None
    kept = bench.pull()
    with pytest.raises(RegistryError, match="it is not used"):
        pull_by(bench, path)
    assert bench.has(kept.repo_digest) == image, "what was here before stays"


def test_a_lock_that_names_nothing_to_pull_says_what_is_missing(bench, tmp_path):
    with pytest.raises(LockError, match=r"there is no .*reprobox\.lock"):
        pull_by(bench, tmp_path / "reprobox.lock")
    path = locked(bench, tmp_path, config_digest="sha256:" + "1" * 64)
    with pytest.raises(LockError, match="was never pushed"):
        pull_by(bench, path)
    with pytest.raises(LockError, match="names no cuda image yet"):
        pull_by(bench, path, variant="cuda")
    path = locked(bench, tmp_path, config_digest="sha256:" + "1" * 64, repo_digest="sha256:" + "2" * 64)
    with pytest.raises(UsageError, match="--from HOST/NAME"):
        pull_by(bench, path, None)
    two = read_lock(path)
    write_lock(path, replace(two, images={**two.images, "cuda": two.images["cpu"]}))
    with pytest.raises(UsageError, match="cpu and cuda; choose one with --variant"):
        pull_by(bench, path)


def test_the_digest_of_a_push_is_written_to_the_lock_of_that_image_alone(bench, tmp_path):
    image = bench.make(tag="local")
    pushed = bench.push(image)
    assert note_in_lock(tmp_path, "cpu", pushed, bench.said).lock is None, "there is none"
    path = locked(bench, tmp_path, config_digest=image)
    assert note_in_lock(tmp_path, "cpu", pushed, bench.said).lock == str(path)
    assert read_lock(path).images["cpu"] == LockedImage(
        config_digest=image, repo_digest=bench.at_registry(), torch="2.13.0"
    )
    bench.forget()
    assert pull_by(bench, path).image_id == image
    path = locked(bench, tmp_path, config_digest="sha256:" + "1" * 64)
    before = path.read_bytes()
    for variant in ("cpu", "cuda"):
        assert note_in_lock(tmp_path, variant, pushed, bench.said).lock is None
    assert path.read_bytes() == before
    assert "another cpu image" in bench.said.lines[-2]
    assert "no cuda image yet" in bench.said.lines[-1]
