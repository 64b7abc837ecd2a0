"""Small images built for real and normalised: one id whoever built them, when and where; and builds that do not repeat."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest
from support.engine import ran
from support.said import Said
from support.small_build import small_build

from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import BuildError, EngineError, ImageNotFound
from reprobox.images import archive
from reprobox.images.layers import Entry, Layer, entries_of_folder, entries_of_tar, write_layer
from reprobox.images.normalise import normalise
from reprobox.images.rebuild import build_twice

pytestmark = pytest.mark.engine

TESTS = Path(__file__).parents[1]

DOCKERFILE = """
ARG BASE
FROM ${BASE} AS made
LABEL reprobox.stage=test
USER root
COPY steps.py /tmp/steps.py
RUN /usr/bin/python3 -ISB /tmp/steps.py /made

FROM ${BASE}
USER root
COPY --from=made /made /made
COPY steps.py /opt/deep/er/
RUN rm /usr/bin/seq && /usr/bin/python3 -ISB /opt/deep/er/steps.py /made/again
RUN true
ENV B=1 A=2
LABEL z=1 a=2
WORKDIR /made/work
ENTRYPOINT ["/usr/bin/python3"]
"""

# Makes the same tree each time, as differently as can be: in another order, at another time, with other leftovers.
STEPS = r"""
import os, random, shutil, sys, time
top = os.fsencode(sys.argv[1])
os.makedirs(top, exist_ok=True)
names = [b"a", b"b", b"c" * 150, "gr\u00f6\u00dfe".encode(), b"latin-\xe9", b"deep/er/x", b"deep/er/y"]
random.SystemRandom().shuffle(names)
for name in names:
    path = os.path.join(top, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        out.write(name)
for link in random.SystemRandom().sample([b"link-1", b"link-2", b"a-link"], 3):
    os.link(os.path.join(top, b"a"), os.path.join(top, link))
with open(top + b"/holes", "wb") as out:
    out.seek(100_000)
    out.write(b"end")
os.symlink(b"a", top + b"/sym")
if top != b"/made":  # BuildKit's COPY leaves named pipes out
    os.mkfifo(top + b"/fifo")
os.setxattr(top + b"/b", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
os.chmod(top + b"/b", 0o755)
os.chmod(top + b"/deep", 0o1777)
os.chown(top + b"/deep/er", 7, 8)
shutil.rmtree("/home/box")
os.mkdir("/home/box")
open("/home/box/new", "w").close()
for path in ("/var/log/apt/term.log", "/var/cache/ldconfig/aux-cache", "/etc/machine-id", "/var/lib/apt/lists/x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as out:
        out.write(f"{time.time_ns()} {os.urandom(8).hex()}")
# ONE MORE
"""
PLANTED = 'open(top + b"/planted", "w").write("at " + os.urandom(8).hex())'


@pytest.fixture(scope="module")
def base(docker_client, small_image):
    """A base of under 50 MB, by name."""
    name = f"reprobox-test-base:{uuid.uuid4().hex[:12]}"
    docker_client.api.import_image(str(small_image.archive), *name.split(":"), changes=small_image.changes)
    yield name
    docker_client.images.remove(name)


@pytest.fixture
def tag(docker_client):
    """A name for what a test builds; the image goes with it."""
    name = f"reprobox-test:{uuid.uuid4().hex[:12]}"
    yield name
    for each in docker_client.images.list(name):
        docker_client.images.remove(each.id, force=True)
    for each in docker_client.api.images(filters={"label": "reprobox.stage=test", "dangling": True}):
        docker_client.images.remove(each["Id"], force=True)


def context(more=""):
    return {"Dockerfile": DOCKERFILE.encode(), "steps.py": STEPS.replace("# ONE MORE", more).encode()}


def built(client, base, tag, tmp_path, *, builder="classic", more=""):
    return small_build(
        DockerImageStore(client), builder=builder, base=base, tag=tag, files=context(more), scratch=tmp_path
    ).image_id


def built_elsewhere(base, tag, folder, *, builder, zone, umask, wrapper=()):
    """Build in a process of its own, in ``folder``, and return the id it printed."""
    (folder / "context").mkdir(parents=True)
    for name, content in context().items():
        (folder / "context" / name).write_bytes(content)
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "support.small_build", builder, base, tag, folder / "context"],
        cwd=folder, umask=umask, capture_output=True, text=True, env={**os.environ, "TZ": zone, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_builders_give_one_id_in_any_folder_umask_time_zone_and_year(docker_client, base, tag, tmp_path):
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed (apt-get install faketime)")
    classic = built(docker_client, base, tag, tmp_path)
    assert classic == docker_client.images.get(tag).id
    near = {"builder": "buildkit", "zone": "Asia/Kathmandu", "umask": 0o077}
    assert built_elsewhere(base, tag, tmp_path / "near", **near) == classic
    far = {"builder": "classic", "zone": "America/St_Johns", "umask": 0o002, "wrapper": ["faketime", "2031-05-05"]}
    assert built_elsewhere(base, tag, tmp_path / "far" / "away", **far) == classic


def test_another_byte_gives_another_id(docker_client, base, tag, tmp_path):
    one = built(docker_client, base, tag, tmp_path)
    assert built(docker_client, base, tag, tmp_path, more='open(top + b"/more", "w").write("x")') != one


def test_the_image_holds_what_was_built_and_only_that(docker_client, base, tag, tmp_path):
    built(docker_client, base, tag, tmp_path)
    look = """
import os
s = os.stat("/made/b"); e = os.stat("/made/again/deep/er")
print(oct(s.st_mode), os.getxattr("/made/b", "security.capability").hex()[:8], e.st_uid, e.st_gid)
print(os.stat("/made/a").st_nlink, os.readlink("/made/sym"), os.path.getsize("/made/holes"))
print(os.listdir("/home/box"), os.path.exists("/usr/bin/seq"), os.path.getsize("/etc/machine-id"))
print(os.path.exists("/var/log/apt/term.log"), sorted(os.listdir(b"/made"))[-1], oct(os.stat("/tmp").st_mode))
print({int(os.lstat(os.path.join(b"/made", n)).st_mtime) for n in os.listdir(b"/made")}, os.getcwd())
"""
    said = ran(docker_client, tag, ["-ISBc", look]).decode().splitlines()
    assert said == [
        "0o100755 01000002 7 8",
        "4 a 100003",
        "['new'] False 0",
        "False b'work' 0o41777",
        "{1735689600} /made/work",
    ]


def left_by_the_builder(client, base):
    """What the builder made on this module's own base; other tests build at the same time."""
    below = client.images.get(base).attrs["RootFS"]["Layers"]
    raw = [image.attrs["RootFS"]["Layers"] for image in client.images.list("reprobox-raw")]
    return [layers for layers in raw if layers[: len(below)] == below]


def test_what_the_builder_left_is_gone_and_the_base_is_shared(docker_client, base, tag, tmp_path):
    built(docker_client, base, tag, tmp_path)
    assert left_by_the_builder(docker_client, base) == []
    below = docker_client.images.get(base).attrs["RootFS"]["Layers"]
    assert docker_client.images.get(tag).attrs["RootFS"]["Layers"][: len(below)] == below
    assert list(tmp_path.iterdir()) == []


def twice(client, base, tag, tmp_path, more, builder):
    def make(within):
        return small_build(
            DockerImageStore(client), builder=builder, base=base, tag=tag, files=context(more),
            scratch=within.scratch if within else tmp_path, backwards=bool(within and within.backwards),
        )  # fmt: skip

    return build_twice(make, store=DockerImageStore(client), scratch=tmp_path)


@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_a_build_that_repeats_is_the_same_when_built_twice(docker_client, base, tag, tmp_path, builder):
    before = (Path.cwd(), os.environ.get("TZ"))
    first, seen = twice(docker_client, base, tag, tmp_path, "", builder)
    assert (seen.same, seen.difference, seen.other_image_id) == (True, None, first.image_id)
    assert (Path.cwd(), os.environ.get("TZ")) == before


@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_a_step_that_does_not_repeat_is_named_with_its_layer_and_byte(docker_client, base, tag, tmp_path, builder):
    first, seen = twice(docker_client, base, tag, tmp_path, PLANTED, builder)
    assert not seen.same
    assert first.image_id != seen.other_image_id
    assert (seen.difference.layer, seen.difference.path) == (2, "/made/planted")
    assert seen.difference.what.startswith(("content from byte 3 ", "content from byte 4 "))
    # The name is the first image's again, and the second is gone.
    assert docker_client.images.get(tag).id == first.image_id
    assert seen.other_image_id not in {each["Id"] for each in docker_client.api.images(all=True)}


def test_bytecode_with_a_date_fails_the_build_and_leaves_nothing(docker_client, base, tag, tmp_path):
    more = 'open(top + b"/m.py", "w").close(); import py_compile; py_compile.compile(top.decode() + "/m.py")'
    with pytest.raises(BuildError, match=r"/made/__pycache__/m\.cpython-\d+\.pyc remembers the date"):
        built(docker_client, base, tag, tmp_path, more=more)
    assert left_by_the_builder(docker_client, base) == []


def put_on(client, base, tag, tmp_path, content):
    """Put a layer with one file on the image ``base``; return the assembled image and what it loaded as."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "hello").write_text(content)
    layer = write_layer(entries_of_folder(tmp_path / "site", at="opt/project"), tmp_path)
    image = archive.assemble(
        archive.described(DockerImageStore(client), base), [layer], changes={"Cmd": ["x"]}, said=["the project's"]
    )
    return image, archive.load(DockerImageStore(client), image, tag=tag, scratch=tmp_path)


def test_a_layer_put_on_an_image_sends_that_layer_alone(docker_client, base, tag, tmp_path, monkeypatch):
    sent = []
    load = DockerImageStore.load
    monkeypatch.setattr(DockerImageStore, "load", lambda store, chunks, log: load(store, counted(chunks, sent), log))
    image, engine_id = put_on(docker_client, base, tag, tmp_path, "hello")
    assert engine_id == image.image_id == docker_client.images.get(tag).id
    assert sum(sent) < 100_000
    assert ran(docker_client, tag, ["/opt/project/hello"], entrypoint=["/bin/cat"]) == b"hello"
    assert docker_client.api.history(tag)[0]["CreatedBy"] == "the project's"


def counted(chunks, sent):
    for chunk in chunks:
        sent.append(len(chunk))
        yield chunk


def test_an_engine_that_wants_every_layer_gets_every_layer(docker_client, base, tag, tmp_path, monkeypatch):
    image, _ = put_on(docker_client, base, tag, tmp_path, "first")
    docker_client.images.remove(tag)
    sent = []
    load = DockerImageStore.load

    def refusing(store, chunks, log):
        if not sent:
            sent.append(0)
            raise EngineError("a layer is missing")
        return load(store, counted(chunks, sent), log)

    monkeypatch.setattr(DockerImageStore, "load", refusing)
    again, engine_id = put_on(docker_client, base, tag, tmp_path, "first")
    assert engine_id == again.image_id == image.image_id
    assert sum(sent) > 10_000_000


def test_a_layer_no_image_of_the_engine_has_is_an_error(docker_client, base, tag, tmp_path):
    described = archive.described(DockerImageStore(docker_client), base)
    unknown = archive.assemble(described, [Layer(diff_id="sha256:" + "7" * 64)])
    with pytest.raises(EngineError):
        archive.load(DockerImageStore(docker_client), unknown, tag=tag, scratch=tmp_path)
    with pytest.raises(ImageNotFound):
        archive.described(DockerImageStore(docker_client), "reprobox-test:absent")


def test_an_image_does_not_normalise_on_a_base_it_does_not_stand_on(docker_client, base, tag, image, tmp_path):
    with pytest.raises(BuildError, match="does not stand on"):
        normalise(DockerImageStore(docker_client), base, base=image, tag=tag, scratch=tmp_path, report=Said())


def test_gnu_tar_reads_a_layer_back_as_it_was_written(tmp_path):
    (tmp_path / "in").mkdir()
    name = "long" * 60
    (tmp_path / "in" / name).write_text("x")
    (tmp_path / "in" / "link").symlink_to("y" * 120)
    layer = write_layer(entries_of_folder(tmp_path / "in", at="top"), tmp_path)
    listed = subprocess.run(["tar", "-tvf", layer.path], capture_output=True, text=True, env={"TZ": "UTC"}, check=True)
    assert "2025-01-01 00:00 top/" + name in listed.stdout
    assert "-> " + "y" * 120 in listed.stdout
    assert listed.stderr == ""


def test_a_sparse_tar_of_gnu_tar_gives_the_layer_of_the_dense_one(tmp_path):
    with (tmp_path / "holes").open("wb") as out:
        out.seek(5_000_000)
        out.write(b"end")
    layers = []
    for options in (["--sparse", "--format=gnu"], ["--sparse", "--format=pax"], ["--format=gnu"]):
        made = tmp_path / "made.tar"
        subprocess.run(["tar", "-cf", made, "-C", tmp_path, *options, "holes"], check=True)
        with made.open("rb") as stream:
            (entry,) = entries_of_tar(stream)
            assert isinstance(entry, Entry)
            layers.append(write_layer([entry], tmp_path))
    assert layers[0] == layers[1] == layers[2]
    with tarfile.open(layers[0].path) as read:
        assert read.getmember("holes").size == 5_000_003
