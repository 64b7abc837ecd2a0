"""The real command line, as a user types it, in a project folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from reprobox.recipe import IMAGE_ENVIRONMENT

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def clean_environment():
    """This machine's environment without the knobs the recipe sets, and with this interpreter first on PATH."""
    environment = {k: v for k, v in os.environ.items() if k not in IMAGE_ENVIRONMENT and not k.startswith("REPROBOX_")}
    return {**environment, "PATH": f"{BIN}:{environment.get('PATH', '')}"}


class Cli:
    """``reprobox run --engine ENGINE`` in a folder."""

    def __init__(self, folder, engine):
        self.folder = folder
        self.engine = engine
        self.environment = clean_environment()
        (folder / "reprobox.toml").write_text("")

    def write(self, name, text, *, executable=False):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if executable:
            path.chmod(0o755)
        return path

    def argv(self, *command, flags=("--seed", "42")):
        return [str(BIN / "reprobox"), "run", "--engine", self.engine, *flags, "--", *command]

    def run(self, *command, flags=("--seed", "42"), check=True, recipe=True, **options):
        """Run ``command`` in the box, or as it is where ``recipe`` is false."""
        argv = self.argv(*command, flags=flags) if recipe else list(command)
        return self.call(*argv, check=check, **options)

    def call(self, *argv, check=True, environment=None, text=True, timeout=300, **options):
        done = subprocess.run(
            [str(a) for a in argv],
            cwd=options.pop("cwd", self.folder),
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=text,
            timeout=timeout,
            **options,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def reprobox(self, *arguments, **options):
        return self.call(BIN / "reprobox", *arguments, **options)

    def runs(self):
        folder = self.folder / ".reprobox" / "runs"
        return sorted(folder.iterdir()) if folder.exists() else []

    def manifest(self):
        return json.loads((self.runs()[-1] / "manifest.json").read_text())
