"""The two ways to have the engine build a context: its classic builder, and BuildKit through a docker client."""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from reprobox.engines import classic
from reprobox.engines.digests import patient
from reprobox.errors import BuildError, EngineError
from reprobox.host_programs import host_environment, path_outside
from reprobox.programs import child

if TYPE_CHECKING:
    import docker
    from reprobox.engines.store import Builder, BuildJob, Reporter

_TAIL: Final = 40  # lines of the log that an error keeps
_STEP: Final = re.compile(r"Step (\d+)/(\d+) : ")
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_FIRST_WITHOUT_BUILDKIT: Final = 23  # docker clients from 23.0 on need the buildx plugin to speak BuildKit
_CLIENT_IS_TOO_OLD: Final = re.compile("failed to read downloaded context|client version .* is too old")
"""What an old docker client prints when its own BuildKit meets a newer engine, mostly one with the containerd store."""
_INSTALL_BUILDX: Final = (
    "install buildx: the package docker-buildx of Debian and Ubuntu, or docker-buildx-plugin of Docker's own packages"
)


@dataclass(kw_only=True)
class _Log:
    """Passes each line on and keeps the last ones for the error."""

    report: Reporter
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def take(self, text: str) -> None:
        for line in _ANSI.sub("", text).splitlines():
            if line.strip():
                self.tail.append(line.rstrip())
                self.report.log(line.rstrip())

    def failed(self, why: str, remedy: str | None = None) -> BuildError:
        return BuildError(f"the image could not be built: {why}", remedy=remedy, detail="\n".join(self.tail))


def choose_builder(wanted: Builder | None, *, client: docker.DockerClient, report: Reporter) -> Builder:
    """Return who builds: whom a person ``wanted``, or the classic builder, or BuildKit where the engine refuses that.

    :raises BuildError: the engine refuses the one that is wanted, or nothing here speaks BuildKit.
    """
    if wanted == "buildkit":
        buildkit_client()
        return wanted
    refused = classic.refusal(client)
    if refused is None:
        return "classic"
    without = f"the engine does not build with its classic builder ({refused})"
    if wanted == "classic":
        raise BuildError(without, remedy="drop --builder, and BuildKit builds where buildx is installed")
    try:
        buildkit_client()
    except BuildError as error:
        raise BuildError(f"{without}, and {error.message}", remedy=_INSTALL_BUILDX) from error
    report.say(f"{without}; BuildKit builds instead")
    return "buildkit"


def build_classic(job: BuildJob, *, client: docker.DockerClient, report: Reporter) -> None:
    """Build with the engine's own builder.

    :raises BuildError: a step failed.
    :raises EngineError: the engine refused the build.
    """
    import docker.errors

    log = _Log(report=report)
    try:
        with patient(client), _CountedFile(job.context, report) as context:
            for message in client.api.build(
                fileobj=context, custom_context=True, decode=True, rm=True, forcerm=True, timeout=None,
                tag=job.tag, buildargs=dict(job.args), network_mode=job.network, nocache=job.no_cache,
            ):  # fmt: skip
                if "errorDetail" in message or "error" in message:
                    why = (message.get("errorDetail") or {}).get("message") or message.get("error")
                    raise log.failed(_short(_ANSI.sub("", str(why)).strip()))
                text = str(message.get("stream", ""))
                log.take(text)
                if step := _STEP.match(text):
                    report.progress("building", int(step[1]), int(step[2]))
    except docker.errors.APIError as error:
        raise EngineError("the engine refused the build", detail=str(error.explanation or error)) from error


def build_buildkit(job: BuildJob, *, client: docker.DockerClient, report: Reporter) -> None:
    """Build with the BuildKit of the engine, through a docker client that speaks it.

    :raises BuildError: no such client is installed, or a step failed.
    """
    program, buildx = buildkit_client()
    log = _Log(report=report)
    command = [program, "build", "--progress=plain", "--tag", job.tag, "--network", job.network]
    command += [part for name, value in job.args.items() for part in ("--build-arg", f"{name}={value}")]
    command += ["--no-cache"] if job.no_cache else []
    command += ["--load", "--provenance=false"] if buildx else []
    with child(
        [*command, "-"], stdin=job.context, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=host_environment() | _daemon_of(client) | {"DOCKER_BUILDKIT": "1"},
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            log.take(line)
    if process.returncode:
        too_old = buildx is None and any(_CLIENT_IS_TOO_OLD.search(line) for line in log.tail)
        why = _short(next((line for line in reversed(log.tail) if line), "no output"))
        raise log.failed(why, _INSTALL_BUILDX if too_old else None)


def buildkit_client() -> tuple[str, str | None]:
    """Return the docker client to build with, and the version of its buildx; None where it speaks BuildKit itself.

    Up to 22 the client does; later ones leave it to the buildx plugin. One with buildx goes before one without.

    :raises BuildError: there is no client that can.
    """
    folders = [*path_outside(os.environ.get("PATH", os.defpath)).split(os.pathsep), "/usr/bin"]
    itself: list[str] = []
    without: list[str] = []
    for program in dict.fromkeys(str(Path(folder) / "docker") for folder in folders if folder):
        if not os.access(program, os.X_OK):
            continue
        if (buildx := _answer(program, "buildx", "version")) is not None:
            return program, next(iter(buildx.split()[1:]), "of an unknown version")
        version = re.search(r"version (\d+)\.", _answer(program, "--version") or "")
        speaks = version and int(version[1]) < _FIRST_WITHOUT_BUILDKIT
        (itself if speaks else without).append(program)
    if itself:
        return itself[0], None
    why = f"{', '.join(without)} lacks the buildx plugin" if without else "no docker client is installed"
    raise BuildError(f"BuildKit cannot be used: {why}", remedy=_INSTALL_BUILDX)


def _answer(*command: str) -> str | None:
    """Return what a program says, or None when it fails."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=host_environment()
    )
    return done.stdout if done.returncode == 0 else None


def _daemon_of(client: docker.DockerClient) -> dict[str, str]:
    """Return the environment that sends a docker client to the same daemon, and to no remote builder.

    docker-py keeps the path of a unix socket in its HTTP adapter only.
    """
    socket = getattr(getattr(client.api, "_custom_adapter", None), "socket_path", None)
    if socket:
        return {"DOCKER_HOST": f"unix://{socket}", "BUILDX_BUILDER": "default"}
    host = re.sub(r"^https?://", "tcp://", str(client.api.base_url))
    return {"DOCKER_HOST": host, "BUILDX_BUILDER": "default"} if host.startswith("tcp://") else {}


def _short(text: str) -> str:
    """Return the last line of an answer, which is the one that says what failed."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else text


class _CountedFile(io.FileIO):
    """A file that reports how much of it was read: sending the wheels is the longest silence of a CUDA build."""

    def __init__(self, opened: IO[bytes], report: Reporter) -> None:
        super().__init__(opened.fileno(), closefd=False)
        self._report, self._total = report, os.fstat(opened.fileno()).st_size
        self._sent = self._said = 0

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(-1 if size is None else size)
        self._sent += len(chunk)
        if self._sent - self._said >= self._total // 100 and chunk:
            self._said = self._sent
            self._report.progress("sending the context", self._sent, self._total)
        return chunk
