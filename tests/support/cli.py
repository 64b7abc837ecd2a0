"""The real command line, as a user types it, in a project folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reprobox.knobs import IMAGE_ENVIRONMENT

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def clean_environment():
    """This machine's environment without the knobs the recipe sets, and with this interpreter first on PATH."""
    environment = {k: v for k, v in os.environ.items() if k not in IMAGE_ENVIRONMENT and not k.startswith("REPROBOX_")}
    return {**environment, "PATH": f"{BIN}:{environment.get('PATH', '')}"}


class Cli:
    """``reprobox run --engine ENGINE`` in a folder, without the self-test, which is the subject where it is asked for.

    It takes seconds of two cores for each new environment, and a box of its own even where there is no torch to test.
    """

    def __init__(self, folder, engine):
        self.folder = folder
        self.engine = engine
        own = {"REPROBOX_SELFTEST": "off", "XDG_STATE_HOME": str(folder.parent / f"{folder.name}-state")}
        self.environment = {**clean_environment(), **own}
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

    def start(self, *command, flags=("--seed", "42"), **options):
        """Start a run whose command prints ``ready``, and return its process once it has."""
        # Without a buffer: communicate() would not see what readline() had read ahead.
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
        process = subprocess.Popen(
            self.argv(*command, flags=flags), cwd=self.folder, env=self.environment, **{**pipes, **options}
        )
        assert process.stdout.readline() == b"ready\n"
        return process

    @contextlib.contextmanager
    def running(self, *flags):
        """A run that waits, as its container is shown by the engine."""
        process = self.start("sh", "-c", "echo ready; exec sleep 60", flags=("--seed", "42", *flags))
        try:
            yield self.inspected()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    def trust(self, text=None, **options):
        """Allow what the project asks for, with ``text`` as its project file where it is given."""
        if text is not None:
            self.write("reprobox.toml", text)
        return self.reprobox("trust", **options)

    def boxes(self):
        """Return the ids of this project's containers, whatever their state."""
        ours = f"label=reprobox.project={self.folder}"
        return self.call("docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", ours).stdout.split()

    def inspected(self):
        return json.loads(self.call("docker", "inspect", *self.boxes()).stdout)[0]

    def reprobox(self, *arguments, **options):
        return self.call(BIN / "reprobox", *arguments, **options)

    def runs(self):
        folder = self.folder / ".reprobox" / "runs"
        return sorted(folder.iterdir()) if folder.exists() else []

    def manifest(self):
        return json.loads((self.runs()[-1] / "manifest.json").read_text())


def together(function, *arguments, at_once=4):
    """Return ``function`` of each, in order: boxes that do not depend on each other need not wait for each other."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(function, *arguments))
