import hashlib
import io
import json
import tarfile
from types import SimpleNamespace

import docker.auth
import docker.errors
import pytest
import requests
from support.said import Said

from reprobox.engines.digests import config_digest_from_archive, config_digest_of
from reprobox.engines.docker_store import DockerImageStore
from reprobox.engines.store import BuildJob
from reprobox.errors import BuildError, EngineError, EngineUnavailable, UsageError
from reprobox.images import BuildResult, base, bootstrap
from reprobox.images.base import Base, choose_base, same_base

DIGEST = "sha256:" + "d" * 64
IMAGE_ID = "sha256:" + "1" * 64


class FakeClient:
    """As much of an engine as choosing a base asks for."""

    def __init__(self, *, present=None, answers=(), status=()):
        self.present = present or {}
        self.tagged = []
        self.images = SimpleNamespace(get=self._get)
        self.answers, self.asked = answers, []
        self.api = SimpleNamespace(
            timeout=60, get_image=self._get_image, tag=self._tag, post=self._post, base_url="http://engine", api_version="1.43",
            _auth_configs=docker.auth.AuthConfig({}), credstore_env={},
        )  # fmt: skip
        self.status, self.saved = list(status), []

    def _post(self, _url, *, params, **_):
        self.asked.append(params)
        if isinstance(self.answers, Exception):
            raise self.answers
        lines = [json.dumps(answer).encode() for answer in self.answers]
        return SimpleNamespace(status_code=200, iter_lines=lambda **_: iter(lines), close=lambda: None, raw=None)

    def info(self):
        return {"DriverStatus": self.status}

    def _get(self, name):
        if name not in self.present:
            raise docker.errors.ImageNotFound(f"no such image: {name}")
        return SimpleNamespace(attrs=self.present[name])

    def _get_image(self, name, **_):
        self.saved.append(name)
        return iter(self.answers)

    def _tag(self, image, name, *, tag):
        self.tagged.append((image, f"{name}:{tag}"))


def choose(asked, client, said=None):
    return choose_base(asked, store=DockerImageStore(client), cache=None, report=said or Said())


def test_the_digest_recorded_is_the_one_the_pull_answered():
    client = FakeClient(answers=[{"status": "Pulling"}, {"status": f"Digest: {DIGEST}"}])
    assert choose("debian:12", client) == Base(
        source=f"docker.io/library/debian@{DIGEST}", digest=DIGEST, record=DIGEST, name="docker.io/library/debian:12"
    )


