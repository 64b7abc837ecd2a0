"""This machine's own Python under the same recipe: for a notebook, a login node, a machine without an engine.

It isolates nothing: files, users, network and installed packages are the machine's. The entrypoint is the box's own,
run as a child process, so validation, announcement, seeding and exit codes are the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import pty
import selectors
import signal as signals
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import reprobox.box
from reprobox.engines.base import Box, BoxSpec, Engine, EngineInfo, Exit, FoundBox, GpuBox, ImageInfo, Stream
from reprobox.errors import EngineError, ImageNotFound
from reprobox.stopping import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STOP_GRACE_SECONDS = 10

LAST_WORDS_SECONDS = 0.5
"""How long the output of processes that a command left behind is still read. All of its own is, however long that takes."""

QUIET_SECONDS = 0.2
"""After so long without output from what a command left behind, no more is waited for."""

TICK_SECONDS = 0.05
"""How much one look at the output counts at most: more has passed where this process was stopped (SIGSTOP, Ctrl-Z)."""

_CHUNK = 1 << 16
_LAUNCHER = Path(reprobox.box.__file__).with_name("local.py")
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the controlling terminal of a process that leads a session, and goes on as another program."""


class LocalEngine(Engine):
    """Runs the command as a child process of this one."""

    name = "local"
    isolates = False
    store = None

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, version=platform.python_version(), details={"python": sys.executable})

    def describe(self) -> Mapping[str, Any]:
        return {}

    def refuses_builds(self) -> str | None:
        return "this machine itself has no images"

    def image(self, reference: str) -> ImageInfo:
        raise ImageNotFound(f"the local engine has no images, so {reference} cannot be used", remedy="drop --image")

    def pull(self, reference: str, progress: Callable[[str], None], platform: str | None = None) -> ImageInfo:
        del progress, platform
        return self.image(reference)

    def create(self, spec: BoxSpec) -> Box:
        return LocalBox(spec)

    def find(self, run_id: str) -> FoundBox | None:
        """Return ``None``: a command that outlives the process that started it cannot be waited for by another."""
        del run_id
        return None

    def gpu_boxes(self) -> tuple[GpuBox, ...]:
        """Return nothing: what runs here has no label. It holds its claim's lock open instead (``keep_open``)."""
        return ()


