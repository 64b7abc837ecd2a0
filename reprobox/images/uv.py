"""uv, which resolves: found beside this Python, and told of the indexes that this machine's pip is configured with."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from reprobox.errors import ArtefactError
from reprobox.host_programs import find_program, host_environment, python_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["UvFailed", "environment_for_uv", "find_uv", "folder_for_uv", "pip_configuration", "run_uv"]

_FROM_PIP: Final = {
    # pip's option: uv's variables for it, the first of which is set unless the caller has set one of them.
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("ALL_PROXY",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
}
_SEVERAL: Final = {"extra-index-url", "find-links", "trusted-host"}


class UvFailed(ArtefactError):
    """uv ended with an error; ``detail`` is what it said, ``cause`` the sentence that tells why, where there is one."""

    def __init__(self, message: str, said: str) -> None:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("cause:")), lines[0] if lines else "it said nothing")
        self.cause = told.partition(": ")[2] or told
        super().__init__(f"{message}: {self.cause.rstrip('.')}", detail=said)


def find_uv() -> str:
    """Return the path of uv. :raises ArtefactError: there is none beside this Python nor on PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else find_program("uv")
    if found is None:
        raise ArtefactError("uv, which resolves packages, is not installed", remedy="install reprobox again, or uv")
    return found


def pip_configuration() -> dict[str, str]:
    """Return pip's own configuration on this machine by option, such as ``index-url``; empty where there is no pip.

    What the environment says wins over files, and a section for ``download`` over the global one, as in pip.
    """
    if importlib.util.find_spec("pip") is None:
        return {}
    answer = subprocess.run(
        python_command("-m", "pip", "config", "list", "--disable-pip-version-check"), env=host_environment(),
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
    ).stdout  # fmt: skip
    rank = {"global": 0, "install": 1, "download": 2, ":env:": 3}
    found: dict[str, tuple[int, str]] = {}
    for line in answer.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in rank and rank[section] >= found.get(option, (-1, ""))[0]:
            found[option] = (rank[section], str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in found.items()}


def environment_for_uv(pip: Mapping[str, str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment uv is run in: the caller's, with pip's indexes where the caller set none for uv.

    uv otherwise reads none of pip's configuration, and it stops at the first index that knows a package; here it looks
    at all of them, as pip does. In the environment rather than as arguments, because addresses may hold passwords.
    """
    result = dict(host_environment() if environment is None else environment)
    for option, names in _FROM_PIP.items():
        if option in pip and not any(name in result for name in names):
            words = pip[option].split() if option in _SEVERAL else [pip[option]]
            result[names[0]] = ("," if option == "find-links" else " ").join(words)
    result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    result.setdefault("UV_PYTHON_DOWNLOADS", "never")
    result.setdefault("UV_PYTHON", sys.executable)
    return {**result, "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


@contextmanager
def folder_for_uv() -> Iterator[Path]:
    """Give a folder for uv's own files while the block lasts. :raises ArtefactError: none can be made."""
    try:
        made = TemporaryDirectory(prefix="reprobox-uv-")
    except OSError as error:
        raise ArtefactError(
            f"no temporary folder can be made ({error.strerror})",
            remedy="set TMPDIR to a folder that can be written to, and has room",
        ) from error
    with made as folder:
        yield Path(folder)


def run_uv(arguments: Sequence[str], what: str, *, environment: Mapping[str, str], folder: Path) -> str:
    """Run uv in ``folder`` and return its standard output.

    :param what: the beginning of the sentence if it fails.
    :raises UvFailed: it failed.
    """
    done = subprocess.run(
        [find_uv(), *arguments], cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise UvFailed(what, done.stderr or done.stdout)
    return done.stdout
