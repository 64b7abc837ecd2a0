"""A project to lock, check and fetch for, as a user does."""

from __future__ import annotations

import json
import os
import subprocess

from reprobox.images.lockfile import read_lock
from support.cli import BIN, clean_environment

PROJECT = """\
variant = "cpu"
python = [
    "einops",
    "tomli<2.4",
    "packaging",
]
apt = ["tree"]
"""


class Place:
    """A project folder and a cache of its own."""

    def __init__(self, folder, cache, environment=None):
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True, exist_ok=True)
        own = {"XDG_CACHE_HOME": str(cache), "XDG_STATE_HOME": str(folder.parent / f"{folder.name}-state")}
        self.environment = {**clean_environment(), **own, **(environment or {})}

    @property
    def path(self):
        return self.folder / "reprobox.lock"

    @property
    def lock(self):
        return read_lock(self.path)

    def write(self, text=PROJECT, name="reprobox.toml"):
        (self.folder / name).write_text(text)
        return self

    NO_NETWORK = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-n", "-r")

    def call(self, *words, code=0, offline=False, environment=None):
        """Run ``reprobox WORDS``; with ``offline`` in a network that has no way out."""
        prefix = self.NO_NETWORK if offline else ()
        done = subprocess.run(
            [*prefix, BIN / "reprobox", *words],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def check(self, code=0):
        """The differences that ``lock --check`` finds without a network."""
        document = json.loads(self.call("lock", "--check", "--json", code=code, offline=True).stdout)
        assert document["schema"] == "reprobox.lock-check/1"
        assert document["same"] == (code == 0)
        return document["differences"]


def wheels(lock, platform="x86_64", layer="project"):
    return {wheel.name: wheel for wheel in lock.wheels_for("cpu", platform, layer=layer)}
