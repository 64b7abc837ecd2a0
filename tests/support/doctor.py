"""``reprobox doctor`` as a user types it, on machines that are broken for it: mount namespaces, and an engine that lies."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from support.cli import BIN, clean_environment
from support.daemon import TAG

OF_THE_SHELL = ("PROXY", "_CERT", "_CA_", "CAINFO", "DOCKER_", "CONTAINER_", "CUDA_", "GIT_", "XDG_")
NOBODY = 65534

LIBCUDA = r"""
#include <stdlib.h>
int cuInit(unsigned flags) { return ANSWER; }
int cuDeviceGetCount(int *count) {
    const char *uuids = getenv("CUDA_VISIBLE_DEVICES");
    *count = uuids && *uuids;
    for (; uuids && *uuids; uuids++)
        *count += *uuids == ',';
    return 0;
}
"""

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += SECONDS;
    return answer;
}
"""


class Doctor:
    """A machine of its own to examine, as far as an environment and a folder make one: ``reprobox doctor --json`` there."""

    def __init__(self, folder):
        self.project = folder / "project"
        self.home = folder / "home"
        for made in (self.project, self.home):
            made.mkdir()
        (self.project / "reprobox.toml").write_text("")
        environment = clean_environment()
        self.environment = {k: v for k, v in environment.items() if not any(w in k.upper() for w in OF_THE_SHELL)}
        self.environment |= {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}

    def call(self, *flags, prefix=(), timeout=60, **environment):
        return subprocess.run(
            [*map(str, prefix), str(BIN / "reprobox"), "doctor", *flags],
            cwd=self.project,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def examine(self, *flags, **options):
        """Return what each check found, by its name; the exit code always says whether one failed."""
        done = self.call("--json", *flags, **options)
        assert done.stderr == ""
        document = json.loads(done.stdout)
        assert document["schema"] == "reprobox.doctor/1"
        checks = {check["name"]: check for check in document["checks"]}
        assert all(check.keys() == {"name", "verdict", "seen", "remedy"} for check in checks.values())
        assert done.returncode == any(check["verdict"] == "fail" for check in checks.values())
        assert all(check["remedy"] for check in checks.values() if check["verdict"] == "fail")
        broken = [check for check in checks.values() if "itself broke" in check["seen"]]
        assert broken == [], broken
        return checks


def mounted(script):
    """What a command line begins with that sees this machine as ``script`` has changed it, in mounts of its own."""
    return ["unshare", "-m", "--propagation=private", "sh", "-euc", f'{script}\nexec "$@"', "sh"]


def as_user(uid):
    """What a command line begins with that runs as another user, who may read what root may (the checkout)."""
    rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *rights, "--"]


@functools.cache
def compiled(name, source, *definitions):
    """Return a shared library made of ``source``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install gcc libc6-dev")
    folder = Path(_folder().name) / str(compiled.cache_info().misses)
    folder.mkdir()
    (folder / "source.c").write_text(source)
    options = ["-shared", "-fPIC", *(f"-D{definition}" for definition in definitions)]
    subprocess.run([compiler, *options, "-o", folder / name, folder / "source.c", "-ldl"], check=True)
    return folder / name


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="reprobox-compiled-")


def cuda_image(daemon, tag, *, answer=0, library=True, torch="2.9.1+cu130", protocol=None):
    """Make an image of ``daemon``'s small one that computes on GPUs, by a stand-in for the driver's libcuda."""
    with contextlib.closing(daemon.client()) as client, tempfile.TemporaryFile() as archive:
        container = client.containers.create(TAG, network_mode="none")
        try:
            if library:
                made = compiled("libcuda.so.1", LIBCUDA, f"ANSWER={answer}")
                subprocess.run(["tar", "-c", "-C", made.parent, made.name], stdout=archive, check=True)
                archive.seek(0)
                container.put_archive("/usr/lib", archive)
            labels = {"reprobox.variant": "cuda", "reprobox.torch": torch}
            labels |= {"reprobox.box-protocol": protocol} if protocol else {}
            container.commit(*tag.split(":"), changes="\n".join(f'LABEL {k}="{v}"' for k, v in labels.items()))
        finally:
            container.remove(force=True)
    return tag


class Rewritten:
    """An engine whose answers to ``/info`` and ``/version`` are changed on their way; all else goes through untouched.

    ``without_builder`` is what one says that has no classic builder: BuildKit asks for a build of version 2, or by gRPC.
    ``asked`` keeps the last part of each path.
    """

    def __init__(self, upstream, info=None, version=None, *, without_builder=None):
        self.upstream = str(upstream)
        self.without_builder = without_builder
        self.asked = []
        self.changes = {"info": info or {}, "version": version or {}}
        self.folder = Path(tempfile.mkdtemp(prefix="reprobox-rewritten-"))
        self.folder.chmod(0o755)
        self.path = self.folder / "docker.sock"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.path))
        self.path.chmod(0o666)
        self.socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return {"DOCKER_HOST": f"unix://{self.path}"}

    def __exit__(self, *_):
        self.socket.close()
        shutil.rmtree(self.folder)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(1 << 16)
                if not data:
                    return
                head += data
            name = head.split()[1].decode().rpartition("/")[2]
            self.asked.append(name)
            if self.without_builder and name.startswith("build?") and "version=2" not in name:
                self._refuse(client, head)
                return
            if name in self.changes and head.startswith(b"GET"):
                self._answer(client, head.split()[1].decode(), self.changes[name])
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.upstream)
            with server:
                if b"upgrade" not in head.lower():  # one request a connection, so that none slips through
                    head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                server.sendall(head)
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                _pump(server, client)

    def _answer(self, client, path, changes):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.upstream)
        connection.request("GET", path)
        body = json.dumps({**json.loads(connection.getresponse().read()), **changes}).encode()
        connection.close()
        self._say(client, "200 OK", body)

    def _refuse(self, client, head):
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        left = length - len(head.partition(b"\r\n\r\n")[2])
        while left > 0 and (data := client.recv(1 << 16)):
            left -= len(data)
        self._say(client, "400 Bad Request", json.dumps({"message": self.without_builder}).encode())

    def _say(self, client, status, body):
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)


def _pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def seconds(function, *arguments, **options):
    """Return what ``function`` returns, and how long it took."""
    began = time.monotonic()
    return function(*arguments, **options), time.monotonic() - began


def give(folder, uid):
    """Make ``uid`` the owner of a folder and what is in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid)
