"""Every error reprobox raises on purpose, and the exit code each one ends the program with.

::

    ReproboxError                    125  reprobox could not do its part; nothing of the user's was run
    ├── UsageError                     2  the command line or a setting is wrong
    ├── RecipeError                  125  a recipe value is wrong (the command line turns it into a UsageError)
    ├── BoxError                     125  the box could not be made ready
    │   ├── CommandNotExecutable     126  the command, or its working directory, cannot be used
    │   └── CommandNotFound          127  there is no such command
    ├── EngineError                  125  the container engine failed
    │   ├── EngineUnavailable        125  no engine answers
    │   ├── ImageNotFound            125  the engine does not have the image
    │   └── RegistryError            125  an image could not be fetched or pushed, or is not the one that was asked for
    ├── ArchiveError                 125  an image's file is not whole, is none of ours, or cannot be written
    ├── BuildError                   125  the image could not be built
    │   └── ArtefactError            125  a wheel or a package could not be had, or is not the one the lock names
    ├── LockError                    125  reprobox.lock cannot be read or written, or does not fit the project
    │   └── LockDamaged              125  reprobox.lock is not what `reprobox lock` writes
    ├── GpuError                     125  a GPU that was asked for is not there
    │   ├── GpusTaken                125  the GPUs that were asked for are in use
    │   └── ClaimError               125  GPUs cannot be claimed on this machine
    ├── SelfTestError                125  the determinism self-test failed, or could not be carried out
    ├── CertificateError             125  a certificate cannot be read or written, or is none
    ├── SignatureError               125  a signature that is required is missing or does not hold, or none can be made
    ├── OutputError                  125  the command's output cannot be written on
    └── RecordError                  125  a run's record cannot be found, read or written

This module runs on the host and in the box: standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ArchiveError",
    "ArtefactError",
    "BoxError",
    "BuildError",
    "CertificateError",
    "ClaimError",
    "CommandNotExecutable",
    "CommandNotFound",
    "EngineError",
    "EngineUnavailable",
    "GpuError",
    "GpusTaken",
    "ImageNotFound",
    "LockDamaged",
    "LockError",
    "OutputError",
    "RecipeError",
    "RecordError",
    "RegistryError",
    "ReproboxError",
    "SelfTestError",
    "SignatureError",
    "UsageError",
    "near_miss",
]


class ReproboxError(Exception):
    """What happened and why, in one sentence, and what to do next.

    :param message: the sentence, without a full stop.
    :param remedy: what to type or change next, without a full stop; none where the message says it already.
    :param detail: more lines for ``--debug`` (an engine's own answer, a build log's tail).
    """

    exit_code = 125

    def __init__(self, message: str, *, remedy: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(ReproboxError):
    """The command line, the project file or an environment setting is wrong."""

    exit_code = 2


class RecipeError(ReproboxError):
    """A value of the recipe is wrong."""


class BoxError(ReproboxError):
    """The box could not be made ready for the command."""


class CommandNotExecutable(BoxError):
    """The command exists and cannot be executed, or its working directory cannot be entered."""

    exit_code = 126


class CommandNotFound(BoxError):
    """There is no such command."""

    exit_code = 127


class EngineError(ReproboxError):
    """The container engine refused or failed."""


class EngineUnavailable(EngineError):
    """No container engine answers at the address that was tried."""


class ImageNotFound(EngineError):
    """The engine does not have the image, and it was not to be fetched."""


class RegistryError(EngineError):
    """An image could not be fetched from a registry or pushed to it, or is not the one that was asked for."""


class ArchiveError(ReproboxError):
    """The file of a saved image is not whole, is not one that reprobox wrote, or cannot be read or written."""


class BuildError(ReproboxError):
    """The image could not be built."""


class ArtefactError(BuildError):
    """A wheel or package the lock names could not be had, or its content is not what the lock says."""


class LockError(ReproboxError):
    """``reprobox.lock`` cannot be read or written, or does not fit the project."""


class LockDamaged(LockError):
    """``reprobox.lock`` is not what ``reprobox lock`` writes: it was edited, cut off, or merged and left unfinished."""


class GpuError(ReproboxError):
    """A GPU that was asked for is not there or cannot be used."""


class GpusTaken(GpuError):
    """The GPUs that were asked for are there, and others use them now."""


class ClaimError(GpuError):
    """GPUs cannot be claimed on this machine: a run can have them, and others will not know of it."""


class SelfTestError(ReproboxError):
    """The determinism self-test failed, or could not be carried out; the command was not started.

    ``failures`` names each case, knob or device that failed.
    """

    def __init__(
        self, message: str, *, remedy: str | None = None, detail: str | None = None, failures: Iterable[str] = ()
    ) -> None:
        super().__init__(message, remedy=remedy, detail=detail)
        self.failures = list(failures)


class CertificateError(ReproboxError):
    """A certificate cannot be read or written, or is not one of this reprobox."""


class SignatureError(ReproboxError):
    """A signature that is required is missing or does not hold, or one cannot be made."""


class OutputError(ReproboxError):
    """The command's output cannot be written where it was to go."""


class RecordError(ReproboxError):
    """A run's record cannot be found, read or written."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean X?)"`` for the known word nearest to ``word``, or an empty string.

    >>> near_miss("strickt", ["strict", "warn"])
    ' (did you mean strict?)'
    """
    from difflib import get_close_matches  # only a refusal pays for this import, not every start of a box

    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
