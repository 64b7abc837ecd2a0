"""Where runs are kept: ``.reprobox/runs/<id>/`` in the project, one folder a run, found again by a reference."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeGuard

from reprobox.errors import RecordError
from reprobox.files import open_untrusted, parse_json, read_untrusted, write_atomically, write_json
from reprobox.runs.minder import Minder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
__all__ = ["RunRecord", "RunStore", "new_run_id"]

_ID = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}-[0-9a-f]{4}")
_REPORT = re.compile(r"stage|ledger|receipt-[A-Za-z0-9_.-]+\.json")
LARGEST_MANIFEST = 16 << 20
MOST_REPORTS = 20_000
"""A box that leaves more files than this has those that are found first taken over."""

SELFTEST_FAILED = "selftest-failed"
STAGES = frozenset(("refused", SELFTEST_FAILED, "exec-failed", "exec"))
"""The stages a box records: how far it came before the command took its place, and why not further."""

HANDED_OVER = "exec"
"""The stage that the entrypoint records just before the command takes its place."""

_LONGEST_LOCK = 200
LARGEST_EXIT_CODE = 255

_LAST = re.compile(r"last(?:~([0-9]{1,9}))?")


def new_run_id(now: datetime | None = None) -> str:
    """Return an id that sorts by time: ``20261121T035544.123-1f3a`` (UTC to the millisecond, and 16 random bits)."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}-{os.urandom(2).hex()}"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run's folder and its manifest."""

    id: str
    folder: Path

    @property
    def project(self) -> Path:
        """The project that it lies in, whatever its manifest says."""
        return self.folder.parents[2]

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.folder / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """Read the manifest. :raises RecordError: when it is missing or not a manifest."""
        try:
            document = parse_json(read_untrusted(self.manifest_path, LARGEST_MANIFEST))
        except (OSError, ValueError) as error:
            raise RecordError(
                f"the manifest of run {self.id} cannot be read ({error})",
                remedy=f"look at {self.manifest_path}, or remove its folder",
            ) from error
        if not _is_manifest(document):
            raise RecordError(f"{self.manifest_path} is not a reprobox manifest", remedy="remove its folder")
        if document.get("id", self.id) != self.id:
            raise RecordError(f"{self.manifest_path} is the manifest of another run", remedy="remove its folder")
        for name, value in (("id", self.id), ("project", str(self.project)), ("exit_code", None)):
            document.setdefault(name, value)  # what its readers go by
        return document

    def write(self, manifest: Mapping[str, object]) -> None:
        """Replace the manifest, whole or not at all."""
        write_json(self.manifest_path, manifest)

    def write_or_tell(self, manifest: Mapping[str, object], say: Callable[[str], None]) -> bool:
        """Replace the manifest; where it cannot be, tell why and return false: the run is worth more than its record."""
        try:
            self.write(manifest)
        except OSError as error:
            say(f"the record of run {self.id} cannot be written ({error.strerror})")
            return False
        return True

    @property
    def box_folder(self) -> Path:
        """Where the files that the box is given are, while it lives."""
        return self.folder / "box"

    @property
    def reports(self) -> Path:
        """Where the box writes what it saw, while it lives: the only folder of the record that it can reach."""
        return self.box_folder / "out"

    def stage(self) -> str | None:
        """Return the stage the box recorded just before it handed over to the command, if it got so far."""
        for folder in (self.reports, self.folder):
            try:
                descriptor = os.open(folder / "stage", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(descriptor, "rb") as file:
                    stage = file.read(64).decode("ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
            return stage if stage in STAGES else None
        return None

    def has_handed_over(self) -> bool:
        """Say whether the command runs: the box records it just before, and holds that file's lock until it is so."""
        if self.stage() != HANDED_OVER:
            return False
        try:
            descriptor = os.open(self.reports / "stage", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        finally:
            os.close(descriptor)
        # Where the command could not be executed, another stage came before the end of the lock.
        return self.stage() == HANDED_OVER

    def collect(self) -> None:
        """Take over what the box reported, and nothing else: a command could have left links that lead elsewhere."""
        with contextlib.suppress(OSError):
            # A record that came with a repository may have a link in the place of each folder.
            if self.reports.resolve() == self.project.resolve() / ".reprobox" / "runs" / self.id / "box" / "out":
                for entry in islice(os.scandir(self.reports), MOST_REPORTS):
                    if _REPORT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        Path(entry.path).replace(self.folder / entry.name)
        with contextlib.suppress(OSError):
            self.box_folder.unlink()  # a link, or a file
        shutil.rmtree(self.box_folder, ignore_errors=True)
        for stray in self.folder.glob(".manifest.json-*"):
            stray.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run: the lock ends with this process, however it ends, so that others see whether somebody minds it.

        Waits while another process holds it.

        :raises RecordError: where the lock is no file: a record that came with a repository may hold a link.
        """
        path = self.folder / "lock"
        while True:
            try:
                descriptor = open_untrusted(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            except OSError as error:
                raise RecordError(
                    f"run {self.id} cannot be locked ({error.strerror})", remedy=f"look at {path}, or remove its folder"
                ) from error
            with os.fdopen(descriptor, "r+b", buffering=0):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not _is_at(descriptor, path):
                    continue  # whoever held it before has removed it: it is nobody's lock any more
                with contextlib.suppress(OSError):  # a full disk; what is held is the lock, and not what it says
                    os.truncate(descriptor, 0)
                    os.write(descriptor, Minder.this().to_text().encode())
                try:
                    yield
                finally:
                    # Its folder went, or is read-only by now; the lock ends all the same.
                    with contextlib.suppress(OSError):
                        path.unlink()
                return

    def holder(self) -> Minder | None:
        """Return the process that holds the run, known or not, or ``None`` when nobody minds it."""
        try:
            with os.fdopen(open_untrusted(self.folder / "lock"), "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return Minder.parse(lock.read(_LONGEST_LOCK).decode("ascii", errors="replace"))
        except OSError:
            return None
        return None

    def await_holder(self) -> None:
        """Wait until nobody holds the run."""
        with contextlib.suppress(OSError), os.fdopen(open_untrusted(self.folder / "lock"), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


_KINDS: Mapping[str, tuple[type, ...]] = {
    "schema": (str,),
    "id": (str,),
    "project": (str,),
    "command": (list,),
    "recipe": (dict,),
    "engine": (dict,),
    "outputs": (dict, NoneType),
    "options": (dict, NoneType),
    "streams": (dict, NoneType),
    "exit_code": (int, NoneType),
    "message": (str, NoneType),
    "start": (str, NoneType),
    "end": (str, NoneType),
}
"""Of which kind each field is that is read again: somebody may have edited the file, or a disk damaged it."""

_PARTS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "engine": {"name": (str,), "id": (str, NoneType)},
    "options": {"terminal": (bool,), "stdin": (bool,)},
    "streams": {"stdout_bytes": (int,), "stderr_bytes": (int,)},
}


def _is_manifest(document: Any) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(document, dict)
        and _has_kinds(document, _KINDS)
        and all(_has_kinds(document.get(name) or {}, kinds) for name, kinds in _PARTS.items())
        and document.get("schema", "").startswith("reprobox.manifest/")
        and all(isinstance(word, str) for word in document.get("command", ()))
        and 0 <= (document.get("exit_code") or 0) <= LARGEST_EXIT_CODE
    )


def _has_kinds(document: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> bool:
    return all(type(document[name]) in allowed for name, allowed in kinds.items() if name in document)


class RunStore:
    """The runs of one project."""

    def __init__(self, project_root: Path) -> None:
        self.home = project_root / ".reprobox"
        self.folder = self.home / "runs"

    def create(self, run_id: str) -> RunRecord:
        """Make the folder of a new run. :raises RecordError: when the project cannot be written."""
        record = RunRecord(id=run_id, folder=self.folder / run_id)
        try:
            record.folder.mkdir(parents=True)
            ignore = self.home / ".gitignore"
            if not ignore.exists():
                write_atomically(ignore, b"*\n")
        except OSError as error:
            raise RecordError(
                f"the run's record cannot be written to {record.folder} ({error.strerror})",
                remedy="make the project folder writable for this user",
            ) from error
        return record

    def list(self) -> list[RunRecord]:
        """Return every run, oldest first."""
        try:
            with os.scandir(self.folder) as entries:
                # Not by a link: another project's run is that project's to complete and to remove.
                names = [e.name for e in entries if _ID.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [RunRecord(id=name, folder=self.folder / name) for name in sorted(names)]

    def find(self, reference: str) -> RunRecord:
        """Return the run meant by ``reference``: a unique beginning of its id, ``last``, or ``last~2``.

        :raises RecordError: when there is no such run, or several.
        """
        runs = self.list()
        if match := _LAST.fullmatch(reference):
            back = int(match.group(1) or 0) + 1
            if back <= len(runs):
                return runs[-back]
            raise RecordError(
                f"there is no run {reference}: this project has {len(runs)}",
                remedy="see `reprobox runs list`",
            )
        matches = [run for run in runs if reference and run.id.startswith(reference)]
        if len(matches) == 1:
            return matches[0]
        found = f"{len(matches)} runs begin with {reference!r}" if matches else f"no run begins with {reference!r}"
        raise RecordError(found, remedy="see `reprobox runs list`, and give more of the id")

    def remove(self, record: RunRecord) -> None:
        """Remove a run's folder and everything in it. :raises RecordError: when that is not possible."""
        try:
            shutil.rmtree(record.folder)
        except FileNotFoundError:
            return  # somebody else has removed it
        except OSError as error:
            raise RecordError(
                f"{record.folder} cannot be removed ({error.strerror})", remedy="see whose it is, and remove it by hand"
            ) from error
