"""This machine's own Python under the same recipe: for a notebook, a login node, a machine without an engine.

It isolates nothing: files, users, network and installed packages are the machine's. The entrypoint is the box's own,
run as a child process, so validation, announcement, seeding and exit codes are the same.
"""

from __future__ import annotations

import contextlib
import os
import platform
import selectors
import signal as signals
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import reprobox.box
from reprobox.engines.base import Box, BoxSpec, Engine, EngineInfo, Exit, ImageInfo, Stream
from reprobox.errors import EngineError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

STOP_GRACE_SECONDS = 10
_CHUNK = 1 << 16
_LAUNCHER = Path(reprobox.box.__file__).with_name("local.py")


class LocalEngine(Engine):
    """Runs the command as a child process of this one."""

    name = "local"
    isolates = False

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, version=platform.python_version(), details={"python": sys.executable})

    def image(self, reference: str) -> ImageInfo:
        raise ImageNotFound(f"the local engine has no images, so {reference} cannot be used", remedy="drop --image")

    def create(self, spec: BoxSpec) -> Box:
        return LocalBox(spec)


class LocalBox(Box):
    """A child process in a process group of its own, so that a terminal's Ctrl-C reaches it once, through us."""

    def __init__(self, spec: BoxSpec) -> None:
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        """Nothing to do: the pipes are made with the process."""

    def start(self) -> None:
        # This machine's settings for reprobox itself are not the box's: the spec carries all that is meant for it.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REPROBOX_")}
        merged = {**inherited, **self.spec.environment}
        environment = {name: value for name, value in merged.items() if value is not None}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", str(_LAUNCHER), f"--chdir={self.spec.directory}", "--", *self.spec.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                process_group=0,
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"the command could not be started ({error})") from error

    def stream(self, write: Callable[[Stream, bytes], None]) -> None:
        process = self._running()
        with selectors.DefaultSelector() as selector:
            for pipe, stream in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ, stream)
            while selector.get_map():
                ready = selector.select(timeout=0.2)
                if not ready and process.poll() is not None:
                    return  # what is left of its group holds the pipes; as in a box, it ends with the command
                for key, _ in ready:
                    data = os.read(key.fd, _CHUNK)
                    if data:
                        write(key.data, data)
                    else:
                        selector.unregister(key.fileobj)

    def signal(self, number: int) -> None:
        # The group may outlive its leader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running().pid, number)

    def wait(self) -> Exit:
        code = self._running().wait()
        return Exit(code=128 - code if code < 0 else code)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineError("the command has not been started")
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self.signal(signals.SIGTERM)
            try:
                self._process.wait(STOP_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.signal(signals.SIGKILL)
                self._process.wait()
        self.signal(signals.SIGKILL)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
