"""The end of a failure: one sentence on stderr and the exit code it is documented with."""

from __future__ import annotations

import errno
import os
import signal
import traceback
from typing import TYPE_CHECKING

import typer

from reprobox.cli.console import say, write_block
from reprobox.errors import OutputError, ReproboxError
from reprobox.stopping import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["guarded", "nobody_reads", "tell_full"]

UNEXPECTED_EXIT = 125
BROKEN_PIPE_EXIT = 141


def guarded(work: Callable[[], object], *, debug: bool) -> int:
    """Return what ``work`` returns where it is an exit code, 0 for anything else, and a failure's code after telling it.

    :param debug: show the traceback and the engine's answer as well.
    """
    try:
        code = work()
    except ReproboxError as error:
        if debug:
            _print_traceback(error.detail)
        _say(str(error))
        return error.exit_code
    except typer.TyperException as error:
        _tell_misuse(error)
        return error.exit_code
    except (Stopped, KeyboardInterrupt, typer.Abort) as error:
        return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
    except (BrokenPipeError, SystemExit) as error:
        # Typer and rich turn the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        return nobody_reads()
    except Exception as error:
        return _unexpected(error, debug=debug)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception, *, debug: bool) -> int:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        return tell_full(error)
    if debug:
        _print_traceback(None)
    _say(
        f"reprobox itself failed ({type(error).__name__}: {error}); run it again with `reprobox --debug` and report this"
    )
    return UNEXPECTED_EXIT


def _tell_misuse(error: typer.TyperException) -> None:
    message = error.format_message().rstrip(".")
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        print(error)
    else:
        _say(f"{message[:1].lower()}{message[1:]}; see {_help_of(error)}")


def nobody_reads() -> int:
    """Return the exit code of a command whose output nobody reads any more, and write no more of it."""
    # Python would complain once more while it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE_EXIT


def tell_full(error: OSError) -> int:
    """Tell that stdout cannot be written, write no more of it, and return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _say(f"what was to be shown cannot be written ({error.strerror}); make room where the output goes")
    return OutputError.exit_code


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "reprobox"
    return f"`{path} --help`"


def _print_traceback(detail: str | None) -> None:
    write_block(traceback.format_exc())
    if detail:
        write_block(detail, "  ")


def _say(line: str) -> None:
    say(" ".join(line.split()))
