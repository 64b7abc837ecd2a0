"""The command's output beside its manifest: ``stdout.log`` and ``stderr.log``, as they came, with a cap on the middle."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.engines.splice import Delivered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reprobox.engines import Stream

__all__ = ["HEAD_BYTES", "TAIL_BYTES", "RunLogs", "StreamLog", "read_log", "read_on"]

HEAD_BYTES = 32 << 20
TAIL_BYTES = 32 << 20
"""Of a longer output the first and the last 32 MiB are kept: how it began, and why it ended."""

_CHUNK = 1 << 20
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK


class StreamLog:
    """One stream's log.

    While it is written, the head is in ``NAME`` and what follows in segments ``NAME.<offset>`` of which the last two are
    kept, so that a process that is killed leaves everything in order; :meth:`close` joins them. A log that such a process
    left is gone on with.
    """

    def __init__(self, path: Path, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self.path = path
        self.head = head
        self.tail = tail
        self._segments = [segment for _, segment in _segments(path)]
        if path.exists() and path.stat().st_size > head:  # joined already, by a process killed before it had cleared up
            for segment in self._segments:
                segment.unlink()
            self._segments = []
        last = self._segments[-1] if self._segments else path
        # The folder is out of the box's reach; still, a log is never written through a link.
        self._file = os.open(last, _APPEND, 0o644)
        self._begins = _offset(last, path)
        self.count = self._begins + os.fstat(self._file).st_size

    def write(self, data: bytes) -> None:
        """Append ``data``. :raises OSError: when it cannot be written."""
        view = memoryview(data)
        while view:
            room = self._begins + (self.tail if self._segments else self.head) - self.count
            if room <= 0:
                self._next_segment()
                continue
            written = os.write(self._file, view[:room])
            self.count += written
            view = view[written:]

    def _next_segment(self) -> None:
        self._close_file()
        path = self.path.with_name(f"{self.path.name}.{self.count}")
        self._file = os.open(path, _APPEND, 0o644)
        self._begins = self.count
        self._segments.append(path)
        if len(self._segments) > 2:
            self._segments.pop(0).unlink()

    def _close_file(self) -> None:
        # By now another file may have the number of one that was closed before.
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)

    def leave(self) -> None:
        """Close the log as it is; it can be read, and gone on with."""
        with contextlib.suppress(OSError):
            self._close_file()

    def close(self) -> None:
        """Join head and tail into one file. :raises OSError: when that cannot be; then it is left as it is."""
        self._close_file()
        if self._segments:
            joined = self.path.with_name(f".{self.path.name}-joined")
            try:
                with joined.open("wb") as file:
                    file.writelines(read_log(self.path, tail=self.tail))
                joined.replace(self.path)
            except OSError:
                joined.unlink(missing_ok=True)
                raise
            for segment in self._segments:
                segment.unlink()


def read_log(path: Path, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> Iterator[bytes]:
    """Yield the log at ``path`` in pieces, finished or not; a line says how many bytes in its middle were left out.

    :raises OSError: when it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        # All opened before the first is read: whoever writes the log removes segments as it goes on.
        end = path.stat().st_size
        segments = []
        for offset, segment in _segments(path) if end <= head else ():
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(segment.open("rb"))
                segments.append((offset, file, os.fstat(file.fileno()).st_size))
        yield from _pieces(path, 0)
        last = segments[-1][0] + segments[-1][2] if segments else end
        begin = max(last - tail, segments[0][0] if segments else end)
        if begin > end:
            yield f"\n[reprobox: {begin - end} bytes are left out here]\n".encode()
        for offset, file, size in segments:
            if offset + size > begin:
                file.seek(max(0, begin - offset))
                while data := file.read(_CHUNK):
                    yield data


def read_on(path: Path, position: int, *, head: int = HEAD_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield what the log at ``path``, still being written, holds from byte ``position`` of the output on."""
    for offset, file in [(0, path), *_segments(path)]:
        try:
            end = min(file.stat().st_size, head) if offset == 0 else offset + file.stat().st_size
            if end > position:
                position = max(position, offset)
                with file.open("rb") as opened:
                    opened.seek(position - offset)
                    while position < end and (data := opened.read(min(_CHUNK, end - position))):
                        position += len(data)
                        yield position, data
        except FileNotFoundError:
            continue  # joined, or grown out of, in this moment


def _segments(path: Path) -> list[tuple[int, Path]]:
    with os.scandir(path.parent) as entries:
        files = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    return sorted((offset, file) for file in files if (offset := _offset(file, path)))


def _offset(segment: Path, path: Path) -> int:
    match = re.fullmatch(re.escape(path.name) + r"\.([0-9]+)", segment.name)
    return int(match[1]) if match else 0


def _pieces(path: Path, begin: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while data := file.read(_CHUNK):
            yield data


class RunLogs:
    """The logs of a run's two streams. A log that cannot be written is told once and given up; the run goes on."""

    def __init__(self, folder: Path, *, keep: bool, say: Callable[[str], None]) -> None:
        self._say = say
        self.state = "kept" if keep else "off"
        self._logs: dict[Stream, StreamLog] = {}
        self.counts: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        if keep:
            self._guarded(lambda: self._open(folder))

    def _open(self, folder: Path) -> None:
        for stream in self.counts:
            self._logs[stream] = StreamLog(folder / f"{stream}.log")
            self.counts[stream] = self._logs[stream].count

    def write(self, stream: Stream, data: bytes) -> None:
        """Append ``data`` to the log of ``stream``."""
        self.counts[stream] += len(data)
        if stream in self._logs:
            self._guarded(lambda: self._logs[stream].write(data))

    def delivered(self, stream: Stream) -> Delivered:
        """Return how much of ``stream`` is in its log, for the place to go on from."""
        place = Delivered()
        if stream in self._logs:
            for data in read_log(self._logs[stream].path):
                place.add(data)
            place.count = self._logs[stream].count
        return place

    def leave(self) -> None:
        """Close both logs as they are, to be gone on with."""
        for log in self._logs.values():
            log.leave()

    def close(self) -> None:
        """Finish both logs, each whatever becomes of the other."""
        logs, self._logs = self._logs, {}
        for log in logs.values():
            self._guarded(log.close)

    def to_json(self) -> dict[str, object]:
        """Return what the manifest says of the output."""
        return {"log": self.state, "stdout_bytes": self.counts["stdout"], "stderr_bytes": self.counts["stderr"]}

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            for log in self._logs.values():
                log.leave()
            self._logs = {}
            if self.state != "kept":
                return
            self.state = f"incomplete ({error.strerror})"
            self._say(f"the output's log cannot be written ({error.strerror}); the run goes on without")
