"""The file of a saved image: every bit of it is sealed, and nothing that is not whole reaches an engine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import tarfile
from types import SimpleNamespace

import pytest
from support.said import Said

from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import ArchiveError, EngineError
from reprobox.images import airgap
from reprobox.images.airgap import load_image, save_image

NAME = "team/box:1"


def engine_archive(layer=b"layer", config=b'{"os": "linux"}', *, names=(NAME,), more=()):
    """What an engine's save gives, and the id of the image in it; ``more`` are further files, by name."""
    digest = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": list(names), "Layers": ["l/layer.tar"]}]).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (("l/layer.tar", layer), (f"{digest}.json", config), ("manifest.json", manifest), *more):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue(), f"sha256:{digest}"


class Engine:
    """As much of docker-py's client as saving and loading needs."""

    def __init__(self, archive=b"", image_id="", *, breaks_after=None, answer=()):
        self.archive, self.image_id = archive, image_id
        self.breaks_after, self.answer = breaks_after, answer
        self.loaded = b""
        self.images = SimpleNamespace(get=lambda _name: SimpleNamespace(id=image_id, attrs=self.attributes))
        self.api = SimpleNamespace(get_image=self.get_image, load_image=self.load_image, timeout=60)

    @property
    def attributes(self):
        return {"Id": self.image_id, "RepoTags": [NAME]}

    def info(self):
        return {}

    def get_image(self, _name, chunk_size):
        for place in range(0, len(self.archive), 100):
            if self.breaks_after is not None and place > self.breaks_after:
                raise OSError("the connection broke")
            yield self.archive[place : place + 100]

    def load_image(self, chunks):
        self.loaded = b"".join(chunks)
        yield from self.answer


@pytest.fixture
def saved(tmp_path):
    """A saved image: the file, what the engine gave for it, and its id."""
    archive, image_id = engine_archive(random.Random(0).randbytes(5000))
    path = tmp_path / "box.img"
    result = save_image(NAME, path, store=DockerImageStore(Engine(archive, image_id)), report=Said())
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest(), "as sha256sum says"
    assert (result.image_id, result.names, result.size) == (image_id, (NAME,), path.stat().st_size)
    return SimpleNamespace(path=path, archive=archive, image_id=image_id)


def load(path, image_id, **options):
    engine = Engine(image_id=image_id, **options)
    return load_image(path, store=DockerImageStore(engine), report=Said()), engine


def test_what_is_loaded_is_what_the_engine_gave(saved):
    result, engine = load(saved.path, saved.image_id)
    assert engine.loaded == saved.archive
    assert (result.image_id, result.names) == (saved.image_id, (NAME,))
    assert result.sha256 == hashlib.sha256(saved.path.read_bytes()).hexdigest()


def test_the_same_image_gives_the_same_bytes_on_any_number_of_cores(saved, tmp_path, monkeypatch):
    again = tmp_path / "again.img"
    threads = airgap.zstd.CompressionParameter.nb_workers
    monkeypatch.setitem(airgap._COMPRESSION, threads, airgap._COMPRESSION[threads] + 1)
    save_image(NAME, again, store=DockerImageStore(Engine(saved.archive, saved.image_id)), report=Said())
    assert again.read_bytes() == saved.path.read_bytes()
    other, image_id = engine_archive(b"another layer")
    save_image(NAME, again, store=DockerImageStore(Engine(other, image_id)), report=Said())
    assert again.read_bytes() != saved.path.read_bytes()


def test_any_bit_that_differs_is_seen_and_no_engine_is_asked(saved):
    whole = saved.path.read_bytes()
    places = {*range(0, len(whole), 97), *range(len(whole) - 2048, len(whole), 31), len(whole) - 1}
    for place in sorted(places):
        saved.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ArchiveError, match=r"damaged or cut short|was not written by"):
            load_image(saved.path, store=None, report=Said())
    saved.path.write_bytes(whole)
    load(saved.path, saved.image_id)


def test_a_file_that_is_cut_short_or_goes_on_is_refused(saved):
    whole = saved.path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 512, len(whole) // 2, 1024):
        saved.path.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=rf"damaged or cut short: its {cut} bytes"):
            load_image(saved.path, store=None, report=Said())
    saved.path.write_bytes(whole + b"\0")
    with pytest.raises(ArchiveError, match="damaged or cut short"):
        load_image(saved.path, store=None, report=Said())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", os.urandom(5000), engine_archive()[0]])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "other.img"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"was not written by `reprobox save`; .* `docker load`"):
        load_image(path, store=None, report=Said())


def sealed(*members):
    """A file whose seal is right, whatever is in it."""
    body = airgap._member("README", airgap._README.encode()) + b"".join(airgap._member(*each) for each in members)
    return body + airgap._seal(hashlib.sha256(body).hexdigest())


def described(image_id, schema=airgap.SCHEMA):
    return "image.json", json.dumps({"schema": schema, "image_id": image_id, "names": [NAME]}).encode()


def packed(archive):
    return "image.tar.zst", airgap.zstd.compress(archive)


