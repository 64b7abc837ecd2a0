"""A package index on loopback, with a password where one is set, that can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

FAULTS = ("cut", "corrupt", "401", "404", "503", "no ranges")


class Index:
    """Serves ``/simple/`` and ``/files/`` of a folder. ``faults`` are taken one a file request, oldest first.

    ``asked`` holds each request for a file: its name, its Range header and its Authorization header.
    """

    def __init__(self, folder, password=None):
        self.folder, self.password = folder, password
        self.faults, self.asked = [], []
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                index.answer(self, body=False)

            def do_GET(self):
                index.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def host(self):
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self):
        login = f"{self.password}@" if self.password else ""
        return f"http://{login}{self.host}/simple/"

    def file_url(self, name):
        return f"http://{self.host}/files/{name}"

    def answer(self, request, *, body):
        given = request.headers.get("Authorization", "")
        if self.password and given != f"Basic {base64.b64encode(self.password.encode()).decode()}":
            self.send(request, 401, b"who are you?", {"WWW-Authenticate": 'Basic realm="index"'})
            return
        words = [unquote(word) for word in request.path.split("/") if word]
        if words[:1] == ["files"] and (self.folder / words[-1]).is_file():
            self.file(request, words[-1], body=body)
        elif words[:1] == ["simple"] and len(words) == 2:
            self.page(request, words[1])
        else:
            self.send(request, 404, b"not here")

    def page(self, request, name):
        files = [
            path for path in sorted(self.folder.iterdir()) if path.name.split("-")[0].replace("_", "-").lower() == name
        ]
        if not files:
            self.send(request, 404, b"not here")
            return
        links = [
            f'<a href="/files/{p.name}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">{p.name}</a>' for p in files
        ]
        self.send(request, 200, "\n".join(links).encode(), {"Content-Type": "text/html"})

    def file(self, request, name, *, body):
        content = (self.folder / name).read_bytes()
        span, fault = request.headers.get("Range"), None
        if body:
            self.asked.append((name, span, request.headers.get("Authorization")))
            fault = self.faults.pop(0) if self.faults else None
        if fault in ("401", "404", "503"):
            self.send(request, int(fault), b"no")
            return
        headers, status = {"Accept-Ranges": "bytes"}, 200
        whole = len(content)
        if span and fault != "no ranges":
            start = int(span.removeprefix("bytes=").partition("-")[0])
            if start >= whole:
                self.send(request, 416, b"")
                return
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        if fault == "corrupt":
            content = bytes(len(content))
        self.send(request, status, content, headers, cut=fault == "cut", body=body)

    @staticmethod
    def send(request, status, content, headers=None, *, cut=False, body=True):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if body and request.command != "HEAD":
            request.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                request.wfile.flush()
                request.close_connection = True
                request.connection.shutdown(2)


def make_wheel(folder, name="secretpkg", version="1.0", *, size=100, tag="py3-none-any", requires=()):
    """Write a wheel that holds one module of ``size`` bytes and return its path."""
    dist = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {one}\n" for one in requires
    )
    files = {
        f"{name}.py": b"#" * size,
        f"{dist}/METADATA": metadata.encode(),
        f"{dist}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    files[f"{dist}/RECORD"] = "".join(f"{one},,\n" for one in [*files, f"{dist}/RECORD"]).encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return path