def test_a_failed_pull_of_a_base_that_was_asked_for_is_an_error_and_nothing_replaces_it():
    said = Said()
    with pytest.raises(EngineError) as failure:
        choose("debian:12", FakeClient(answers=[{"error": "no such host"}]), said)
    assert failure.value.detail == "no such host"
    assert said.lines == []


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were waited between tries."""
    waited = []
    monkeypatch.setattr("reprobox.engines.transfer.time.sleep", waited.append)
    return waited


SILENCE = requests.exceptions.ReadTimeout()


@pytest.mark.parametrize("answers", [[{"error": "unexpected EOF"}], SILENCE], ids=["cut off", "silent"])
def test_a_base_that_is_named_is_tried_again_and_one_that_is_only_tried_is_not(monkeypatch, waited, answers):
    monkeypatch.setattr(base, "locked_base", lambda: None)
    monkeypatch.setattr(base, "bootstrap", lambda *_, **__: IMAGE_ID)
    named, tried, said = FakeClient(answers=answers), FakeClient(answers=answers), Said()
    with pytest.raises(EngineError, match=r"the base docker.io/library/debian:12 cannot be pulled; .*--base bootstrap"):
        choose("debian:12", named)
    assert (len(named.asked), waited) == (4, [2.0, 4.0, 8.0])
    assert choose(None, tried, said).record == f"bootstrap@{IMAGE_ID}"
    assert len(tried.asked) == 1
    assert ("no progress for 60 s" if answers is SILENCE else "unexpected EOF") in said.lines[1]


def test_an_engine_that_goes_away_is_not_taken_for_a_missing_network(monkeypatch):
    monkeypatch.setattr(base, "locked_base", lambda: None)
    with pytest.raises(EngineUnavailable, match="stopped answering"):
        choose(None, FakeClient(answers=requests.exceptions.ConnectionError()))


def test_a_base_of_another_digest_than_the_one_that_is_named_is_refused_with_both():
    other = "sha256:" + "e" * 64
    with pytest.raises(EngineError, match=f"pulled {other} for .*{DIGEST}.*do not use"):
        choose(f"debian@{DIGEST}", FakeClient(answers=[{"status": f"Digest: {other}"}]))


def test_a_pull_that_names_no_digest_is_an_error():
    with pytest.raises(EngineError, match="digest"):
        choose("debian:12", FakeClient(answers=[{"status": "Done"}]))


def test_a_base_by_digest_that_is_there_is_not_pulled():
    client = FakeClient(present={f"docker.io/library/debian@{DIGEST}": {"Id": IMAGE_ID, "RepoDigests": ["x"]}})
    assert choose(f"debian@{DIGEST}", client).record == DIGEST


def test_a_base_no_registry_knows_is_recorded_by_its_image_id_and_has_no_name():
    client = FakeClient(
        present={"docker.io/library/mine:1": {"Id": IMAGE_ID, "RepoDigests": []}, IMAGE_ID: {"Id": IMAGE_ID}}
    )
    chosen = choose("mine:1", client)
    assert (chosen.record, chosen.name) == (IMAGE_ID, "")
    assert chosen.source == "reprobox-base:111111111111"
    assert client.tagged == [(IMAGE_ID, "docker.io/library/reprobox-base:111111111111")]


def test_an_image_that_podman_named_after_this_machine_is_known_to_no_registry():
    name = "docker.io/library/mine:1"
    client = FakeClient(
        present={
            name: {"Id": IMAGE_ID, "RepoDigests": [f"localhost/mine@{DIGEST}"]},
            IMAGE_ID: {"Id": IMAGE_ID},
        }
    )
    assert choose("mine:1", client).record == IMAGE_ID


def test_where_every_image_has_a_digest_a_base_that_cannot_be_pulled_may_be_named_by_its_id():
    known = {"Id": IMAGE_ID, "RepoDigests": [f"mine@{DIGEST}"]}  # as the containerd store has what was built on it
    client = FakeClient(present={"docker.io/library/mine:1": known}, answers=[{"error": "pull access denied"}])
    with pytest.raises(EngineError, match=f"mine:1 cannot be pulled; .* or pass --base {IMAGE_ID} for the image"):
        choose("mine:1", client)


def test_with_no_base_asked_and_no_registry_the_base_is_bootstrapped_and_each_step_said(monkeypatch):
    monkeypatch.setattr(base, "locked_base", lambda: None)
    monkeypatch.setattr(base, "bootstrap", lambda *_, **__: IMAGE_ID)
    said = Said()
    chosen = choose(None, FakeClient(answers=[{"error": "no such host"}]), said)
    assert chosen.record == f"bootstrap@{IMAGE_ID}"
    assert "the lock names no base" in said.lines[0]
    assert "no such host" in said.lines[1]
    assert "bootstrapping" in said.lines[1]


def test_the_base_the_lock_names_is_taken_and_never_replaced(monkeypatch):
    monkeypatch.setattr(base, "locked_base", lambda: base.reference.parse(f"debian@{DIGEST}"))
    assert choose(None, FakeClient(answers=[{"status": f"Digest: {DIGEST}"}])).record == DIGEST
    with pytest.raises(EngineError):
        choose(None, FakeClient(answers=[{"error": "no such host"}]))


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ("debian:12", True), ("docker.io/library/debian:12", True), (f"debian@{DIGEST}", True), ("debian:13", False),
        ("debian", False), ("bootstrap", False), (DIGEST, True), (IMAGE_ID, False),
    ],
)  # fmt: skip
def test_a_built_image_is_compared_with_the_base_that_is_asked_for(asked, same):
    labels = {"reprobox.base": DIGEST, "org.opencontainers.image.base.name": "docker.io/library/debian:12"}
    assert same_base(asked, labels) is same


def test_a_bootstrapped_image_is_told_by_its_label():
    assert same_base("bootstrap", {"reprobox.base": f"bootstrap@{IMAGE_ID}"})
    with pytest.raises(UsageError):
        same_base("A/B", {})


def archive(config_name, config=b'{"os":"linux"}', manifest=None, *, manifest_first=True):
    """A ``docker save`` archive with a layer in the middle, in chunks of an awkward size."""
    entries = [{"Config": config_name, "Layers": ["layer.tar"]}] if manifest is None else manifest
    members = [(config_name, config), ("blobs/sha256/layer", b"\x1f\x8b" + bytes(5000))]
    members.insert(0 if manifest_first else 2, ("manifest.json", json.dumps(entries).encode()))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    whole = out.getvalue()
    return [whole[at : at + 777] for at in range(0, len(whole), 777)]


@pytest.mark.parametrize("name", ["0123.json", "blobs/sha256/0123"])
@pytest.mark.parametrize("manifest_first", [True, False])
def test_the_config_digest_is_computed_from_the_archive_wherever_the_manifest_lies(name, manifest_first):
    expected = "sha256:" + hashlib.sha256(b'{"os":"linux"}').hexdigest()
    assert config_digest_from_archive(archive(name, manifest_first=manifest_first)) == expected


@pytest.mark.parametrize(
    "chunks",
    [[], [b"no tar" * 200], archive("a.json", manifest=[]), archive("a.json", manifest=[{"Config": "b.json"}])],
)
def test_an_archive_that_holds_no_image_is_an_error(chunks):
    with pytest.raises(EngineError, match="archive"):
        config_digest_from_archive(chunks)


CONTAINERD = [["driver-type", "io.containerd.snapshotter.v1"]]
CONFIG_DIGEST = "sha256:" + hashlib.sha256(b'{"os":"linux"}').hexdigest()


def test_with_the_containerd_store_the_config_digest_is_not_the_engines_id_and_is_read_once(cache_here):
    present = {"x": {"Id": IMAGE_ID}}
    plain = DockerImageStore(FakeClient(present=present))
    assert plain.image_id(plain.inspect("x")) == IMAGE_ID
    client = FakeClient(present=present, answers=archive("blobs/sha256/0123"), status=CONTAINERD)
    for _ in range(2):
        store = DockerImageStore(client)
        assert store.image_id(store.inspect("x")) == CONFIG_DIGEST
    assert client.saved == [IMAGE_ID]
    assert client.api.timeout == 60


@pytest.mark.parametrize("note", [b"", b"sha256:short", b"\xff"])
def test_a_note_of_a_digest_that_is_none_is_not_believed(cache_here, note):
    path = cache_here / "reprobox" / "image-ids" / IMAGE_ID.removeprefix("sha256:")
    path.parent.mkdir(parents=True)
    path.write_bytes(note)
    client = FakeClient(present={"x": {"Id": IMAGE_ID}}, answers=archive("blobs/sha256/0123"), status=CONTAINERD)
    store = DockerImageStore(client)
    assert store.image_id(store.inspect("x")) == CONFIG_DIGEST


def test_an_archive_is_read_only_as_far_as_the_manifest_that_the_image_is_called_after():
    manifest = json.dumps({"config": {"digest": CONFIG_DIGEST}}).encode()
    name = "sha256:" + hashlib.sha256(manifest).hexdigest()
    chunks = iter([*archive("blobs/sha256/0", manifest), b"never read"])
    assert config_digest_of(name, chunks) == CONFIG_DIGEST
    assert b"never read" in chunks


@pytest.fixture
def cache_here(tmp_path, monkeypatch):
    """The user's cache, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_bootstrapped_bases_id_follows_from_its_tar_alone():
    image_id, config = bootstrap.base_config("a" * 64)
    assert image_id == "sha256:" + hashlib.sha256(config).hexdigest()
    assert bootstrap.base_config("b" * 64)[0] != image_id
    assert json.loads(config)["rootfs"]["diff_ids"] == ["sha256:" + "a" * 64]


