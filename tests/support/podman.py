"""A Podman of the tests' own, with root or without: its folders, its settings, its service, and a user for the latter.

Nothing of this machine's Podman is used or changed: settings and storage are found through environment variables, and a
rootful service lives in a network namespace of its own, where its bridge and its firewall rules end with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import docker.errors
import pytest

import docker
from support.cli import BIN, Cli
from support.daemon import TAG, answers, until

AS_ROOT, AS_USER = (
    pytest.mark.parametrize("podman_service", [who], indirect=True) for who in ("with_root", "without_root")
)
"""For a test that needs no Podman but one: whose the service is makes no difference there, and a box costs seconds."""

USER = "reprobox-test"
PATIENCE_SECONDS = 60
SERVICE_ENVIRONMENT = {"OF_THE_SERVICE": "leaked", "TZ": "Of/The_Service", "HTTP_PROXY": "http://of.the.service:1"}
"""What the service's own environment has and no box may."""


class PodmanService:
    """``podman system service`` at a socket of its own; everything goes when the ``with`` block ends.

    :param image: a :class:`support.daemon.SmallImage`, imported as :data:`support.daemon.TAG`.
    """

    def __init__(self, image, *, rootless):
        self.image = image
        self.rootless = rootless
        self.uid = self.gid = 0
        # Short, and not under pytest's folders, which are closed to other users.
        self.home = Path(tempfile.mkdtemp(prefix="reprobox-podman-"))
        self.socket = self.home / "podman.sock"
        self.runtime = self.home / "runtime"
        self.log = self.home / "service.log"
        self.process = None
        self._left = contextlib.ExitStack()

    @property
    def address(self):
        return f"unix://{self.socket}"

    @property
    def as_user(self):
        """What a command line begins with that is to run as the service's user.

        The user may read what root may, so that this checkout can lie in a folder that is root's alone.
        """
        if not self.rootless:
            return []
        rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *rights, "--"]

    @property
    def settings(self):
        """Environment of every ``podman`` that is to have these folders."""
        return {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }

    @property
    def environment(self):
        """Environment of a ``reprobox`` that is to use this service."""
        return {**self.settings, "CONTAINER_HOST": self.address}

    def client(self, timeout=PATIENCE_SECONDS):
        return docker.DockerClient(self.address, version="auto", timeout=timeout)

    def containers(self):
        """Names of the containers it has, whatever their state."""
        with contextlib.closing(self.client()) as client:
            # Not the list of objects, for which each is looked at anew: one may have been removed meanwhile.
            return [container["Names"][0].lstrip("/") for container in client.api.containers(all=True)]

    def remove_containers(self):
        with contextlib.closing(self.client()) as client:
            for container in client.api.containers(all=True):
                with contextlib.suppress(docker.errors.NotFound):  # its own box may be removed at this moment
                    client.api.remove_container(container["Id"], force=True)

    def folder(self):
        """Make a folder that the service's user owns, for a project."""
        made = Path(tempfile.mkdtemp(prefix="project-", dir=self.home))
        os.chown(made, self.uid, self.gid)
        return made

    def podman(self, *arguments, **options):
        """Run ``podman`` as the service's user, on the same images and containers."""
        return subprocess.run([*self._alone, "podman", *arguments], **{**self._options, "check": True, **options})

    def load(self, image, tag):
        """Import a :class:`support.daemon.SmallImage` as ``tag``."""
        with image.archive.open("rb") as archive:
            changes = [word for change in image.changes for word in ("--change", change)]
            self.podman("import", "--quiet", *changes, "-", tag, stdin=archive, stdout=subprocess.DEVNULL)

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # Tests that are killed take it with them.
                ["setpriv", "--pdeathsig=TERM", *self._alone, "podman", "system", "service", "--time=0", self.address],
                stdout=log,
                stderr=log,
                **{**self._options, "env": {**self._options["env"], **SERVICE_ENVIRONMENT}},
            )
        assert until(lambda: self._answers() or self.process.poll() is not None, PATIENCE_SECONDS), self._tail()
        assert self.process.poll() is None, self._tail()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=PATIENCE_SECONDS)

    def close(self):
        """End every process it left, and remove its mounts, its folders and its user."""
        with self._left:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while pids := _processes_of(self.home):
                assert time.monotonic() < deadline, f"these processes of a Podman cannot be killed: {pids}"
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if self.process is not None:
                    self.process.poll()
                time.sleep(0.02)
            for mount in _mounts_under(self.home):
                subprocess.run(["umount", "--lazy", mount], check=True)
            shutil.rmtree(self.home)

    def __enter__(self):
        try:
            if self.rootless:
                self.uid, self.gid = self._left.enter_context(user())
            self._configure()
            self.load(self.image, TAG)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def _alone(self):
        """As root in a network of its own, or as the user without more rights than any other.

        Everybody may open /dev/net/tun on an ordinary machine, and not in every container: the user is given one.
        """
        if not self.rootless:
            return ["unshare", "-n", "--"]
        with_tun = f'[ ! -e /dev/net/tun ] || mount --bind {self.home}/tun /dev/net/tun && exec "$@"'
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--"]
        return ["unshare", "-m", "--", "sh", "-c", with_tun, "sh", *user]

    @property
    def _options(self):
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "TMPDIR": str(self.home), **self.settings}
        return {"stdin": subprocess.DEVNULL, "env": env, "cwd": self.home}

    def _configure(self):
        write_settings(self.home)
        os.mknod(self.home / "tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        (self.home / "tun").chmod(0o666)
        self.home.chmod(0o755)
        self.runtime.mkdir(mode=0o700)
        for path in (self.home, *self.home.iterdir()):
            os.chown(path, self.uid, self.gid)

    def _answers(self):
        return answers(self)

    def _tail(self):
        return self.log.read_text(errors="replace")[-4000:]


def write_settings(home):
    """Write ``containers.conf`` and ``storage.conf`` that keep everything of a Podman in ``home``."""
    # It asks for 1048576 of both, which needs a capability that root of a container has not.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = pids if processes == resource.RLIM_INFINITY else min(processes, pids)
    (home / "containers.conf").write_text(
        f"""\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
[engine]
# crun refuses a machine that has both kinds of cgroups
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{home}/tmp"
volume_path = "{home}/volumes"
[network]
network_config_dir = "{home}/networks"
"""
    )
    (home / "storage.conf").write_text(
        f"""\
[storage]
driver = "overlay"
graphroot = "{home}/root"
runroot = "{home}/run"
rootless_storage_path = "{home}/root"
"""
    )


class PodmanCli(Cli):
    """``reprobox run --engine podman`` as the user of ``service``, in a project of that user's."""

    def __init__(self, folder, service, engine="podman"):
        super().__init__(folder, engine)
        self.service = service
        self.environment |= service.environment
        os.chown(folder / "reprobox.toml", service.uid, service.gid)

    def write(self, name, text, *, executable=False):
        path = super().write(name, text, executable=executable)
        os.chown(path, self.service.uid, self.service.gid)
        return path

    def argv(self, *command, flags=()):
        """Podman has the small image alone; what ``flags`` say comes last, and counts."""
        given = ("--seed", "42", "--network", "none", "--image", TAG)
        words = [str(BIN / "reprobox"), "run", "--engine", self.engine, *given, *flags, "--", *command]
        return [*self.service.as_user, *words]

    def run(self, *command, flags=(), **options):
        return super().run(*command, flags=flags, **options)

    def start(self, *command, flags=(), **options):
        return super().start(*command, flags=flags, **options)

    def reprobox(self, *arguments, **options):
        return self.call(*self.service.as_user, BIN / "reprobox", *arguments, **options)


@contextlib.contextmanager
def user():
    """Yield uid and gid of :data:`USER`, who is made if missing and removed by the last test session that used it."""
    lock = os.open("/etc", os.O_RDONLY)  # where the lists of users are
    try:
        # Whoever uses it shares the lock. What is shared already becomes one's own only by being let go in between.
        fcntl.flock(lock, fcntl.LOCK_SH)
        while (entry := known()) is None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if known() is None:
                # useradd gives a range of ids in /etc/subuid with the user; no home: each service is one.
                options = ["--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin"]
                subprocess.run(["useradd", *options, USER], check=True)
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield entry.pw_uid, entry.pw_gid
        finally:
            with contextlib.suppress(BlockingIOError):  # another session goes on with it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                subprocess.run(["userdel", USER], check=True)
    finally:
        os.close(lock)


def known():
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return None


def require_podman():
    """Skip, with the reason, where this machine has no Podman or this user is not root."""
    if os.geteuid() != 0:
        pytest.skip("a Podman with root, and a user for one without, need root")
    for program in ("podman", "runc", "newuidmap", "slirp4netns"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine (scripts/engine.sh --tests installs it)")


def _processes_of(home):
    """Return the processes whose command line or environment names ``home``, and everything that descends from them."""
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue  # it has ended since
        if state == "Z":
            continue
        parents[int(entry.name)] = int(parent)
        if os.fsencode(home) in words:
            found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _mounts_under(folder):
    """Return the mount points below ``folder``, innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), key=len, reverse=True)
