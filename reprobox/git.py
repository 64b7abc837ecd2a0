"""git, asked about the project's checkout without running anything that the checkout names.

A repository's own configuration names programs (``core.fsmonitor``, ``filter.*.clean``, hooks, remotes) that git starts for
a mere ``git status``, and a box can write it. So git gets a folder of ours as its git directory: a HEAD that was resolved
here, a configuration of listed keys, and the checkout's own objects and index.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reprobox.files import read_at_most
from reprobox.host_programs import find_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["GIT_SECONDS", "NO_GIT", "TOO_LONG", "Checkout", "ask_git"]

GIT_SECONDS: Final = 30.0
"""How long a run waits for git."""
NO_GIT: Final = "there is no git"
TOO_LONG: Final = "git takes too long"

_HARMLESS: Final = frozenset(
    (
        *("core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode"),
        *("core.trustctime", "core.checkstat", "core.sparsecheckout", "core.sparsecheckoutcone", "index.sparse"),
        *("core.repositoryformatversion", "extensions.objectformat", "status.showuntrackedfiles"),
    )
)
"""Keys that change what git finds, and name neither a program nor a file."""
_PEOPLE_S: Final = ("core.excludesfile", "core.attributesfile")
"""Files of patterns that the person's own configuration, and no repository's, may name."""
_KNOWN_EXTENSIONS: Final = frozenset(
    (
        "noop",
        "noop-v1",
        "objectformat",
        "partialclone",
        "preciousobjects",
        "refstorage",
        "relativeworktrees",
        "worktreeconfig",
    )
)
_WORD: Final = re.compile(r"[A-Za-z0-9.-]{0,32}")
_OID: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_OWN_REFS: Final = ("refs/bisect/", "refs/worktree/", "refs/rewritten/")
_SMALL, _PATTERNS, _MANY = 64 << 10, 4 << 20, 64 << 20
_SYMBOLIC, _DEEP, _SUBMODULES = 5, 4, 1000
_GITLINK: Final = b"160000"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """What git tells: ``commit`` (``None`` before the first one) and whether files differ from it.

    ``reason`` says why one of them cannot be told; what cannot be told is ``None``.
    """

    commit: str | None = None
    dirty: bool | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what a run's manifest says of the checkout."""
        return {"commit": self.commit, "dirty": self.dirty, "reason": self.reason}


class _CannotTell(Exception):  # it is an answer
    """Why git cannot be asked, or does not answer."""


def ask_git(root: Path, *, seconds: float = GIT_SECONDS) -> Checkout | None:
    """Return what git tells of the checkout whose top folder is ``root``; ``None`` where that is no checkout.

    Nothing that the checkout names is run, and nothing in it is written. Never fails: see :attr:`Checkout.reason`.

    :param seconds: how long it may take in all.
    """
    if not os.path.lexists(root / ".git"):
        return None
    return _asked(root.resolve(), time.monotonic() + seconds, _DEEP)


def _asked(root: Path, end: float, deep: int) -> Checkout:
    commit = None
    try:
        program = _program()
        folder = _git_directory(root)
        shared = _shared(folder)
        with tempfile.TemporaryDirectory(prefix="reprobox-git-") as made:
            git = _Git(program, root, folder, shared, Path(made), end)
            commit = git.prepare()
            dirty = git.is_dirty() or _submodules_differ(git, root, end, deep)
    except _CannotTell as why:
        return Checkout(commit=commit, reason=str(why))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return Checkout(commit=commit, reason=f"git cannot be asked ({reason or error})")
    return Checkout(commit=commit, dirty=dirty)


def _program() -> str:
    program = find_program("git")
    if program is None:
        raise _CannotTell(NO_GIT)
    return program


def _git_directory(root: Path) -> Path:
    """Return the git directory of a checkout: ``.git``, or where the file ``.git`` says it is."""
    place = root / ".git"
    if place.is_dir():
        return place.resolve()
    word, _, where = _text(place).partition(": ")
    if word != "gitdir":
        raise _CannotTell("its .git is neither a folder nor the name of one")
    return (root / where.rstrip("\n")).resolve(strict=True)


