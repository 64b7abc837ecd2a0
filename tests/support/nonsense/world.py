"""One attempt in a sandbox: the whole command line, in this process, with the fake engine and a guard on every write."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import docker.api.client
import docker.errors
import typer.main
from platformdirs import user_cache_path

import reprobox.cli.choice
import reprobox.cli.run
import reprobox.doctor
import reprobox.engines
import reprobox.host
import reprobox.images
import reprobox.runs.gpus
import reprobox.runs.later
import reprobox.runs.manifest
import reprobox.selftest.fingerprint
import reprobox.selftest.proof
from reprobox.cli.app import run_app
from reprobox.engines import Exit, ImageInfo
from reprobox.engines.fake import FakeEngine, Script
from reprobox.errors import EngineUnavailable
from reprobox.gpus import Gpu, Inventory
from reprobox.gpus.claims import Claims
from reprobox.images import input_digest, local_tag
from support.nonsense.files import FOLDER, manifest
from support.nonsense.values import DONE, FAILED, OPEN

INVENTORIES = [
    Inventory(missing="there is no NVIDIA driver library", remedy="run with --gpus none"),
    Inventory(gpus=tuple(Gpu(index=i, uuid=f"GPU-{c * 8}", name="Fake") for i, c in enumerate("ab")), driver="1"),
]


@dataclass
class Case:
    """One attempt: what is typed, set and there; ``refused`` says that it must fail."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    below: bool = False
    inventory: Inventory = INVENTORIES[0]
    engine: str = "fake"
    exit_code: int = 0
    fail_at: str | None = None
    report: tuple[str, bytes] | None = None
    refused: bool = False


@dataclass
class Outcome:
    code: int
    out: bytes
    err: bytes
    boxes: list
    trespasses: list[str]


# ------------------------------------------------------------------------------------------ the guard on every write

_watched: dict = {"sandbox": None}
_SECRETS = (f"/run/user/{os.getuid()}/", "/run/", f"{tempfile.gettempdir()}/")
_CHANGES = ("mkdir", "remove", "rmdir", "truncate", "chmod", "chown")
_WRITES = {
    **{f"os.{name}": slice(1) for name in _CHANGES},
    "os.rename": slice(2),
    "os.link": slice(2),
    "os.symlink": slice(1, 2),
    "shutil.rmtree": slice(1),
}
"""Events, and which of their arguments are paths that are written."""


def _written(event, arguments):
    if event == "open":
        path, _mode, flags = arguments
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return [path] if writes and isinstance(path, (str, bytes)) else []
    if event in ("os.remove", "os.rmdir") and isinstance(arguments[-1], int) and arguments[-1] >= 0:
        return []  # below a folder that rmtree was checked for
    return [path for path in arguments[_WRITES.get(event, slice(0))] if isinstance(path, (str, bytes, Path))]


def _watch(event, arguments):
    """Keep every write inside the sandbox: one outside is refused as by a read-only disk, and noted."""
    if _watched["sandbox"] is None:
        return
    for path in _written(event, arguments):
        text = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        if real.startswith(_watched["sandbox"]) or text == os.devnull:
            continue
        if text.startswith(f"{tempfile.gettempdir()}/reprobox-uv-"):
            continue  # gone when uv has ended
        secrets = re.search(rf"/reprobox-{os.getuid()}-2[^/]*(/|$)", text)
        if secrets and (event == "shutil.rmtree" or text.startswith(_SECRETS)):
            continue  # in memory, and looked for afterwards
        runtime = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere", "reprobox-")
        if not text.startswith((_watched["named"], runtime)):
            _watched["trespasses"].append(f"{event} {text[:200]}")
        raise PermissionError(13, "Permission denied", text)


sys.addaudithook(_watch)


def _cache_folder():
    try:
        return os.path.abspath(user_cache_path("reprobox").parent)
    except (OSError, RuntimeError, ValueError):
        return "/nowhere"


# ------------------------------------------------------------------------------------------------------- the engines


def _image(**labels):
    labels = {"reprobox.variant": "cuda", **labels}
    return ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels=labels)


@functools.cache
def images():
    ours = {
        local_tag(v): _image(**{"reprobox.box-protocol": "2", "reprobox.input": input_digest(v), "reprobox.variant": v})
        for v in ("cpu", "cuda")
    }
    named = {"img:1": "1", "old:0": "-1", "new:9": "9", "words:x": "x"}
    return {**ours, "foreign:1": _image(), **{n: _image(**{"reprobox.box-protocol": p}) for n, p in named.items()}}


