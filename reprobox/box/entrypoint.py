"""The box's entrypoint: validates the recipe, announces it, enters the working directory and executes the command.

An init (tini) runs as PID 1 above it in the image, so signals and zombies are looked after, and ``execve`` leaves
nothing of this process behind. It runs with ``-I -S``: nothing of the user's is imported before the command.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from reprobox.box.environment import SITE, announcement, box_environment
from reprobox.errors import (
    BoxError,
    CommandNotExecutable,
    CommandNotFound,
    RecipeError,
    ReproboxError,
    SelfTestError,
)
from reprobox.knobs import IMAGE_ENVIRONMENT
from reprobox.recipe import (
    BoxSettings,
    Profile,
    Recipe,
    SelfTest,
    draw_seed,
    world_size,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RECIPE_FILE = "/run/reprobox/recipe.json"
"""Where the CLI mounts the recipe (``hook.RECIPE_FILE``)."""

SECRETS = Path("/run/secrets")

NO_TORCH = 3
"""Exit code of the self-test where there is no torch (``selftest/launch.py``)."""


def main(argv: Sequence[str] | None = None, *, image_environment: Mapping[str, str] = IMAGE_ENVIRONMENT) -> int:
    """Run ``[--chdir=DIR] [--secrets=NAME,…] [--] COMMAND…`` under the recipe; return an exit code only on failure.

    :param argv: the arguments, ``sys.argv[1:]`` by default.
    :param image_environment: knobs the image baked into the environment. One that still has this value is not the
        caller's choice, so the recipe may change or remove it. Empty on the local engine, where there is no image.
    """
    # A signal before exec ends the box as it would end the command, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run_dir = os.environ.get("REPROBOX_RUN_DIR")
    try:
        settings = BoxSettings.parse(os.environ)
        arguments = _Arguments.parse(sys.argv[1:] if argv is None else argv)
        recipe, seed_note = _choose_seed(settings.recipe, os.environ)
        environment, notes = box_environment(os.environ, recipe, image_environment)
        environment.update(_secrets(arguments.secrets))
        _enter(arguments.directory)
        notes += _provide_home(environment)
        if not settings.quiet:
            _say(announcement(recipe, environment, seed_note))
            for note in notes:
                _say(note)
        if settings.selftest is not SelfTest.OFF and recipe.profile is not Profile.OFF:
            said = _prove(environment, run_dir)
            if not settings.quiet:
                _say(said)
        _record_stage(run_dir, "exec", required=True)
        if recipe.profile is not Profile.OFF:
            _sign_the_ledger(run_dir, arguments.command, environment)
        if image_environment and not Path(RECIPE_FILE).exists():
            _leave_recipe(recipe, run_dir)
    except ReproboxError as error:
        _say(str(error))
        _record_stage(run_dir, _stage_of(error))
        return error.exit_code
    try:
        _execute(arguments.command, environment, "in the box, not on this machine" if image_environment else "on PATH")
    except BoxError as error:
        _say(str(error))
        _record_stage(run_dir, "exec-failed")
        return error.exit_code


def _stage_of(error: ReproboxError) -> str:
    if isinstance(error, SelfTestError):
        return "selftest-failed"
    return "exec-failed" if isinstance(error, CommandNotExecutable) else "refused"


class _Arguments:
    """The entrypoint's own options, and the command after them."""

    def __init__(self, command: Sequence[str], directory: str | None, secrets: Sequence[str]) -> None:
        self.command = command
        self.directory = directory
        self.secrets = secrets

    @classmethod
    def parse(cls, argv: Sequence[str]) -> _Arguments:
        rest = list(argv)
        given = {}
        while rest and rest[0].startswith(("--chdir=", "--secrets=")):
            name, _, value = rest.pop(0).partition("=")
            given[name] = value
        if rest and rest[0] == "--":
            rest.pop(0)
        if not rest:
            raise BoxError("no command was given", remedy="name the program to run, as in: python train.py")
        secrets = [name for name in given.get("--secrets", "").split(",") if name]
        return cls(rest, given.get("--chdir"), secrets)