def _shared(folder: Path) -> Path:
    """Return where the objects and branches are: of a worktree, in the git directory of the repository it belongs to."""
    if not (folder / "commondir").exists():
        return folder
    return (folder / _text(folder / "commondir").rstrip("\n")).resolve(strict=True)


def _text(path: Path, largest: int = _SMALL) -> str:
    return os.fsdecode(_regular(path, largest))


def _regular(path: Path, largest: int) -> bytes:
    """Read a file that a box may have made: a pipe would be waited for, and a device has no end."""
    _require_regular(path)
    return read_at_most(path, largest)


def _require_regular(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise _CannotTell(f"its {path.name} is no file")


class _Git:
    """git on one checkout, with a git directory of ours at ``made``."""

    def __init__(self, program: str, root: Path, folder: Path, shared: Path, made: Path, end: float) -> None:
        self._program, self._root, self._made, self._end = program, root, made, end
        self._folder, self._shared = folder, shared
        self._options: list[str] = []
        cleared = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._theirs = cleared | {
            name: os.environ[name]
            for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
            if name in os.environ
        }
        self._environment = cleared | {
            "GIT_DIR": str(made),
            "GIT_WORK_TREE": str(root),
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_OBJECT_DIRECTORY": str(shared / "objects"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_ALLOW_PROTOCOL": "",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }

    def prepare(self) -> str | None:
        """Make the git directory that git is shown, and return the commit that is checked out."""
        for name in ("refs", "objects", "info"):
            (self._made / name).mkdir()
        (self._made / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
        (self._made / "config").write_text("", encoding="utf-8")
        person = self._configuration(None)
        own = self._own_configuration()
        self._options = [word for name in _PEOPLE_S if name in person for word in ("-c", f"{name}={person[name]}")]
        settings = {name: value for name, value in {**person, **own}.items() if name in _HARMLESS}
        # The person's are of no repository: its format is its own alone.
        settings |= {name: own.get(name, "") for name in ("core.repositoryformatversion", "extensions.objectformat")}
        (self._made / "config").write_text("".join(_lines(settings)), encoding="utf-8")
        for name, place in (("exclude", self._shared), ("attributes", self._shared), ("sparse-checkout", self._folder)):
            if os.path.lexists(place / "info" / name):
                (self._made / "info" / name).write_bytes(_regular(place / "info" / name, _PATTERNS))
        if os.path.lexists(self._folder / "index"):
            _require_regular(self._folder / "index")
        for part in self._folder.glob("sharedindex.*"):
            _require_regular(part)
            (self._made / part.name).symlink_to(part)
        commit = self._head()
        if commit is not None:
            (self._made / "HEAD").write_text(f"{commit}\n", encoding="utf-8")
        return commit

    def _own_configuration(self) -> dict[str, str]:
        own = self._configuration(self._shared / "config")
        if own.get("extensions.worktreeconfig", "false").lower() in ("true", "yes", "on", "1"):
            own |= self._configuration(self._folder / "config.worktree")
        strange = [name for name in own if name.startswith("extensions.") and name[11:] not in _KNOWN_EXTENSIONS]
        if strange or own.get("extensions.refstorage", "files") != "files":
            raise _CannotTell("its format is one that reprobox does not know")
        if "core.worktree" in own and (self._folder / own["core.worktree"]).resolve() != self._root:
            raise _CannotTell("its core.worktree names another folder")
        return own

    def _configuration(self, path: Path | None) -> dict[str, str]:
        """Return what a file of the repository sets, includes left out, or (``None``) the person's own configuration."""
        if path is None:
            said = self._run("config", "--list", "--includes", "-z", environment=self._theirs, directory=self._made)
        elif not os.path.lexists(path):
            return {}
        else:
            given = _regular(path, _PATTERNS)
            said = self._run(
                "config", "--file", "-", "--no-includes", "--list", "-z", given=given, directory=self._made
            )
        pairs = (os.fsdecode(entry).partition("\n") for entry in said.split(b"\0") if entry)
        return {name: value if line else "true" for name, line, value in pairs}

    def _head(self) -> str | None:
        """Return the commit that HEAD leads to, read here: of git's own looks, some follow links without end."""
        text = _text(self._folder / "HEAD").strip()
        for _ in range(_SYMBOLIC):
            if _OID.fullmatch(text):
                return text
            word, _, name = text.partition(": ")
            if word != "ref" or not name.startswith("refs/") or ".." in name:
                break
            place = (self._folder if name.startswith(_OWN_REFS) else self._shared) / name
            if not place.is_file() and not os.path.lexists(place):
                return self._packed(name)
            text = _text(place).strip()
        raise _CannotTell("its HEAD leads to no commit")

    def _packed(self, name: str) -> str | None:
        packed = self._shared / "packed-refs"
        if not os.path.lexists(packed):
            return None
        found = re.search(
            rb"^([0-9a-f]{40,64}) " + re.escape(os.fsencode(name)) + rb"$", _regular(packed, _MANY), re.MULTILINE
        )
        return found[1].decode() if found else None

    def is_dirty(self) -> bool:
        """Return whether a file differs from the commit, or is in no commit."""
        status = ("status", "--porcelain=v2", "-z", "--no-renames", "--ignore-submodules=dirty")
        entries = [entry for entry in self._run(*status).split(b"\0") if entry]
        # 1 XY sub mH mI mW hH hI path: .M is a file that differs from the index alone.
        contents = [entry.split(b" ", 8)[-1] for entry in entries if entry.startswith(b"1 .M ")]
        if len(contents) < len(entries):
            return True
        return bool(contents) and self._differ(contents)

    def _differ(self, paths: list[bytes]) -> bool:
        """Return whether one of these files surely differs: those that a program would have to filter cannot be compared."""
        given = b"".join(path + b"\0" for path in paths)
        words = self._run("check-attr", "-z", "--stdin", "filter", given=given).split(b"\0")
        if any(value in (b"unspecified", b"unset") for value in words[2::3]):
            return True
        raise _CannotTell("some files go through a filter of its own (as with git-lfs), which reprobox does not run")

    def gitlinks(self) -> Iterator[bytes]:
        """Yield the paths of the submodules in the index."""
        for entry in self._run("ls-files", "--stage", "-z").split(b"\0"):
            if entry.startswith(_GITLINK):
                yield entry.partition(b"\t")[2]

    def _run(
        self,
        *arguments: str,
        given: bytes = b"",
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> bytes:
        """Run git and return what it prints. :raises _CannotTell: it fails, takes too long, or prints without end."""
        with tempfile.TemporaryFile() as words:
            words.write(given)
            words.seek(0)
            with subprocess.Popen(
                [self._program, *self._options, *arguments], stdin=words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=directory or self._root, env=dict(environment or self._environment),
            ) as process:  # fmt: skip
                return _all_it_says(process, self._end)


def _all_it_says(process: subprocess.Popen[bytes], end: float) -> bytes:
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(max(end - time.monotonic(), 0), give_up)
    timer.start()
    try:
        assert process.stdout is not None
        said = process.stdout.read(_MANY + 1)
        if len(said) > _MANY:
            raise _CannotTell("it has too many files that differ")
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    if late.is_set():
        raise _CannotTell(TOO_LONG)
    if code:
        raise _CannotTell("git cannot read it")
    return said


def _lines(settings: Mapping[str, str]) -> Iterable[str]:
    for name, value in settings.items():
        section, _, key = name.partition(".")
        if value and _WORD.fullmatch(value):
            yield f"[{section}]\n{key} = {value}\n"


def _submodules_differ(git: _Git, root: Path, end: float, deep: int) -> bool:
    """Return whether a file differs in a submodule. Each is asked as the project is, and never by git itself."""
    reasons = []
    for count, name in enumerate(git.gitlinks()):
        place = root / os.fsdecode(name)
        if not os.path.lexists(place / ".git"):
            continue
        if deep == 0 or count >= _SUBMODULES or place.resolve() != place:
            raise _CannotTell("its submodules are too many, too deep or elsewhere")
        found = _asked(place, end, deep - 1)
        if found.dirty:
            return True
        if found.reason:
            reasons.append(f"of the submodule {place.relative_to(root)}: {found.reason}")
    if reasons:
        raise _CannotTell(reasons[0])
    return False
