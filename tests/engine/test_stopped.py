"""A signal in the middle of any command that builds, fetches or sends: nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
from support.cli import BIN
from support.daemon import until
from support.proxy import BLOB, UPLOAD
from support.small_edition import small_edition

SIGNALS = {"TERM": 143, "HUP": 129, "INT": 130}
by_signal = pytest.mark.parametrize("name", list(SIGNALS))


@contextlib.contextmanager
def silent_server():
    """An address that takes connections and answers none, and what says whether one has come."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take():
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple", lambda: bool(taken)
        server.shutdown(socket.SHUT_RDWR)


class Place:
    """Folders of a command's own, in which what it leaves is seen, and a mark by which its programs are known."""

    def __init__(self, cli, folder):
        self.cli = cli
        self.mark = f"MARK_OF_A_TEST_{uuid.uuid4().hex}"
        self.temporary = Path(tempfile.mkdtemp(dir=folder, prefix="temporary-"))
        self.cache = Path(tempfile.mkdtemp(dir=folder, prefix="cache-"))
        self.environment = {self.mark: "1", "TMPDIR": str(self.temporary), "XDG_CACHE_HOME": str(self.cache)}

    def start(self, *words, **more):
        return self.run(BIN / "reprobox", *words, **more)

    def run(self, *words, **more):
        return subprocess.Popen(
            words, cwd=self.cli.folder, env={**self.cli.environment, **self.environment, **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def stop(self, process, name):
        """Send the signal, and see that the command ends by it and leaves no program and no partial file."""
        process.send_signal(getattr(signal, f"SIG{name}"))
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == SIGNALS[name], stderr
        assert "Traceback" not in stderr
        assert until(lambda: not self.programs(), 10), self.programs()
        assert list(self.temporary.iterdir()) == []
        partial = [path for path in self.cache.glob("reprobox/**/.*") if not path.name.endswith(".lock")]
        assert partial == []

    def programs(self):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" "))
        return found


@pytest.fixture
def place(local, tmp_path):
    return Place(local, tmp_path)


def waiting(process, condition):
    """Wait until a command is in the middle of its work."""
    assert until(lambda: condition() or process.poll() is not None, 120)
    assert process.poll() is None, process.communicate()


@pytest.mark.local
@by_signal
def test_lock_that_waits_for_a_package_index(place, name):
    place.cli.write("reprobox.toml", 'python = ["einops"]\n')
    with silent_server() as (index, asked):
        process = place.start("lock", PIP_INDEX_URL=index, PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
        waiting(process, asked)
        place.stop(process, name)
    assert not (place.cli.folder / "reprobox.lock").exists()


@pytest.mark.engine
@by_signal
def test_build_that_waits_for_a_package_index(place, image, name):
    del image  # its base is at hand
    with silent_server() as (index, asked):
        alone = {"PIP_INDEX_URL": index, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
        process = place.start("build", "--no-cache", "--no-compiler", "--base", "bootstrap", **alone)
        waiting(process, asked)
        place.stop(process, name)


@pytest.mark.engine
@by_signal
@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_build_in_the_middle_of_a_step(place, docker_client, image, tmp_path_factory, builder, name):
    del image
    edition = slow_edition(tmp_path_factory.mktemp("edition"))
    tag = f"reprobox-test:{uuid.uuid4().hex[:12]}"
    words = [BIN / "python", "-m", "reprobox", "build", "--base", "bootstrap", "--no-compiler", "--no-cache"]
    process = place.run(*words, "--builder", builder, "--tag", tag, PYTHONPATH=str(edition), XDG_CACHE_HOME=CACHE)
    waiting(process, lambda: sleepers(edition))
    place.stop(process, name)
    assert until(lambda: not sleepers(edition), 20), "the engine goes on with the build"
    assert [c for c in docker_client.api.containers(all=True) if edition.name in c["Command"]] == []


CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


def slow_edition(folder):
    """An edition of the image that has a step of a minute, known by the folder's name."""
    edition = small_edition(folder / f"edition-{uuid.uuid4().hex[:8]}")
    script = edition / "docker" / "make-venv.sh"
    script.write_text(script.read_text().replace("set -eu\n", f"set -eu\nsh -c 'sleep 60; : {edition.name}'\n"))
    return edition


def sleepers(edition):
    """Processes of the slow step, wherever the engine runs them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f": {edition.name}".encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
    return found


@pytest.mark.engine
@by_signal
def test_save_in_the_middle_of_the_file(place, image, name):
    out = place.cli.folder / "out"
    out.mkdir()
    process = place.start("save", "out/box.img", "--image", image)
    waiting(process, lambda: any(path.stat().st_size for path in out.iterdir()))
    place.stop(process, name)
    assert list(out.iterdir()) == []


@pytest.mark.engine
@by_signal
@pytest.mark.parametrize("verb", ["pull", "push"])
def test_a_transfer_that_the_registry_holds_up(place, bench, docker_client, verb, name):
    made, digest = bench.published() if verb == "pull" else (bench.make(), None)
    fault = bench.proxy.fail(BLOB if verb == "pull" else UPLOAD, act="hang", times=None)
    wanted = f"{bench.name}:{'1' if verb == 'pull' else '2'}"
    process = place.start(verb, wanted, *(() if verb == "pull" else ("--image", made)))
    waiting(process, lambda: fault.hits)
    place.stop(process, name)
    assert wanted not in {tag for image in docker_client.api.images() for tag in image["RepoTags"] or ()}
    del digest


@pytest.mark.engine
@by_signal
@pytest.mark.parametrize("verb", ["sbom", "provenance"])
def test_a_command_that_looks_into_an_image(place, docker_client, image, verb, name):
    def made():
        """Containers that were never started, as those are that are looked into; another test's soon is."""
        never_started = {"ancestor": image, "status": "created"}
        return {c["Id"] for c in docker_client.api.containers(all=True, filters=never_started)}

    before = made()
    process = place.start(verb, "--image", image)
    until(lambda: made() - before or process.poll() is not None, 20)
    if process.poll() is None:
        place.stop(process, name)
    left = made()
    assert until(lambda: not left & made(), 20)