class Away(FakeEngine):
    """Podman, where there is none."""

    def info(self):
        raise EngineUnavailable("no podman answers", remedy="install it")

    def image(self, reference):
        return self.info()


def check_spec(spec):
    """What every engine needs of a box: text that JSON can carry, and sources that its daemon can find."""
    document = json.dumps({**asdict(spec), "environment": dict(spec.environment)}, ensure_ascii=False, default=str)
    if spec.image is not None:
        document.encode()
    assert "\\u0000" not in document, "a NUL reaches the engine"
    for mount in spec.mounts:
        assert mount.kind == "volume" or mount.source.startswith("/"), f"the source {mount.source!r} is relative"


# ------------------------------------------------------------------------------------------------------- the sandbox

_FILES = {
    "train.py": b"",
    "secret.txt": b"s3cret-value",
    "empty": b"",
    "nul": b"a\0b",
    "vars.env": b"# c\nA=1\n\nHOST_TOKEN\n",
    "latin.env": b"A=\xe9\n",
    "nul.env": b"A=\0\n",
}
_RUNS = {
    DONE: {},
    FAILED: {"exit_code": 7},
    OPEN: {"end": None, "start": None, "exit_code": None, "outcome": "planned"},
}


class Workplace:
    """A sandbox with a project in it, the fake engine, and this process's streams; one for all examples."""

    def __init__(self, folder, patch):
        self.sandbox = folder.resolve()
        self.root, self.home = self.sandbox / "project", self.sandbox / "home"
        for path in (self.home / ".cache", self.sandbox / "run", self.root / "data"):
            path.mkdir(parents=True)
        for name, data in _FILES.items():
            (self.root / name).write_bytes(data)
        (self.root / "loop").symlink_to("loop")
        self.stale = True
        self.streams = [os.memfd_create(name) for name in ("out", "err")]
        self._patch_engines(patch)
        self._patch_what_is_slow(patch)

    def attempt(self, case):
        self.case = case
        self._clear(case)
        self._fill(case)
        script = {"output": [("stdout", b"from the command\n")], "exit": Exit(code=case.exit_code)}
        script |= {"fail_at": case.fail_at, "on_start": self._command}
        self.engine = FakeEngine(images=images(), script=Script(**script))
        with self._surroundings(case), self._streams():
            _watched.update(trespasses=[], named=_cache_folder(), sandbox=str(self.sandbox))
            try:
                code = run_app(case.arguments)
            finally:
                _watched["sandbox"] = None
        out, err = (os.pread(stream, 1 << 24, 0) for stream in self.streams)
        return Outcome(code=code, out=out, err=err, boxes=self.engine.boxes, trespasses=_watched["trespasses"])

    def left(self):
        """Records of runs that an attempt has left."""
        # Without a project file the caller's own folder is the project.
        for home in (self.root, self.root / "data"):
            for path in (home / ".reprobox" / "runs").glob("2*"):
                if path.name not in _RUNS:
                    yield path

    def _clear(self, case):
        """Take away what the example before left, and no more: this is most of the time a run takes."""
        for name in ("reprobox.toml", "pyproject.toml"):
            path = self.root / name
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
        shutil.rmtree(self.root / "data" / ".reprobox", ignore_errors=True)
        if case.arguments[:1] == ["runs"] or self.stale:
            self._furnish_runs()
        for path in self.left():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.stale = case.arguments[:1] == ["runs"] or any("runs" in name for name in case.files)

    def _furnish_runs(self):
        runs = self.root / ".reprobox" / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        for run_id, fields in _RUNS.items():
            (runs / run_id).mkdir(parents=True)
            document = manifest(run_id, **fields, project=str(self.root))
            (runs / run_id / "manifest.json").write_text(json.dumps(document))
            (runs / run_id / "stdout.log").write_bytes(b"out\xff\n")

    def _fill(self, case):
        for name, data in case.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data == FOLDER:
                path.mkdir()
            else:
                path.write_bytes(data)

    @contextlib.contextmanager
    def _surroundings(self, case):
        """The environment and the working directory."""
        names = {"{home}": str(self.home), "{root}": str(self.root)}
        base = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.sandbox / "run"), "PATH": "/bin"}
        given = {name: names.get(text, text) for name, text in case.environment.items()}
        before = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update({**base, "HOST_TOKEN": "t0ken-value", **given})
            with contextlib.chdir(self.root / "data" if case.below else self.root):
                yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    @contextlib.contextmanager
    def _streams(self):
        """This process's own output goes to memory; what the attempt leaves open is closed."""
        descriptors = set(os.listdir("/proc/self/fd"))
        kept, saved = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
        for stream in self.streams:
            os.ftruncate(stream, 0)
            os.lseek(stream, 0, os.SEEK_SET)
        try:
            for descriptor, stream in zip((1, 2), self.streams, strict=True):
                os.dup2(stream, descriptor)
            sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            yield
        finally:
            with contextlib.suppress(ValueError, OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            sys.stdout, sys.stderr = kept
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            for descriptor in set(os.listdir("/proc/self/fd")) - descriptors:
                with contextlib.suppress(OSError):
                    os.close(int(descriptor))

    def _command(self, spec):
        """What the entrypoint does before it hands over, and what a command may leave behind."""
        folder = spec.environment.get("REPROBOX_RUN_DIR")
        if folder is None:
            return  # the self-test's own box
        if self.engine.isolates:
            folder = next(m.source for m in spec.mounts if m.target == "/run/reprobox/run")
        (Path(folder) / "stage").write_text("exec\n")
        if self.case.report is not None:
            name, data = self.case.report
            (Path(folder) / name).write_bytes(data)

    def _patch_engines(self, patch):
        real_choose, real_open = reprobox.engines.choose_engine, reprobox.engines.open_engine

        def choose(name, *, chosen, say):
            if self.case.engine == "real" and name != "local":
                return real_choose(name, chosen=chosen, say=say)
            return open_engine(name)

        def open_engine(name):
            if self.case.engine == "real":
                return real_open(name) if name == "docker" else Away(name=str(name))
            self.engine.name, self.engine.isolates = str(name), name != "local"
            return self.engine

        def create(engine, spec, original=FakeEngine.create):
            check_spec(spec)
            return original(engine, spec)

        def unreachable(client):
            raise docker.errors.DockerException("Error while fetching server API version: FileNotFoundError")

        patch.setattr(docker.api.client.APIClient, "_retrieve_server_version", unreachable)
        patch.setattr(FakeEngine, "create", create)
        patch.setattr(reprobox.engines, "open_engine", open_engine)
        patch.setattr(reprobox.cli.choice, "choose_engine", choose)
        patch.setattr(reprobox.runs.later, "open_engine", open_engine)
        for module in (reprobox.cli.choice, reprobox.runs.gpus):
            patch.setattr(module, "take_inventory", lambda **_details: self.case.inventory)
        patch.setattr(reprobox.runs.gpus, "Claims", functools.partial(Claims, self.sandbox / "claims"))
        patch.setattr(reprobox.cli.run, "in_background", lambda work: work(lambda: None))
        # A doctor looks at the machine itself, and ends with 1 where that is not well.
        patch.setattr(reprobox.doctor, "CHECKS", ())
        # pip, uv and docker's own client are there and fail, as they do without a network.
        failed = functools.partial(subprocess.CompletedProcess, returncode=1, stdout="", stderr="error: no network")
        patch.setattr(subprocess, "run", lambda command, **_options: failed(command))
        # The fake runs nothing, and so has nothing to prove.
        patch.setattr(reprobox.selftest.proof, "carry_out", lambda *_subject, **_options: None)

    @staticmethod
    def _patch_what_is_slow(patch):
        """Done once for all attempts, or not at all."""
        get_command = typer.main.get_command
        cache = {}
        patch.setattr(typer.main, "get_command", lambda a: cache.get(id(a)) or cache.setdefault(id(a), get_command(a)))
        for name in ("input_digest", "local_tag"):
            patch.setattr(reprobox.images, name, functools.cache(getattr(reprobox.images, name)))
        facts = reprobox.host.host_facts()
        patch.setattr(reprobox.host, "host_facts", lambda: facts)
        patch.setattr(reprobox.runs.manifest, "host_facts", lambda: facts)
        patch.setattr(reprobox.selftest.fingerprint, "host_facts", lambda: facts)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(sys, "dont_write_bytecode", True)