def test_without_mmdebstrap_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "find_program", lambda _: None)
    with pytest.raises(BuildError, match=r"apt-get install mmdebstrap, or pass an image with --base"):
        bootstrap.make_base((), cache=tmp_path, report=Said())


def test_without_apt_the_way_out_is_named(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("apt-get")

    monkeypatch.setattr(bootstrap.subprocess, "run", missing)
    with pytest.raises(BuildError, match="--base REF"):
        bootstrap.apt_targets()


def test_apt_lists_of_another_release_do_not_make_a_base(monkeypatch, tmp_path):
    listing = tmp_path / "Packages"
    listing.write_text("")
    row = f"deb http://example.org trixie main|trixie|main|{listing}\n"
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=row))
    with pytest.raises(BuildError, match="apt-get update"):
        bootstrap.apt_targets()


def classic(answers, tmp_path, present=None):
    context = tmp_path / "context.tar"
    context.write_bytes(b"")
    client = FakeClient(present=present)
    client.api.build = lambda **_: iter(answers)
    said = Said()
    with context.open("rb") as opened:
        job = BuildJob(context=opened, args={}, tag="x:1", network="none", no_cache=False)
        return DockerImageStore(client).build(job, "classic", said), said


def test_a_failed_step_is_an_error_with_the_tail_of_the_log_and_no_colours(tmp_path):
    answers = [{"stream": "Step 1/2 : RUN x\n"}, {"stream": "\x1b[91mwhy it failed\x1b[0m\n"}]
    answers.append({"errorDetail": {"code": 1, "message": "The command 'x' returned a non-zero code: 1"}})
    with pytest.raises(BuildError, match="non-zero code: 1") as failure:
        classic(answers, tmp_path)
    assert failure.value.detail == "Step 1/2 : RUN x\nwhy it failed"


def test_a_build_that_ends_without_an_image_is_an_error(tmp_path):
    with pytest.raises(BuildError, match="ended the build without an image"):
        classic([{"stream": "Step 1/1 : FROM x\n"}], tmp_path)
    assert classic([], tmp_path, {"x:1": {"Id": IMAGE_ID}})[0].engine_id == IMAGE_ID


def test_the_result_is_a_versioned_document():
    result = BuildResult(
        image_id=DIGEST, engine_id=DIGEST, builder="classic", reused=False, variant="cpu", tag="x:1", base=DIGEST,
        input="0", lock="sha256:0", seconds=1.23456,
    )  # fmt: skip
    document = json.loads(json.dumps(result.to_json()))
    assert document["schema"] == "reprobox.build/1"
    assert document["seconds"] == 1.235
    assert {"image_id", "engine_id", "builder", "reused"} <= set(document)
