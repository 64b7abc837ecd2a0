"""An HTTP proxy in front of a registry that does to an answer, or a request, what networks and registries do to them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 64 * 1024
SLOW_SECONDS = 0.9
MANIFEST = r"(GET|HEAD) /v2/.+/manifests/"
BLOB = r"GET /v2/.+/blobs/sha256:"
UPLOAD = r"(PATCH|PUT) /v2/.+/blobs/uploads/"


@dataclass
class Fault:
    """What happens to the first ``times`` requests whose ``METHOD path`` matches ``where`` (``None``: to all of them).

    ``status`` answers instead of the registry; else the registry's answer is ``cut``, ``corrupt``ed or left hanging
    (``hang``) after ``after`` bytes of its body, or comes ``slow``ly: in pieces, with a rest before each. An upload is cut or hung after as many bytes of the request's.
    ``larger_than`` leaves smaller bodies alone: an image's config is a blob as well.
    """

    where: str
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    act: str = ""
    after: int = 1000
    larger_than: int = 0
    seconds: float | None = None
    """How long it hangs before it is cut; ``None``: until the proxy closes."""
    hits: int = 0


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to ``upstream`` (HOST:PORT), faults apart.

    ``password`` lets in only those who give ``user:password``. ``requests`` keeps every ``METHOD path``.
    """

    def __init__(self, upstream, *, password=None):
        self.upstream = upstream
        self.challenge = password and "Basic " + base64.b64encode(f"user:{password}".encode()).decode()
        self.faults = []
        self.requests = []
        self.open = threading.Event()
        """Set when the proxy closes: what hangs goes on, to its end."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def fail(self, where, **options):
        """Add a :class:`Fault`, and return it: its ``hits`` say how often it happened."""
        self.faults.append(Fault(where, **options))
        return self.faults[-1]

    def heal(self):
        self.faults.clear()

    def fault_for(self, line, size=None):
        """Return the fault of this request, or of its answer of ``size`` bytes, and count it; ``None`` where none is."""
        with self._lock:
            for fault in self.faults:
                if not re.match(fault.where, line) or (fault.times is not None and fault.hits >= fault.times):
                    continue
                of_the_answer = bool(fault.act) and line.startswith("GET ")
                if (size is not None) != of_the_answer or (fault.act and line.startswith("HEAD ")):
                    continue
                if size is None or size > fault.larger_than:
                    fault.hits += 1
                    return fault
        return None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


class _Cut(Exception):
    """The connection is to be dropped."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        # An engine tries TLS first, and goes on without it where it is answered in plain HTTP.
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.close_connection = True
            return
        super().handle_one_request()

    def handle(self):
        with contextlib.suppress(ConnectionError, _Cut):
            super().handle()

    def do_GET(self):
        line = f"{self.command} {self.path}"
        self.proxy.requests.append(line)
        if self.proxy.challenge and self.headers.get("Authorization") != self.proxy.challenge:
            self._answer(401, {"WWW-Authenticate": 'Basic realm="tests"'}, b"")
            return
        fault = self.proxy.fault_for(line)
        if fault and fault.status:
            self._answer(fault.status, fault.headers, fault.body)
            return
        self._forward(line, fault)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self, status, headers, body):
        for _ in self._request_body():
            pass
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, line, fault):
        upstream = http.client.HTTPConnection(self.proxy.upstream)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            self._send_body(upstream, fault)
            answer = upstream.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            fault = self.proxy.fault_for(line, int(answer.getheader("Content-Length") or 0))
            place = 0
            while chunk := answer.read(CHUNK):
                self.wfile.write(self._harmed(chunk, place, fault))
                place += len(chunk)

    def _send_body(self, upstream, fault):
        chunked, place = "chunked" in self.headers.get("Transfer-Encoding", ""), 0
        for piece in self._request_body():
            data = self._harmed(piece, place, fault)
            upstream.send(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            place += len(piece)
        if chunked:
            upstream.send(b"0\r\n\r\n")

    def _harmed(self, chunk, place, fault):
        """Return what becomes of a chunk that begins at ``place``, or end the connection."""
        if fault and fault.act == "slow":
            time.sleep(SLOW_SECONDS)
            return chunk
        if fault is None or not place <= fault.after < place + len(chunk):
            return chunk
        at = fault.after - place
        if fault.act == "corrupt":
            return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
        self.wfile.flush()
        if fault.act == "hang":
            self.proxy.open.wait(fault.seconds)
        raise _Cut

    def _request_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(left, CHUNK))):
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
