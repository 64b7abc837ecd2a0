"""The wheels a lock names: found in the caller's folders or the cache, else fetched once with the host's own pip."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from reprobox.errors import ArtefactError
from reprobox.host_programs import host_environment, python_command
from reprobox.programs import child

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reprobox.images import Reporter

_LINE: Final = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?P<hashes>(?:\s+--hash=\S+)+)")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_GLIBC_MINORS: Final = range(28, 4, -1)  # manylinux_2_28 down to manylinux_2_5
_TAIL: Final = 30  # lines of pip's output that an error keeps


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One distribution of a lock: its normalised name, exact version and the SHA-256 of every wheel that will do."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    def requirement(self) -> str:
        """Return the line pip reads."""
        return " ".join([str(self), *(f"--hash=sha256:{digest}" for digest in self.hashes)])


def parse_lock(text: str, *, source: str) -> tuple[Pin, ...]:
    """Parse a hash-pinned requirements file: ``name==version --hash=sha256:…`` with comments and continuation lines.

    :param source: how an error names the file.
    :raises ArtefactError: a line is anything else, or a name comes twice.
    """
    pins: dict[str, Pin] = {}
    for logical in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", logical).strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        hashes = tuple(_HASH.findall(match["hashes"])) if match else ()
        if not match or len(hashes) != match["hashes"].count("--hash="):
            raise ArtefactError(
                f"{source} has a line that is not name==version --hash=sha256:…: {line!r}",
                remedy="write the lock again with docker/locks/relock.py",
            )
        name = _normalised(match["name"])
        if name in pins:
            raise ArtefactError(f"{source} names {name} twice", remedy="keep the line that is meant")
        pins[name] = Pin(name=name, version=match["version"], hashes=hashes)
    return tuple(pins.values())


def collect(
    pins: Sequence[Pin], *, wheelhouses: Sequence[Path], cache: Path, report: Reporter, python: str = "3.11"
) -> dict[str, Path]:
    """Return the file of each pin as ``file name → path``, every one just verified against its hash.

    :param wheelhouses: folders searched first; their files are used where they are.
    :param cache: folder of earlier downloads, ``<sha256>/<file name>``; a damaged one is said and fetched again.
    :param python: version of CPython the wheels are for.
    :raises ArtefactError: a wheelhouse is no folder, pip is missing, or a wheel cannot be had.
    """
    found: dict[str, Path] = {}
    for folder in wheelhouses:
        if not folder.is_dir():
            raise ArtefactError(
                f"the wheelhouse {folder} is not a folder", remedy="pass the folder that holds the wheels"
            )
    missing = []
    for count, pin in enumerate(pins):
        report.progress("verifying wheels", count, len(pins))
        path = _in_folders(pin, wheelhouses) or _in_cache(pin, cache, report)
        if path:
            found[path.name] = path
        else:
            missing.append(pin)
    report.progress("verifying wheels", len(pins), len(pins))
    if missing:
        report.say(f"fetching {len(missing)} of {len(pins)} wheels with pip: {', '.join(map(str, missing))}")
        for path in _download(missing, cache=cache, report=report, python=python):
            found[path.name] = path
    return found


@contextmanager
def fetch_with_pip(pin: Pin, *, folder: Path, report: Reporter, platform: str = "x86_64") -> Iterator[Path]:
    """Let pip download one wheel into a folder below ``folder`` that goes at the end; give its path.

    :raises ArtefactError: there is no pip, or it cannot fetch the wheel.
    """
    _require_pip(pin)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".pip-") as made:
        requirements = Path(made) / "requirements.txt"
        requirements.write_text(f"{pin.requirement()}\n", encoding="utf-8")
        _run_pip(_pip_command(requirements, Path(made), "3.11", platform), [pin], report, Path(made))
        yield next(Path(made).glob("*.whl"))


def place(wheel: Path, digest: str, cache: Path) -> Path:
    """Move ``wheel``, already verified, to its place in the cache and return that.

    ``wheel`` lies on the cache's file system, so that the move is one rename: of two processes that place the same
    wheel the later one wins with the same bytes, and no reader sees half of a file.
    """
    home = cache / digest
    home.mkdir(parents=True, exist_ok=True)
    target = home / wheel.name
    wheel.replace(target)
    return target


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _in_folders(pin: Pin, folders: Iterable[Path]) -> Path | None:
    for folder in folders:
        for path in sorted(folder.glob("*.whl")):
            if _normalised(path.name.split("-", 1)[0]) == pin.name and sha256_of(path) in pin.hashes:
                return path
    return None


def _in_cache(pin: Pin, cache: Path, report: Reporter) -> Path | None:
    for digest in pin.hashes:
        for path in sorted((cache / digest).glob("*.whl")):
            if sha256_of(path) == digest:
                return path
            report.say(f"the cached {path.name} is damaged and will be fetched again")
            path.unlink(missing_ok=True)
    return None


def _download(pins: Sequence[Pin], *, cache: Path, report: Reporter, python: str) -> list[Path]:
    _require_pip(pins[0])
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".download-") as made:
        folder = Path(made)
        requirements = folder / "requirements.txt"
        requirements.write_text("".join(f"{pin.requirement()}\n" for pin in pins), encoding="utf-8")
        _run_pip(_pip_command(requirements, folder, python), pins, report, folder)
        return [_placed(pin, folder, cache) for pin in pins]


def _require_pip(pin: Pin) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ArtefactError(
            f"{pin} must be fetched and this Python ({sys.executable}) has no pip",
            remedy="install it (python -m ensurepip) or pass --wheelhouse DIR",
        )


def _pip_command(requirements: Path, destination: Path, python: str, machine: str = "x86_64") -> list[str]:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    abis = [f"cp{python.replace('.', '')}", "abi3", "none"]
    command = python_command("-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(destination)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [part for abi in abis for part in ("--abi", abi)]
    command += [part for platform in platforms for part in ("--platform", platform)]
    return [*command, "--requirement", str(requirements)]


def _run_pip(command: list[str], pins: Sequence[Pin], report: Reporter, scratch: Path) -> None:
    """Run pip with the caller's environment, which is where its index, proxy and certificates are configured.

    Its temporary files lie in ``scratch``: a pip that is stopped leaves them.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    with child(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**host_environment(), "TMPDIR": str(scratch)},
    ) as process:
        started = 0
        for line in process.stdout or ():
            tail.append(line.rstrip())
            report.log(line.rstrip())
            if line.startswith("Collecting "):
                report.progress("fetching wheels", started, len(pins))
                started += 1
    if process.returncode == 0:
        report.progress("fetching wheels", len(pins), len(pins))
        return
    text = "\n".join(tail)
    blamed = [pin for pin in pins if str(pin) in text] or list(pins)
    named = ", ".join(map(str, blamed if "No matching distribution" not in text else _unmatched(text, blamed)))
    raise ArtefactError(
        f"pip could not fetch {named} as the lock pins it",
        remedy="configure the package index that serves it for pip (index-url, extra-index-url, find-links) "
        "or pass --wheelhouse DIR",
        detail=text,
    )


def _unmatched(text: str, pins: Sequence[Pin]) -> Sequence[Pin]:
    found = re.search(r"No matching distribution found for (\S+)", text)
    return [pin for pin in pins if found and str(pin) == found[1]] or pins


def _placed(pin: Pin, folder: Path, cache: Path) -> Path:
    for path in sorted(folder.glob("*.whl")):
        if _normalised(path.name.split("-", 1)[0]) == pin.name:
            digest = sha256_of(path)
            if digest in pin.hashes:
                return place(path, digest, cache)
    raise ArtefactError(
        f"pip ended well and left no wheel of {pin} with the lock's hash", remedy="pass --wheelhouse DIR"
    )
