"""Images pushed to a real registry and pulled from it, through a proxy that lets each of them down."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
import urllib.request
from dataclasses import replace

import docker.errors
import pytest
from support.proxy import BLOB, MANIFEST, UPLOAD, Proxy
from support.registry import running_registry
from support.said import Said

from reprobox.engines.connection import connect
from reprobox.engines.docker import DockerEngine
from reprobox.engines.transfer import Patience
from reprobox.errors import LockError, RegistryError, UsageError
from reprobox.images.lockfile import Inputs, Lock, LockedImage, read_lock, write_lock
from reprobox.images.project import project_tag
from reprobox.images.registry import note_in_lock, pull_image, pull_locked, push_image
from reprobox.reference import parse

pytestmark = pytest.mark.engine

LAYER_BYTES = 300_000
LAYER = 100_000
"""Blobs above this are layers, and no configs."""
QUICK = Patience(stall_seconds=1.5, retries=3, first_wait_seconds=0.05)
PUT_MANIFEST = r"PUT /v2/.+/manifests/"
ERRORS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def proxy(registry):
    with Proxy(registry.address) as proxy:
        yield proxy


@pytest.fixture
def bench(docker_client, registry, proxy):
    bench = Bench(docker_client, registry, proxy)
    yield bench
    bench.forget()


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
        return pull_image(wanted, client=client or self.client, report=self.said, patience=patience)

    def push(self, image, *, patience=QUICK, client=None):
        return push_image(image, self.reference, client=client or self.client, report=self.said, patience=patience)

    def at_registry(self, tag="1"):
        """Return the digest that the registry itself has under a tag, or ``None``."""
        url = f"http://{self.registry.address}/v2/team/box/manifests/{tag}"
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
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


def refusal(code, message):
    return {"headers": ERRORS, "body": json.dumps({"errors": [{"code": code, "message": message}]}).encode()}


def test_an_image_is_pulled_by_its_tag_and_its_digest_is_told(bench):
    image, digest = bench.published()
    pulled = bench.pull()
    assert (pulled.image_id, pulled.engine_id, pulled.repo_digest) == (image, image, f"{bench.name}@{digest}")
    assert bench.has(str(bench.reference)) == image
    assert bench.tries == 0


def test_an_image_is_pulled_by_its_digest(bench):
    image, digest = bench.published()
    pulled = bench.pull(f"{bench.name}@{digest}")
    assert (pulled.image_id, pulled.repo_digest) == (image, f"{bench.name}@{digest}")


def test_progress_is_told_in_bytes_up_to_all_of_them(bench, monkeypatch):
    bench.published(layers=2)
    seen = []
    monkeypatch.setattr(bench.said, "progress", lambda label, done, total: seen.append((done, total)))
    bench.pull()
    assert seen[-1][0] == seen[-1][1] > 2 * LAYER_BYTES
    assert all(done <= total for done, total in seen)


def test_a_layer_that_is_cut_off_is_fetched_on(bench):
    image, _ = bench.published()
    fault = bench.proxy.fail(BLOB, act="cut", larger_than=LAYER, after=LAYER_BYTES // 2)
    assert bench.pull().image_id == image
    assert fault.hits == 1


def test_a_manifest_that_is_cut_off_again_and_again_ends_in_an_error(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, act="cut", after=10, times=None)
    with pytest.raises(RegistryError, match=r"EOF, also after 3 more tries; see whether"):
        bench.pull()
    assert fault.hits >= 4
    assert bench.tries == 3
    bench.proxy.heal()
    bench.pull()


@pytest.mark.parametrize(("larger_than", "what"), [(LAYER, "layer"), (0, "image config")])
def test_a_byte_that_differs_is_an_error_and_leaves_nothing_to_run(bench, larger_than, what):
    image, digest = bench.published()
    fault = bench.proxy.fail(BLOB, act="corrupt", larger_than=larger_than, after=20, times=None)
    with pytest.raises(RegistryError, match=rf"not what its digest says.*{what}.*verification failed"):
        bench.pull()
    assert fault.hits >= 1
    assert bench.tries == 0
    assert [bench.has(name) for name in (str(bench.reference), f"{bench.name}@{digest}", image)] == [None] * 3
    bench.proxy.heal()
    assert bench.pull().image_id == image


def test_a_manifest_in_which_a_byte_differs_is_an_error_by_digest(bench):
    image, digest = bench.published()
    fault = bench.proxy.fail(r"GET /v2/.+/manifests/", act="corrupt", after=20, times=None)
    with pytest.raises(RegistryError):
        bench.pull(f"{bench.name}@{digest}")
    assert fault.hits >= 1
    assert bench.has(f"{bench.name}@{digest}") is None
    bench.proxy.heal()
    assert bench.pull(f"{bench.name}@{digest}").image_id == image


REFUSED = {
    "401": {"status": 401},
    "401 with a challenge": {"status": 401, "headers": {"WWW-Authenticate": 'Basic realm="x"'}},
    "403": {"status": 403},
    "403 denied": {"status": 403, **refusal("DENIED", "requested access to the resource is denied")},
}


@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED)
def test_a_registry_that_refuses_is_asked_once_and_the_login_is_named(bench, answer):
    image, _ = bench.published()
    bench.proxy.fail(r"(GET|HEAD) /v2/", times=None, **answer)
    with pytest.raises(RegistryError, match=f"log in with `docker login {bench.proxy.address}`"):
        bench.pull()
    assert bench.tries == 0
    bench.proxy.heal()
    assert bench.pull().image_id == image


@pytest.mark.parametrize("answer", [{"status": 429}, {"status": 429, **refusal("TOOMANYREQUESTS", "slow down")}])
def test_too_many_requests_are_followed_by_fewer(bench, answer):
    image, _ = bench.published()
    fault = bench.proxy.fail(MANIFEST, times=2, **answer)
    assert bench.pull().image_id == image
    assert (fault.hits, bench.tries) == (2, 1)  # the engine asks by HEAD and by GET


def test_a_registry_that_says_how_long_to_wait_is_waited_for(bench):
    image, _ = bench.published()
    bench.proxy.fail(
        MANIFEST, times=2, status=429, **refusal("TOOMANYREQUESTS", "retry-after: 1.5s, allowed: 3/minute")
    )
    started = time.monotonic()
    assert bench.pull().image_id == image
    assert time.monotonic() - started > 1.5
    assert "trying again in 1.5 s (1 of 3)" in bench.said.lines[0]


def test_a_registry_that_asks_for_an_hour_is_not_waited_for(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, times=None, status=429, **refusal("TOOMANYREQUESTS", "retry-after: 1h"))
    with pytest.raises(RegistryError, match=r"takes no more requests now \(toomanyrequests: retry-after: 1h\)"):
        bench.pull()
    assert fault.hits == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_registry_that_is_out_of_order_for_a_moment_is_asked_again(bench, status):
    image, _ = bench.published()
    fault = bench.proxy.fail(MANIFEST, status=status, times=2)
    assert bench.pull().image_id == image
    assert (fault.hits, bench.tries) == (2, 1)


def test_a_registry_that_stays_out_of_order_is_given_up_after_three_more_tries(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, status=503, times=None)
    with pytest.raises(RegistryError, match=r"503 Service Unavailable, also after 3 more tries"):
        bench.pull()
    assert (fault.hits, bench.tries) == (8, 3)


@pytest.mark.parametrize("where", [{"where": MANIFEST, "after": 10}, {"where": BLOB, "larger_than": LAYER}])
def test_a_registry_that_hangs_is_left_and_asked_again(bench, where):
    image, _ = bench.published()
    fault = bench.proxy.fail(act="hang", **where)
    assert bench.pull().image_id == image
    assert fault.hits == 1
    assert "no progress for 1.5 s; trying again" in bench.said.lines[0]


def test_a_registry_that_hangs_for_ever_is_given_up(bench):
    bench.published()
    bench.proxy.fail(BLOB, act="hang", larger_than=LAYER, times=None)
    patience = replace(QUICK, retries=1)
    with pytest.raises(RegistryError, match=r"no progress for 1\.5 s, also after 1 more try; .*--stall-timeout"):
        bench.pull(patience=patience)
    assert bench.has(str(bench.reference)) is None


def test_a_slow_registry_that_goes_on_is_waited_for(bench):
    image, _ = bench.published()
    fault = bench.proxy.fail(BLOB, act="slow", larger_than=LAYER, times=None)
    started = time.monotonic()
    assert bench.pull().image_id == image
    assert time.monotonic() - started > QUICK.stall_seconds, "it took longer than a silence may"
    assert (fault.hits, bench.tries) == (1, 0)


def test_the_layers_that_are_done_are_not_fetched_again(bench):
    image, _ = bench.published(layers=2)
    bench.proxy.fail(BLOB, act="hang", larger_than=LAYER, times=1)
    assert bench.pull().image_id == image
    assert bench.tries == 1
    bench.proxy.requests.clear()
    bench.pull()
    assert [line for line in bench.proxy.requests if "/blobs/" in line] == []


def test_an_image_that_the_registry_lacks_is_an_error_that_says_so(bench):
    bench.published()
    with pytest.raises(RegistryError, match=rf"{bench.proxy.address} has no such image .*manifest unknown"):
        bench.pull(f"{bench.name}:2")
    with pytest.raises(RegistryError, match="has no such image"):
        bench.pull(f"{bench.proxy.address}/team/other:1")
    assert bench.tries == 0


def test_where_no_registry_listens_it_is_said_at_once(bench):
    with pytest.raises(RegistryError, match="connection refused"):
        bench.pull("127.0.0.1:1/team/box:1")
    assert bench.tries == 0


BREAKS = {
    "corrupt": {"where": BLOB, "act": "corrupt", "larger_than": LAYER},
    "401": {"where": MANIFEST, "status": 401},
    "429": {"where": MANIFEST, "status": 429},
    "503": {"where": MANIFEST, "status": 503},
    "cut": {"where": MANIFEST, "act": "cut", "after": 10},
    "hang": {"where": BLOB, "act": "hang", "larger_than": LAYER},
    "gone": {"where": MANIFEST, "status": 404, **refusal("MANIFEST_UNKNOWN", "manifest unknown")},
}


@pytest.mark.parametrize("fault", BREAKS.values(), ids=BREAKS)
def test_an_older_image_under_the_tag_never_takes_the_place_of_the_one_that_fails(bench, fault):
    new, digest = bench.published()
    old = bench.make()
    engine = DockerEngine()
    assert engine.image(str(bench.reference)).image_id == old
    bench.proxy.fail(times=None, **fault)
    with pytest.raises(RegistryError):
        bench.pull(patience=replace(QUICK, retries=1))
    assert bench.has(str(bench.reference)) == old, "and the name still means what it meant"
    assert bench.has(f"{bench.name}@{digest}") is None
    bench.proxy.heal()
    assert bench.pull().image_id == new


def test_the_pull_of_a_run_ends_with_what_was_fetched_or_an_error(bench):
    new, digest = bench.published()
    bench.make()
    said = []
    fault = bench.proxy.fail(BLOB, act="corrupt", larger_than=LAYER)
    with pytest.raises(RegistryError, match="verification failed"):
        DockerEngine().pull(str(bench.reference), said.append)
    assert fault.hits == 1
    found = DockerEngine().pull(str(bench.reference), said.append)
    assert (found.image_id, found.repo_digests) == (new, (f"{bench.name}@{digest}",))
    assert any(line.startswith("Pulling from") for line in said)


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
        push_image(image, replace(bench.reference, digest=image), client=bench.client, report=bench.said)


PUSHES = {
    "cut": {"where": UPLOAD, "act": "cut"},
    "corrupt": {"where": UPLOAD, "act": "corrupt"},
    "503 for a layer": {"where": "POST /v2/", "status": 503},
    "503 for the manifest": {"where": PUT_MANIFEST, "status": 503},
    "429 for the manifest": {"where": PUT_MANIFEST, "status": 429},
    "hang": {"where": PUT_MANIFEST, "act": "hang", "after": 10},
    # Engine 20.10 does not let go of an upload that hangs before its connection ends; another try waits for it.
    "hang of a layer": {"where": UPLOAD, "act": "hang", "seconds": 2.5},
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
    "hang": ({"where": UPLOAD, "act": "hang"}, "no progress for 1.5 s, also after 3 more tries"),
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
    options = {"client": bench.client, "report": bench.said, "patience": QUICK}
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
