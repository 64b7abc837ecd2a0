"""A container of ours: attach before start, start, stream through whatever happens to the connection, wait, remove."""

from __future__ import annotations

import contextlib
import signal as signals
import socket
import time
from typing import TYPE_CHECKING, Any, Self

from reprobox.engines.attached import buffered, frames, pieces_of_terminal, raw_socket
from reprobox.engines.base import Exit, FoundBox, Stream
from reprobox.engines.connection import NoSuchThing, engine_errors
from reprobox.engines.creation import why_unseen
from reprobox.engines.devices import why_no_gpus
from reprobox.engines.following import Followed
from reprobox.engines.splice import Delivered
from reprobox.errors import EngineError, EngineUnavailable
from reprobox.stopping import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    import docker

__all__ = ["DockerBox"]

ENGINE_AWAY_SECONDS = 30
"""How long an engine that went away in the middle of a run is waited for: a restart of Docker takes some seconds."""

STOP_SECONDS = 10
"""What Docker gives a command between TERM and KILL."""

KILLED = 128 + signals.SIGKILL


class DockerBox(FoundBox):
    """A container, removed when the ``with`` block ends unless it was left to itself.

    One that was ``found`` is not ours to end: it is removed only once it is known to be over, after a block without an
    error. ``removal`` is what a person types to remove it.
    """

    def __init__(
        self,
        client: docker.DockerClient,
        container_id: str,
        *,
        terminal: bool,
        stdin: bool,
        ends_input: bool = True,
        wants_gpus: bool = False,
        found: bool = False,
        project: str | None = None,
        removal: str = "",
    ) -> None:
        self.client = client
        self.id = container_id
        self.terminal = terminal
        self.stdin = stdin
        self.ends_input = ends_input
        self.wants_gpus = wants_gpus
        self.found = found
        self.project = project
        self.removal = removal
        self._over = False
        self._attached: Any = None
        self._left = False
        self._started = False
        self._engine_was_away = False
        self._killed = False

    def attach(self) -> None:
        with self._explained(), engine_errors("attach to the box"):
            self._attached = self.client.api.attach_socket(
                self.id,
                params={
                    "stdout": 1,
                    "stderr": 1,
                    "stream": 1,
                    "stdin": int(self.stdin),
                    "logs": 0,
                    # Which keys leave a box is decided on this side, where they can be told from a lost connection.
                    "detachKeys": ",".join(["ctrl-@"] * 16),
                },
            )
        raw_socket(self._attached).settimeout(None)

    def start(self) -> None:
        with self._explained(), engine_errors("start the box"):
            self._started = True
            self.client.api.start(self.id)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say why the box cannot be started: Docker finds some causes at the start, Podman others before."""
        try:
            yield
        except EngineError as error:
            no_gpus = why_no_gpus(error) if self.wants_gpus else None
            raise no_gpus or why_unseen(error) or error from error

    def stream(self, write: Callable[[Stream, bytes], None], say: Callable[[str], None]) -> None:
        # Whoever found a box came late to its output, and does not want what was said before.
        late = self.found
        delivered: dict[Stream, Delivered] = {"stdout": Delivered(late=late), "stderr": Delivered(late=late)}
        pieces = self._pieces()
        with contextlib.suppress(OSError, EngineUnavailable):  # a broken connection ends like a closed one
            while True:
                with engine_errors("stream the output"):
                    piece = next(pieces, None)
                if piece is None:
                    break
                delivered[piece[0]].add(piece[1])
                write(*piece)
        if not self._left and self._gone_or_running():
            self._reconnect(say)
            if not self._left:
                self.catch_up(delivered, write, say)

    def _reconnect(self, say: Callable[[str], None]) -> None:
        self._engine_was_away = True
        say("the connection to the engine broke; waiting for the engine to come back")
        self._await_engine()
        if not self._left:
            # A daemon that is killed loses what it had read and not logged yet (a fast writer lost 160,000 lines).
            say("the engine is back; some output from the time it was away may be missing")

    def _gone_or_running(self) -> bool:
        """Say whether the stream ended although the command did not, or the engine does not answer."""
        try:
            return self._runs_on() or self._engine_was_away
        except EngineUnavailable:
            return True
        except EngineError:
            return False  # the box is gone, and there is nothing to catch up with

    def _runs_on(self) -> bool:
        """Say whether the command runs on although its streams have ended."""
        # The engine closes the streams a moment before it notes the end.
        for _ in range(20):
            if not self._state()["Running"]:
                return False
            time.sleep(0.05)
        return True

    def catch_up(
        self,
        places: Mapping[Stream, Delivered],
        write: Callable[[Stream, bytes], None],
        say: Callable[[str], None],
    ) -> None:
        def written(stream: Stream, data: bytes) -> None:
            places[stream].add(data)
            write(stream, data)

        # More than once: docker's log, followed, lacks a last line that has no end; the command may end meanwhile; and
        # the engine may go away again.
        failing_since: float | None = None
        while not self._left:
            try:
                running = self.running
                kept = self._catch_up_once(places, write, say)
                failing_since = None
                if kept is not None and running:
                    self._follow_log(kept, written)
                elif kept is not None or not self._runs_on():
                    return
            except EngineUnavailable:
                if failing_since is None:
                    failing_since = time.monotonic()
                    self._reconnect(say)
                elif time.monotonic() > failing_since + ENGINE_AWAY_SECONDS:
                    raise  # it says how the box is, and never gives its log
                else:
                    time.sleep(0.2)
                    self._await_engine()

    def _catch_up_once(
        self, places: Mapping[Stream, Delivered], write: Callable[[Stream, bytes], None], say: Callable[[str], None]
    ) -> dict[Stream, int] | None:
        kept: dict[Stream, int] = {}
        sure = True
        for stream, place in places.items():
            if self.terminal and stream == "stderr":
                continue
            try:
                with engine_errors("read the box's log"):
                    log = self.client.api.logs(self.id, stdout=stream == "stdout", stderr=stream == "stderr")
            except EngineUnavailable:
                raise
            except NoSuchThing:
                raise
            except EngineError:
                if self._is_being_removed():
                    return {}  # the log goes with it
                say("the engine keeps no log of this box (--no-log), so what it said meanwhile is lost")
                self._stream_again(write)
                return None
            kept[stream] = len(log)
            rest, known = place.rest_of(log)
            sure = sure and known
            if rest:
                place.add(rest)
                write(stream, rest)
        if not sure:
            say("the engine's log was cut: some output at this point may be missing or repeated")
        return kept

    def _stream_again(self, write: Callable[[Stream, bytes], None]) -> None:
        if self.running:
            self.attach()
            pieces = self._pieces()
            while True:
                with engine_errors("stream the output"):
                    piece = next(pieces, None)
                if piece is None:
                    return
                write(*piece)

    def _pieces(self) -> Iterator[tuple[Stream, bytes]]:
        reader = buffered(self._attached)
        return pieces_of_terminal(reader) if self.terminal else frames(reader)

    def _await_engine(self) -> None:
        deadline = time.monotonic() + ENGINE_AWAY_SECONDS
        while not self._left:
            try:
                self._state()
            except EngineUnavailable as error:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"the engine went away while the command ran, and was not back after {ENGINE_AWAY_SECONDS} s; "
                        "the command may still be running",
                        remedy="start the engine again",
                        detail=error.detail,
                    ) from error
                time.sleep(0.2)
            else:
                return

    def _follow_log(self, skip: dict[Stream, int], write: Callable[[Stream, bytes], None]) -> None:
        """Write what the engine logs from now on."""

        def log_of(stream: Stream) -> Any:
            wanted = {"stdout": stream == "stdout", "stderr": stream == "stderr"}
            return self.client.api.logs(self.id, stream=True, follow=True, **wanted)

        with Followed(log_of, skip) as pieces:
            for piece in pieces:
                if piece is not None:
                    write(*piece)
                if self._left:
                    return

    def feed(self, data: bytes) -> None:
        with contextlib.suppress(OSError, AttributeError):
            raw_socket(self._attached).sendall(data)

    def end_input(self) -> None:
        if not self.ends_input:
            return  # others may attach and give more; the engine would close this connection's output with it
        with contextlib.suppress(OSError, AttributeError):
            raw_socket(self._attached).shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        with contextlib.suppress(EngineError), engine_errors("resize the terminal"):
            self.client.api.resize(self.id, height=rows, width=columns)

    def signal(self, number: int) -> None:
        self._killed = self._killed or number == signals.SIGKILL
        try:
            with engine_errors("signal the box"):
                self.client.api.kill(self.id, signal_name(number))
        except EngineUnavailable:
            raise
        except EngineError:
            return  # not running (409) or no such container (404): it has ended, and nothing is left to signal

    def wait(self) -> Exit:
        code = self._exit_code()
        self._over = True
        state = self._last_state()
        out_of_memory = bool(state.get("OOMKilled"))
        return Exit(
            code=code,
            out_of_memory=out_of_memory,
            error=str(state.get("Error") or ""),
            engine_was_away=self._engine_was_away,
            removed=code == KILLED and not out_of_memory and not self._killed and self._is_being_removed(),
        )

    def _last_state(self) -> dict[str, Any]:
        """Return how the box ended, or nothing where that cannot be had any more: its exit code is known all the same."""
        try:
            try:
                return self._state()
            except EngineUnavailable:
                self._engine_was_away = True
                self._await_engine()
                return self._state()
        except (EngineUnavailable, NoSuchThing):
            return {}

    def _is_being_removed(self) -> bool:
        """Say whether somebody else removes the box: the end of its command is told a moment before."""
        try:
            for _ in range(5):
                if self._state()["Status"] in ("removing", "dead"):
                    return True
                time.sleep(0.05)
        except EngineError:
            return True
        return False

    def _exit_code(self) -> int:
        while True:
            try:
                with engine_errors("wait for the box"):
                    return int(self.client.api.wait(self.id, timeout=None)["StatusCode"])
            except EngineUnavailable:
                self._engine_was_away = True
                self._await_engine()
            except NoSuchThing as error:
                raise EngineError(
                    "somebody else removed the box while its command ran, and its exit code with it",
                    remedy="run it again",
                    detail=error.detail,
                ) from error

    @property
    def running(self) -> bool:
        try:
            return bool(self._state()["Running"])
        except NoSuchThing:
            return False  # somebody removed it

    def started(self) -> str | None:
        state = self._state()
        if state["Status"] == "created":
            self._over = True
            return None
        return f"{str(state['StartedAt'])[:23].rstrip('Z')}Z"

    def stop(self, seconds: int | None = None) -> None:
        with contextlib.suppress(NoSuchThing), engine_errors("stop the box"):
            if seconds is None:
                # Asked for none, docker-py would wait for ten seconds' worth of an answer.
                config = self.client.api.inspect_container(self.id)["Config"]
                seconds = config.get("StopTimeout")  # 0 is a time, too
                seconds = STOP_SECONDS if seconds is None else int(seconds)
            self.client.api.stop(self.id, timeout=seconds)

    def leave(self) -> None:
        self._left = True
        if self._attached is not None:
            with contextlib.suppress(OSError):
                raw_socket(self._attached).shutdown(socket.SHUT_RDWR)

    def _state(self) -> dict[str, Any]:
        with engine_errors("look at the box"):
            state: dict[str, Any] = self.client.api.inspect_container(self.id)["State"]
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._attached is not None:
            self._attached.close()
        if self._left or (self._started and isinstance(error, EngineUnavailable)):
            return  # the command may run on; a daemon that hangs would carry out the removal when it wakes
        if self.found and (error is not None or not self._over):
            return  # whoever looks at it next needs it
        try:
            self.remove()
        except EngineError:
            # The first failure is the one worth telling; the label lets the box be found and removed later.
            if error is None:
                raise

    def remove(self) -> None:
        try:
            with engine_errors("remove the box"):
                self.client.api.remove_container(self.id, force=True, v=True)
        except NoSuchThing:
            return  # somebody else removed it
        except EngineError as failure:
            if "already in progress" in str(failure):
                return  # somebody else is removing it
            remedy = f"remove it with `{self.removal}`" if self.removal else failure.remedy
            raise type(failure)(failure.message, remedy=remedy, detail=failure.detail) from failure