def test_a_seal_alone_proves_nothing(tmp_path):
    archive, image_id = engine_archive()
    path, other = tmp_path / "made.img", "sha256:" + "0" * 64
    for members, sentence in {
        (packed(archive), described(other)): f"names {other} and holds {image_id}",
        (packed(b"no tar"), described(image_id)): "holds no image that can be read",
        (("image.tar.zst", b"not compressed"), described(image_id)): "holds no image that can be read",
        (packed(archive),): "holds no image that can be read",
        (packed(archive), ("image.json", b"[]")): "holds no image that can be read",
        (packed(archive), described(image_id, "reprobox.image-archive/2")): "newer reprobox",
    }.items():
        path.write_bytes(sealed(*members))
        with pytest.raises(ArchiveError, match=sentence):
            load_image(path, store=None, report=Said())
    path.write_bytes(sealed(packed(archive), described(image_id)))
    assert load(path, image_id)[0].image_id == image_id


def index(*annotations):
    return ("index.json", json.dumps({"manifests": [{"annotations": each} for each in annotations]}).encode())


CONTAINERD, OCI = "io.containerd.image.name", "org.opencontainers.image.ref.name"
UNDECLARED = {
    "a tag": {"names": (NAME, "python:3.12")},
    "an older list of tags": {"more": [("repositories", b'{"python": {"3.12": "l"}}')]},
    "containerd's name": {"more": [index({CONTAINERD: "docker.io/library/python:3.12"})]},
    "the OCI's name": {"more": [index({OCI: "1"}, {OCI: "python:3.12"})]},
}


@pytest.mark.parametrize("case", list(UNDECLARED))
def test_an_image_that_would_take_a_name_that_the_file_does_not_declare_never_reaches_the_engine(tmp_path, case):
    archive, image_id = engine_archive(**UNDECLARED[case])
    (tmp_path / "made.img").write_bytes(sealed(packed(archive), described(image_id)))
    with pytest.raises(ArchiveError, match=r"would give the image a name that it does not declare: .*python:3\.12"):
        load_image(tmp_path / "made.img", store=None, report=Said())


@pytest.mark.parametrize("name", [NAME, f"docker.io/{NAME}", f"localhost/{NAME}"])
def test_a_declared_name_may_be_written_as_an_engine_writes_it(tmp_path, name):
    archive, image_id = engine_archive(names=(name,), more=[index({CONTAINERD: f"docker.io/{NAME}", OCI: "1"})])
    path = tmp_path / "made.img"
    path.write_bytes(sealed(packed(archive), described(image_id)))
    assert load(path, image_id)[0].image_id == image_id


@pytest.mark.parametrize("before", [None, b"an older file"])
def test_a_save_that_breaks_off_leaves_what_was_there(tmp_path, before):
    archive, image_id = engine_archive(bytes(5000))
    path = tmp_path / "box.img"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(EngineError, match="stopped answering while it was to save"):
        save_image(NAME, path, store=DockerImageStore(Engine(archive, image_id, breaks_after=2000)), report=Said())
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([before] if before else [])


def test_an_engine_that_gives_half_an_archive_or_another_image_is_found_out_before_the_file_has_its_name(tmp_path):
    archive, image_id = engine_archive(bytes(5000))
    other, another = engine_archive(config=b'{"os": "other"}')
    for given, sentence in ((archive[:3000], "holds no image"), (other, f"names {image_id} and holds {another}")):
        with pytest.raises(ArchiveError, match=sentence):
            save_image(NAME, tmp_path / "box.img", store=DockerImageStore(Engine(given, image_id)), report=Said())
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_refuses_the_image_or_makes_another_of_it_is_an_error(saved):
    with pytest.raises(EngineError, match=r"could not load the image: no space left on device"):
        load(saved.path, saved.image_id, answer=[{"errorDetail": {"message": "no space left\non device"}}])
    with pytest.raises(EngineError, match="loaded another image"):
        load(saved.path, "sha256:" + "0" * 64)


def test_a_disk_that_is_full_is_said_and_nothing_is_left(saved, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(ArchiveError, match=r"cannot be written \(File too large\); .* make room"):
            save_image(
                NAME, tmp_path / "new.img", store=DockerImageStore(Engine(saved.archive, saved.image_id)), report=Said()
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [saved.path]


def test_a_place_that_cannot_be_written_or_read_is_said(saved, tmp_path):
    with pytest.raises(ArchiveError, match=r"cannot be written \(No such file"):
        save_image(
            NAME,
            tmp_path / "no" / "box.img",
            store=DockerImageStore(Engine(saved.archive, saved.image_id)),
            report=Said(),
        )
    with pytest.raises(ArchiveError, match=r"cannot be read \(No such file"):
        load_image(tmp_path / "none.img", store=None, report=Said())


def test_the_file_has_the_rights_of_any_new_file(saved, tmp_path):
    # The umask is the process's: it is read here by what it does, and never set.
    (tmp_path / "new").touch()
    assert saved.path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_plain_tools_can_read_the_file(saved):
    with tarfile.open(saved.path) as tar:
        assert tar.getnames() == ["README", "image.tar.zst", "image.json", "SHA256"]
        assert airgap.zstd.decompress(tar.extractfile("image.tar.zst").read()) == saved.archive
        digest = tar.extractfile("SHA256").read().decode().strip()
    assert digest == hashlib.sha256(saved.path.read_bytes()[:-2048]).hexdigest()
