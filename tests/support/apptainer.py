"""Apptainer, as an ordinary user of a cluster has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.debian import sid


class Apptainer:
    """Apptainer with one image, unpacked from ``archive`` (as ``docker save`` writes it); a folder of its own is the project."""

    def __init__(self, archive):
        self.root = sid()
        self.home = Path(tempfile.mkdtemp(prefix="reprobox-apptainer-"))
        self.project = self.home / "project"
        self.project.mkdir()
        shutil.copy(archive, self.home / "image.tar")
        for path in (self.home, *self.home.iterdir()):
            os.chown(path, 1000, 1000)
        built = self._call("build", "--sandbox", self.home / "box", f"docker-archive:{self.home}/image.tar")
        assert built.returncode == 0, built.stderr

    def call(self, verb, *command, **variables):
        """Carry out ``apptainer run`` or ``apptainer exec`` in the project, as a job script of a cluster does."""
        closed = ["--containall", "--no-home", "--bind", f"{self.project}:/workspace", "--pwd", "/workspace"]
        return self._call(verb, *closed, self.home / "box", *command, **variables)

    def close(self):
        shutil.rmtree(self.home)

    def _call(self, *arguments, **variables):
        given = [f"APPTAINERENV_{name}={value}" for name, value in variables.items()]
        alone = ["unshare", "--mount", "--pid", "--fork", "--", "sh", Path(__file__).with_suffix(".sh")]
        words = [*alone, self.root, self.home, "env", *given, "apptainer", "--quiet", *arguments]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        for left in ("upper", "work", "rootfs"):
            shutil.rmtree(self.home / left)
        return done