def _secrets(names: Sequence[str]) -> dict[str, str]:
    """Read the files under /run/secrets that the command gets as variables, without the newline that ends a file."""
    result = {}
    for name in names:
        try:
            value = (SECRETS / name).read_bytes()
        except OSError as error:
            raise BoxError(
                f"the secret {name} cannot be read in the box ({os.strerror(error.errno or errno.EIO)})",
                remedy="run as the user who gave it",
            ) from error
        result[name] = os.fsdecode(value[:-1] if value.endswith(b"\n") else value)
    return result


def _prove(environment: Mapping[str, str], run_dir: str | None) -> str:
    """Run the self-test's start tier in the command's environment and return the line that tells its result.

    :raises SelfTestError: when it fails: the command must not be started.
    """
    import json
    import subprocess

    python = shutil.which("python", path=environment.get("PATH"))
    if python is None:
        return "self-test skipped: there is no python in the box"
    # What the test does is no part of the run: its processes leave no receipts.
    inside = {name: value for name, value in environment.items() if name != "REPROBOX_RUN_DIR"}
    inside["PYTHONPATH"] = SITE  # nothing of the user's
    launcher = Path(__file__).with_name("selftest") / "launch.py"
    done = subprocess.run(
        [python, str(launcher), "--tier", "start", "--quiet"],
        env=inside,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode == NO_TORCH:
        return "self-test skipped: the box's python has no torch"
    try:
        document = json.loads(done.stdout)
        cases, failures = document["cases"], document["failures"]
    except (ValueError, KeyError, TypeError) as error:
        raise SelfTestError(
            f"the self-test ended with exit code {done.returncode} and no result",
            remedy="see what it said above, or set REPROBOX_SELFTEST=off",
        ) from error
    if run_dir:
        with contextlib.suppress(OSError):
            (Path(run_dir) / "selftest.json").write_bytes(done.stdout)
    if failures:
        raise SelfTestError(
            f"the self-test failed, so the command was not started: {'; '.join(failures)}",
            remedy="set REPROBOX_SELFTEST=off to run it all the same",
        )
    devices = ", ".join(dict.fromkeys(str(case["device"]) for case in cases))
    return f"self-test {len(cases)} cases on {devices}: same bits"


def _choose_seed(recipe: Recipe, environment: Mapping[str, str]) -> tuple[Recipe, str]:
    if recipe.seed is not None or recipe.profile is Profile.OFF:
        return recipe, ""
    ranks = world_size(environment)
    if ranks > 1:
        raise RecipeError(
            f"REPROBOX_SEED is not set and there are {ranks} ranks, which would each draw another",
            remedy="give every rank the same REPROBOX_SEED",
        )
    return recipe.with_seed(draw_seed()), " (drawn: none was given)"


def _enter(directory: str | None) -> None:
    if directory is None:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        raise CommandNotExecutable(
            f"the working directory {directory} cannot be entered ({os.strerror(error.errno or errno.EIO)})",
            remedy="give -w a folder that exists in the box",
        ) from error


def _provide_home(environment: dict[str, str]) -> list[str]:
    """Give a user the image does not know a home and a name (libraries call ``getpass.getuser`` and ``expanduser``)."""
    home = environment.get("HOME", "")
    notes = []
    if not (home and os.access(home, os.W_OK | os.X_OK)):
        replacement = Path(environment.get("TMPDIR", "/tmp")) / f"home-{os.getuid()}"
        try:
            replacement.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            return ["there is no home folder that this user may write, and /tmp cannot be written either"]
        notes = [f"HOME={home} cannot be written, so HOME is {replacement}"] if home else []
        environment["HOME"] = str(replacement)
    for name in ("USER", "LOGNAME"):
        environment.setdefault(name, _user_name())
    return notes


def _user_name() -> str:
    try:
        import pwd  # not on every platform the local engine may meet

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return f"user{os.getuid()}"


def _execute(command: Sequence[str], environment: dict[str, str], where: str) -> NoReturn:
    """Replace this process by ``command``, looked up in the PATH of ``environment``; ``where`` says so to a person.

    :raises CommandNotFound: when no such file is found (127, as a shell would).
    :raises CommandNotExecutable: when it is a folder, lacks the permission or has no known format (126).
    """
    program = command[0]
    # Python ignores SIGPIPE and SIGXFSZ for itself; the command gets what a shell would give it.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    if not program:
        raise CommandNotFound("the command is an empty word", remedy="name the program to run")
    try:
        os.execvpe(program, list(command), environment)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if os.path.sep in program and Path(program).exists():
                raise CommandNotFound(
                    f"{program} names an interpreter in its first line that is not in the box",
                    remedy="install it in the image, or run the script by its interpreter",
                ) from error
            raise CommandNotFound(
                f"the command {program} was not found",
                remedy=f"check its spelling; programs are looked up {where}",
            ) from error
        raise CommandNotExecutable(f"the command {program} cannot be executed ({reason})") from error


def _record_stage(run_dir: str | None, stage: str, *, required: bool = False) -> None:
    """Leave the stage the box reached in the run folder: that, and not the exit code, says whose failure it was.

    The file is locked until this process ends or becomes the command: ``exec`` and a free lock say that it has, for the
    kernel closes the file once an exec cannot fail any more, and where it fails another stage is there before that.
    """
    if not run_dir:
        return
    target = Path(run_dir) / "stage"
    try:
        temporary = target.with_name(f".stage-{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, f"{stage}\n".encode("ascii"))
        temporary.replace(target)
    except OSError as error:
        if required:
            raise BoxError(
                f"the run folder {run_dir} cannot be written ({os.strerror(error.errno or errno.EIO)})",
                remedy="unset REPROBOX_RUN_DIR or mount a folder there that this user may write",
            ) from error


def _leave_recipe(recipe: Recipe, run_dir: str | None) -> None:
    """Leave the recipe for children with an emptied environment, where no CLI has mounted it: this user's, read-only."""
    import json

    target = Path(f"/tmp/.reprobox-recipe-{os.getuid()}.json")
    try:
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_text(json.dumps({"words": recipe.to_words(run_dir or "")}), encoding="utf-8")
        temporary.chmod(0o444)
        temporary.replace(target)
    except OSError:
        _say("children started with an empty environment will not be seeded: /tmp cannot be written")


def _sign_the_ledger(run_dir: str | None, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Note this process, which the command takes over, when the command is Python: its hook must sign as well."""
    if not run_dir or not _is_python(command[0], environment):
        return
    try:
        with (Path(run_dir) / "ledger").open("a", encoding="utf-8") as ledger:
            ledger.write(f"main {os.getpid()} {_without_arguments(command)}\n")
    except OSError:
        return  # the stage was written a moment ago; what goes wrong here is not worth stopping a run for


def _without_arguments(command: Sequence[str]) -> str:
    """Return the command line up to its first word that is no option: what follows is the program's, and may be secret."""
    options = list(itertools.takewhile(lambda word: word.startswith("-") and word != "-c", command[1:]))
    script = command[1 + len(options) :][:1]
    return " ".join(" ".join([command[0], *options, *script]).split())


def _is_python(program: str, environment: Mapping[str, str]) -> bool:
    """Say whether ``program`` is a Python interpreter, or a script whose first line names one."""
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        return False
    if re.fullmatch(r"python[0-9.]*", Path(found).name):
        return True
    try:
        with Path(found).open("rb") as file:
            first = file.readline(256)
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _say(line: str) -> None:
    # A word of a command may hold control characters, and a terminal would obey them.
    words = line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    sys.stderr.write(f"reprobox: {words}\n")
    sys.stderr.flush()
