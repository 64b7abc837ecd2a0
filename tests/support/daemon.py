"""A Docker daemon of the tests' own, to be killed, frozen, stopped and filled up without touching this machine's.

It always runs in a network namespace of its own: a second daemon with ``--bridge=none`` deletes the first one's docker0.
Containers there have ``--network none``, and run :data:`TAG`, which is reprobox's image without torch.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import docker.errors
import requests.exceptions

import docker

TAG = "reprobox-small:1"
PATIENCE_SECONDS = 60

# Python with its standard library, a shell and a few tools, with the libraries that ldd finds for them: under 50 MB.
# Links between folders (/lib is /usr/lib) are packed as links, so what lies in them goes by its real folder.
_PACK = r"""
set -eu
names="cat echo env false head id printf rm seq sh dash sleep tail touch true wc"
programs="/usr/bin/tini $(readlink -f /usr/bin/python3) $(for name in $names; do echo /usr/bin/$name; done)"
stdlib=$(/usr/bin/python3 -IS -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
libraries=$(ldd $programs $stdlib/lib-dynload/*.so 2>/dev/null | sed -n 's/^\t\(.*=> \)\?\(\/[^ ]*\) (0x.*/\2/p' | sort -u)
linked=$(for file in $libraries; do echo "$(readlink -f "${file%/*}")/${file##*/}"; readlink -f $file; done | sort -u)
for skipped in test config-* idlelib lib2to3 ensurepip pydoc_data turtledemo; do
    set -- "$@" "--exclude=$stdlib/$skipped"
done
exec tar -c -P "$@" $programs /usr/bin/python3 $stdlib $linked /bin /sbin /lib /lib64 /tmp /home/box /workspace \
    /etc/passwd /etc/group /opt/reprobox $(ls -d /opt/venv/bin/python*)
"""


class SmallImage:
    """reprobox's image without torch: an archive made once (:meth:`pack`), imported by each daemon as ``image`` is set up.

    :param client: of the engine that has ``image``.
    """

    def __init__(self, client, image, archive):
        self.archive = archive
        config = client.images.get(image).attrs["Config"]
        self.changes = [
            *(f"ENV {name}={json.dumps(value)}" for name, value in (entry.split("=", 1) for entry in config["Env"])),
            *(f"LABEL {name}={json.dumps(value)}" for name, value in config["Labels"].items()),
            f"ENTRYPOINT {json.dumps(config['Entrypoint'])}",
            f"CMD {json.dumps(config['Cmd'])}",
            f"USER {config['User']}",
            f"WORKDIR {config['WorkingDir']}",
        ]

    @staticmethod
    def pack(client, image, archive):
        """Write the archive, which takes its seconds; nothing is left at the engine."""
        options = {"entrypoint": ["/bin/sh", "-c", _PACK, "pack"], "user": "0", "network_mode": "none"}
        container = client.containers.create(image, **options)
        try:
            stream = container.attach(stdout=True, stderr=False, stream=True, logs=False)
            container.start()
            with archive.open("wb") as file:
                file.writelines(stream)
            assert container.wait()["StatusCode"] == 0, container.logs(stdout=False).decode()
        finally:
            container.remove(force=True)

    def labelled(self, name, value):
        """Return the same image with another label."""
        other = copy.copy(self)
        other.changes = [*self.changes, f"LABEL {name}={json.dumps(value)}"]
        return other


def answers(engine):
    """Tell whether an engine of the tests' own answers; ``engine.client(timeout=…)`` connects to it."""
    try:
        with contextlib.closing(engine.client(timeout=5)) as client:
            return client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException):
        return False


class Daemon:
    """``dockerd`` with folders, a socket and a containerd of its own; what it leaves goes when the ``with`` block ends.

    ``data_root`` may lie on a file system of its own (:func:`small_disk`). ``variables`` are added to its environment.
    """

    def __init__(self, data_root=None, *, variables=None):
        # Short, and not under pytest's folders: a unix socket's path has at most 107 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="reprobox-daemon-"))
        self.data_root = data_root or self.home / "data"
        self.exec_root = self.home / "exec"
        self.socket = self.home / "docker.sock"
        self.log = self.home / "dockerd.log"
        self.variables = variables or {}
        self.process = None
        self.live_restore = False

    @property
    def environment(self):
        return {"DOCKER_HOST": f"unix://{self.socket}"}

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def client(self, timeout=PATIENCE_SECONDS):
        return docker.DockerClient(f"unix://{self.socket}", version="auto", timeout=timeout)

    def start(self, *, live_restore=False):
        """Start it, or start it again, and wait until it answers."""
        assert not self.running
        self.live_restore = live_restore
        self.exec_root.mkdir(exist_ok=True)
        paths = {
            "--data-root": self.data_root,
            "--exec-root": self.exec_root,
            "--pidfile": self.home / "dockerd.pid",
            "--host": f"unix://{self.socket}",
            "--config-file": self.home / "daemon.json",
        }
        (self.home / "daemon.json").write_text(json.dumps({"live-restore": live_restore}))
        # A daemon that was killed leaves its pid and its containerd's. The next one does not start while something has
        # either, and a containerd that nobody has reaped yet counts.
        for left in (self.home / "dockerd.pid", self.exec_root / "containerd" / "containerd.pid"):
            left.unlink(missing_ok=True)
        options = [f"{name}={value}" for name, value in paths.items()]
        options += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # Tests that are killed take it with them; unshare and setpriv become dockerd, so its pid is known.
                ["setpriv", "--pdeathsig=TERM", "unshare", "-n", "dockerd", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.variables},
            )
        assert until(lambda: self._answers() or not self.running, PATIENCE_SECONDS), self._tail()
        assert self.running, self._tail()
        return self

    def stop(self):
        """Stop it as an operator does: it ends its containers first, unless it runs with live-restore."""
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_SECONDS)

    def kill(self):
        """Kill dockerd alone. Its containerd dies with it (it asks for that itself); containers and shims live on."""
        self.process.kill()
        self.process.wait(timeout=PATIENCE_SECONDS)

    def restart(self, *, live_restore=False):
        self.stop()
        return self.start(live_restore=live_restore)

    def kill_and_restart(self, *, live_restore=False, after=1.0):
        self.kill()
        time.sleep(after)
        return self.start(live_restore=live_restore)

    def ensure(self, *, live_restore=False):
        """Have it run, thawed and with this setting, whatever was done to it before."""
        if self.running:
            self.thaw()
            if self.live_restore == live_restore:
                return
            self.stop()
        self.start(live_restore=live_restore)

    def freeze(self):
        """Stop its threads where they are: connections are still accepted, by the kernel, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self):
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def load(self, image, tag=TAG):
        """Import a :class:`SmallImage` as ``tag``."""
        with contextlib.closing(self.client()) as client:
            client.api.import_image_from_file(str(image.archive), *tag.split(":"), changes=image.changes)
            client.images.get(tag)

    def containers(self):
        """Names of the containers it has, whatever their state."""
        with contextlib.closing(self.client()) as client:
            # Not the list of objects, for which each is looked at anew: one may have been removed meanwhile.
            return [container["Names"][0].lstrip("/") for container in client.api.containers(all=True)]

    def remove_containers(self):
        with contextlib.closing(self.client()) as client:
            for container in client.api.containers(all=True):
                client.api.remove_container(container["Id"], force=True)

    def close(self):
        """End every process it left (containerd, shims, what runs in containers), and remove its mounts and folders."""
        if self.running:
            self.kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while pids := _family(str(self.exec_root)):
            assert time.monotonic() < deadline, f"these processes of a test daemon cannot be killed: {pids}"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for folder in (self.home, self.data_root):
            for mount in _mounts_under(str(folder)):
                subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self.home)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _answers(self):
        return answers(self)

    def _tail(self):
        return self.log.read_text(errors="replace")[-4000:]


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A file system of ``megabytes`` under ``folder``, with no blocks kept back for root."""
    folder.mkdir(parents=True)
    disk, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir()
    subprocess.run(["fallocate", "-l", f"{megabytes}M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
    # umount gives the loop device back: mount asks the kernel to detach it with the last user.
    subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)
        disk.unlink()


@contextlib.contextmanager
def full(folder):
    """Have no byte free on the file system that holds ``folder``, until the ``with`` block ends."""
    filler = folder / "filler"
    try:
        for block in (1 << 20, 512):
            with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(block)):
                    pass
        yield
    finally:
        filler.unlink()


def until(condition, seconds=30):
    """Wait until ``condition()`` holds; return whether it came to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _family(exec_root):
    """Return the processes whose command line names ``exec_root``, and everything that descends from them."""
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue  # it has ended since
        if state == "Z":
            continue
        parents[int(entry.name)] = int(parent)
        if exec_root in words:
            found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _mounts_under(folder):
    """Return the mount points below ``folder``, innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), key=len, reverse=True)