class LocalBox(Box):
    """A child process in a process group of its own, so that a terminal's Ctrl-C reaches it once, through us."""

    def __init__(self, spec: BoxSpec) -> None:
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal: int | None = None
        self._outputs: dict[int, Stream] = {}
        self._input: int | None = None
        self._left = False

    def attach(self) -> None:
        """Nothing to do: the pipes are made with the process."""

    def start(self) -> None:
        # This machine's settings for reprobox itself are not the box's: the spec carries all that is meant for it.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REPROBOX_")}
        merged = {**inherited, **self.spec.environment}
        environment = {name: value for name, value in merged.items() if value is not None}
        command = [sys.executable, "-IS", str(_LAUNCHER), f"--chdir={self.spec.directory}", "--", *self.spec.command]
        try:
            if self.spec.terminal:
                self._start_on_a_terminal(command, environment)
            else:
                self._start_on_pipes(command, environment)
        except (OSError, ValueError) as error:
            too_long = isinstance(error, OSError) and error.errno == errno.E2BIG
            raise EngineError(
                f"the command could not be started ({error})",
                remedy="give what is long in a file" if too_long else "see this machine's limits (ulimit -a)",
            ) from error

    def _start_on_pipes(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if self.spec.stdin and not self.spec.detached else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=self.spec.keep_open,
            process_group=0,
        )
        if process.stdin is not None:
            self._input = os.dup(process.stdin.fileno())
            process.stdin.close()
        for pipe, stream in ((process.stdout, "stdout"), (process.stderr, "stderr")):
            if pipe is not None:
                self._outputs[pipe.fileno()] = stream  # type: ignore[assignment]

    def _start_on_a_terminal(self, command: list[str], environment: dict[str, str]) -> None:
        self._terminal, inner = pty.openpty()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _TAKE_TERMINAL, *command],
                stdin=inner,
                stdout=inner,
                stderr=inner,
                env={"TERM": "xterm", **environment},
                pass_fds=self.spec.keep_open,
                start_new_session=True,
            )
        finally:
            os.close(inner)
        self._outputs[self._terminal] = "stdout"
        self._input = os.dup(self._terminal) if self.spec.stdin else None

    def stream(self, write: Callable[[Stream, bytes], None], say: Callable[[str], None]) -> None:
        del say
        process = self._running()
        with selectors.DefaultSelector() as selector:
            for descriptor, stream in self._outputs.items():
                selector.register(descriptor, selectors.EVENT_READ, stream)
            while process.poll() is None and selector.get_map() and not self._left:
                _pass_on(_ready(selector, QUIET_SECONDS), selector, write)
            # What is left of its group may hold the pipes, and write on; as in a box, it ends with the command.
            self._pass_on_last_words(selector, write)
            # All that was in the pipes at the command's end or comes before this moment, and nothing later.
            rest = {key.fd: _waiting(key.fd) for key in selector.get_map().values()}
            while any(rest.values()) and not self._left:
                ready = [key for key in _ready(selector, 0) if rest.get(key.fd)]
                if not ready:
                    return
                for descriptor, length in _pass_on(ready, selector, write).items():
                    rest[descriptor] = max(0, rest[descriptor] - length) if length else 0

    def _pass_on_last_words(self, selector: selectors.BaseSelector, write: Callable[[Stream, bytes], None]) -> None:
        spent = quiet = 0.0
        while spent < LAST_WORDS_SECONDS and quiet < QUIET_SECONDS and selector.get_map() and not self._left:
            before = time.monotonic()
            came = _pass_on(_ready(selector, TICK_SECONDS), selector, write)
            step = min(time.monotonic() - before, TICK_SECONDS)
            spent += step
            quiet = 0.0 if came else quiet + step

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view and self._input is not None:
                view = view[os.write(self._input, view) :]

    def end_input(self) -> None:
        descriptor, self._input = self._input, None
        if descriptor is not None:
            os.close(descriptor)

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        try:
            os.killpg(self._running().pid, number)
        except ProcessLookupError:
            pass  # it has ended; the group may outlive its leader
        except PermissionError as error:
            raise EngineError(
                f"the command runs as another user, so {signal_name(number)} may not be sent to it",
                remedy="end it as that user, or as root",
            ) from error

    def wait(self) -> Exit:
        code = self._running().wait()
        return Exit(code=128 - code if code < 0 else code)

    def leave(self) -> None:
        self._left = True

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            self.signal(signals.SIGTERM)
            try:
                process.wait(STOP_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.signal(signals.SIGKILL)
                process.wait()
        self.signal(signals.SIGKILL)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EngineError("the command has not been started")
        return self._process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and not self._left:
            with contextlib.suppress(EngineError):  # another user's, which goes on without us
                self._end(self._process)
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        for descriptor in (self._terminal, self._input):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._terminal = self._input = None


def _ready(selector: selectors.BaseSelector, seconds: float) -> list[selectors.SelectorKey]:
    """Return what can be read, waiting up to ``seconds``.

    A wait that a stop broke off has looked at nothing when its time is over (epoll_wait returns EINTR, signal(7)).
    """
    return [key for key, _ in selector.select(seconds) or selector.select(0)]


def _pass_on(
    ready: list[selectors.SelectorKey], selector: selectors.BaseSelector, write: Callable[[Stream, bytes], None]
) -> dict[int, int]:
    """Read each of ``ready`` once and write what came; return how much of each that was, 0 at its end."""
    lengths = {}
    for key in ready:
        data = _read(key.fd)
        lengths[key.fd] = len(data)
        if data:
            write(key.data, data)
        else:
            selector.unregister(key.fd)
    return lengths


def _waiting(descriptor: int) -> int:
    """Return how many bytes of a pipe or terminal are there to be read."""
    try:
        answer = fcntl.ioctl(descriptor, termios.FIONREAD, struct.pack("i", 0))
    except OSError:  # a terminal that nobody holds any more
        return 0
    return int(struct.unpack("i", answer)[0])


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # what Linux says of a terminal that nobody holds any more
            return b""
        raise
