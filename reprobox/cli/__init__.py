"""The command line: one thin module per command (parse, call, print, exit)."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with its code."""
    _open_what_is_closed()
    if sys.argv[1:] == ["--version"]:
        # Scripts and prompts ask for it; parsing a command line would take five times as long.
        from reprobox import __version__

        _print_version(f"reprobox {__version__}\n")
    try:
        from reprobox.cli.app import run_app

        code = run_app(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    _leave(code)


def _print_version(line: str) -> NoReturn:
    code = 0
    try:
        sys.stdout.write(line)
    except OSError as error:  # without a buffer (PYTHONUNBUFFERED)
        code = _lost(error)
    _leave(code)


def _open_what_is_closed() -> None:
    """Give a standard stream that the caller closed (``<&-``) to nobody: the next file opened would take its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _leave(code: int) -> NoReturn:
    """End this process at once: taking an interpreter with this many modules apart costs a tenth of a short run."""
    try:
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or _lost(error)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what only a person would have read
        sys.stderr.flush()
    os._exit(code)


def _lost(error: OSError | ValueError) -> int:
    """Tell why what was to be shown is lost, and return the exit code for it: 141 where nobody reads, as of a signal."""
    if not isinstance(error, OSError) or error.errno == errno.EPIPE:
        return 141
    from reprobox.cli.failures import tell_full

    return tell_full(error)
