"""Debian 13's engines beside this machine's own: each once for all workers of a test session, and gone after it.

An engine has namespaces, a socket and folders of its own, and a registry that it reaches at :data:`REGISTRY`.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import docker.errors

import docker
from support.cli import ROOT, clean_environment
from support.daemon import answers, until
from support.debian import trixie
from support.engine import missing, told
from support.once import locked
from support.podman import PodmanCli, write_settings

REGISTRY = "127.0.0.1:5000"
PATIENCE_SECONDS = 60
_NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "--")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An engine to be started: what reprobox calls it, the version at least, and where it keeps its images."""

    name: str
    engine: str
    version: int
    store: str


KINDS = (
    Kind(name="docker-overlay2", engine="docker", version=26, store="overlay2"),
    Kind(name="docker-containerd", engine="docker", version=26, store="containerd"),
    Kind(name="podman", engine="podman", version=5, store="overlay"),
)


class NewerEngine:
    """An engine that runs: with root, and so without a user of its own, as :class:`support.podman.PodmanCli` asks."""

    as_user = ()
    rootless = False
    uid = gid = 0

    def __init__(self, kind, home, told=None, prepared=None):
        self.kind = kind
        # Short, and not under pytest's folders: a unix socket's path has at most 107 bytes.
        self.home = Path(home)
        self.told = told
        self.prepared = prepared
        self.runtime = self.home / "runtime"
        self.address = f"unix://{home}/engine.sock"

    @property
    def environment(self):
        """Environment of a ``reprobox`` that is to use it; a ``docker`` there is the engine's own."""
        runtime = {"XDG_RUNTIME_DIR": str(self.runtime)}
        if self.kind.engine == "podman":
            return {"CONTAINER_HOST": self.address, **runtime}
        path = clean_environment()["PATH"]
        return {"DOCKER_HOST": self.address, "PATH": f"{self.home}/bin:{path}", **runtime}

    def client(self, timeout=PATIENCE_SECONDS):
        return docker.DockerClient(self.address, version="auto", timeout=timeout)

    def cli(self, folder):
        """The command line on it, with the small image as :data:`support.daemon.TAG`, in a project under ``folder``."""
        mine = copy.copy(self)
        mine.runtime = folder / "runtime"
        for made in (mine.runtime, folder / "project"):
            made.mkdir(mode=0o700)
        return PodmanCli(folder / "project", mine, engine=self.kind.engine)

    def hold(self, stack):
        """Keep it from ending until ``stack`` is closed; return whether it had not ended already."""
        try:
            users = stack.enter_context((self.home / "users").open())
            fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return (self.home / "users").exists()

    def containers(self):
        """Names of the containers it has, also those of other workers, whatever their state."""
        with contextlib.closing(self.client()) as client:
            return [container["Names"][0].lstrip("/") for container in client.api.containers(all=True)]

    def start(self, root):
        """Start it on the root file system ``root`` and wait until it answers."""
        (self.home / "bin").mkdir()
        (self.home / "registry.yml").write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.home}/registry}}}}\n"
            f"http: {{addr: '{REGISTRY}'}}\n"
        )
        inside = 'exec nsenter --mount="/proc/$(cat {0}/pid)/ns/mnt" chroot {0}/rootfs /usr/bin/docker "$@"'
        (self.home / "bin" / "docker").write_text(f"#!/bin/sh\n{inside.format(self.home)}\n")
        (self.home / "bin" / "docker").chmod(0o755)
        folders = ":".join(str(folder) for folder in (tempfile.gettempdir(), Path.home(), ROOT))
        script = Path(__file__).with_name("newer_engine.sh")
        then_remove = f'home={self.home}; "$@" >"$home/start.log" 2>&1; rm -rf "$home"'
        subprocess.Popen(
            ["sh", "-c", then_remove, "sh", *_NAMESPACES, "sh", script, root, self.home, folders, *self._program()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert until(self._answers, PATIENCE_SECONDS), self._tail()
        with contextlib.closing(self.client()) as client:
            self.told = told(client)

    def _program(self):
        if self.kind.engine == "podman":
            write_settings(self.home)
            settings = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
            environment = [f"{name}={self.home}/{file}" for name, file in settings.items()]
            (self.home / "registries.conf").write_text(f'[[registry]]\nlocation = "{REGISTRY}"\ninsecure = true\n')
            environment += [
                f"CONTAINERS_REGISTRIES_CONF={self.home}/registries.conf",
                "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
            ]
            return ["env", *environment, "podman", "system", "service", "--time=0", self.address]
        features = {"features": {"containerd-snapshotter": self.kind.store == "containerd"}}
        (self.home / "daemon.json").write_text(json.dumps(features))
        paths = {"config-file": "daemon.json", "data-root": "data", "exec-root": "exec", "pidfile": "dockerd.pid"}
        return ["dockerd", f"--host={self.address}", *(f"--{name}={self.home}/{path}" for name, path in paths.items())]

    def _answers(self):
        return answers(self)

    def _tail(self):
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in self.home.glob("*.log"))


@contextlib.contextmanager
def shared(kind, folder, prepare):
    """Give the one engine of this kind in the test session whose workers share ``folder``.

    Who comes first starts it and calls ``prepare``, whose answer (made of what JSON has) everybody finds in ``prepared``.
    It ends by itself when nobody has it any more, and so does one whose session was killed.
    """
    note = folder / f"{kind.name}.json"
    with contextlib.ExitStack() as stack:
        with locked(folder / f"{kind.name}.lock"):
            engine = note.exists() and NewerEngine(kind, **json.loads(note.read_text()))
            if not engine or not engine.hold(stack):
                if os.geteuid() != 0:
                    missing("an engine in namespaces of its own needs root")
                root = trixie()
                engine = NewerEngine(kind, tempfile.mkdtemp(prefix="reprobox-engine-"))
                (engine.home / "users").touch()
                engine.hold(stack)
                engine.start(root)
                engine.prepared = prepare(engine)
                known = {"home": str(engine.home), "told": engine.told, "prepared": engine.prepared}
                note.write_text(json.dumps(known))
        yield engine
