"""The engine's end of an attached box: the socket under docker-py's answer, and the pieces of output that come over it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from io import BufferedReader

    from reprobox.engines.base import Stream

__all__ = ["buffered", "frames", "pieces_of_terminal", "raw_socket"]

_FRAME_HEADER = struct.Struct(">BxxxI")
_STREAM_NAMES: dict[int, Stream] = {1: "stdout", 2: "stderr"}
_CHUNK = 1 << 16


def raw_socket(attached: Any) -> socket.socket:
    """Return the socket under docker-py's wrapper (a ``SocketIO`` over a unix socket, the socket itself over TLS)."""
    return getattr(attached, "_sock", attached)  # type: ignore[no-any-return]


def buffered(attached: Any) -> BufferedReader:
    """Return a reader that starts where the HTTP header ended.

    Reading the wrapper's socket itself would drop what http.client had read ahead (docker-py#425, #1770, #3332).
    """
    response = getattr(attached, "_response", None)
    reader = getattr(getattr(getattr(response, "raw", None), "_fp", None), "fp", None)
    if reader is not None:
        return reader  # type: ignore[no-any-return]
    return attached.makefile("rb")  # type: ignore[no-any-return]


def frames(reader: BufferedReader) -> Iterator[tuple[Stream, bytes]]:
    """Yield the pieces of the engine's multiplexed stream; a long frame comes in several, so memory stays flat."""
    while True:
        header = reader.read(_FRAME_HEADER.size)
        if len(header) < _FRAME_HEADER.size:
            return
        number, left = _FRAME_HEADER.unpack(header)
        while left:
            data = reader.read(min(left, _CHUNK))
            if not data:
                return
            left -= len(data)
            yield _STREAM_NAMES.get(number, "stdout"), data


def pieces_of_terminal(reader: BufferedReader) -> Iterator[tuple[Stream, bytes]]:
    """Yield a terminal's output, which is one stream without frames, as soon as there is some."""
    while data := reader.read1(_CHUNK):
        yield "stdout", data
