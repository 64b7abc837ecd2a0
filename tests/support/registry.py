"""A registry of the tests' own, on 127.0.0.1, which every engine takes without TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time

import pytest

PATIENCE_SECONDS = 20


class Registry:
    """Debian's docker-registry with its storage in ``folder``: the address it has, and what stops it."""

    def __init__(self, folder):
        program = shutil.which("docker-registry")
        if program is None:
            pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.storage = folder / "registry"
        config = folder / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.storage}}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        self._process = subprocess.Popen(
            [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait_until_it_answers(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, "the registry ended at once"
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)

    def blobs(self):
        """Return the digests of what it stores."""
        return {f"sha256:{path.parent.name}" for path in self.storage.glob("docker/registry/v2/blobs/sha256/*/*/data")}

    def stop(self):
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def running_registry(folder):
    """A registry that answers, until the end of the ``with`` block or until it is stopped."""
    registry = Registry(folder)
    try:
        registry.wait_until_it_answers()
        yield registry
    finally:
        registry.stop()
