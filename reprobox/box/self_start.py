"""The recipe of a process that no entrypoint started: a step of a CI job, ``docker exec``, a child without an environment.

The recipe is made here as the entrypoint makes it, by the same parser and with the same refusals, and what libraries read
later is put into ``os.environ``. What the interpreter has read already is the hash seed: for that alone it is started once
more. The hook loads this module only where it finds no recipe.
"""

import _io
import builtins
import os
import sys
import time

RECIPE_FILE = "/run/reprobox/recipe.json"
"""The recipe, mounted read-only by the CLI, for children started with an empty environment."""

REFUSED = 125
PREFIX = "REPROBOX_"

_hook = sys.modules["_reprobox_hook"]


def begin():
    """Return the recipe's words for this process, empty where it has none; put its variables into ``os.environ``.

    Does not return where the interpreter is started again, nor where a variable is wrong (exit code 125).
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    given = (
        own
        if PREFIX + "SEED" in own
        else {**(_from_file(RECIPE_FILE) or _from_parents() or _left_by_entrypoint()), **own}
    )
    if not given:
        _say_later("nothing is seeded; set REPROBOX_SEED, or REPROBOX_PROFILE=off to run without this line")
        return {}
    return _make(given, announced=PREFIX + "SEED" in own)


def _make(given, *, announced):
    found = _package()
    try:
        settings = found.BoxSettings.parse(given)
        recipe = settings.recipe
        if recipe.seed is None and recipe.profile is not found.Profile.OFF:
            if not settings.quiet:
                _say_later("nothing is seeded; set REPROBOX_SEED")
            return {}
        environment, notes = found.box_environment({**os.environ, **given}, recipe, found.IMAGE_ENVIRONMENT)
    except found.RecipeError as error:
        os.write(2, f"reprobox: {error}\n".encode())
        os._exit(REFUSED)
    announced = announced and not settings.quiet and recipe.profile is not found.Profile.OFF
    if announced:
        environment[_hook.SAY] = _worded(found.announcement(recipe, environment), *notes)
    gap = _start_again(environment)
    if gap and announced:
        environment[_hook.SAY] += f"\nsets of strings have a free order in this process: {gap}"
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    return recipe.to_words(settings.run_dir or "")


class _Package:
    """What is used of reprobox itself, without leaving it where the program might look for another of this name."""


def _package():
    if not hasattr(builtins, "open"):
        builtins.open = _io.open  # as CPython does a moment later: under -S the hook begins before that
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "reprobox"}
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    try:
        from reprobox import knobs, recipe
        from reprobox.box import environment
        from reprobox.errors import RecipeError

        found = _Package()
        found.BoxSettings, found.Profile, found.RecipeError = recipe.BoxSettings, recipe.Profile, RecipeError
        found.IMAGE_ENVIRONMENT = knobs.IMAGE_ENVIRONMENT
        found.box_environment, found.announcement = environment.box_environment, environment.announcement
        return found
    finally:
        del sys.path[0]
        for name in [name for name in sys.modules if name.partition(".")[0] == "reprobox"]:
            del sys.modules[name]
        sys.modules.update(theirs)


def _start_again(environment):
    """Start this interpreter once more with ``environment`` if it has another hash seed; return why it cannot be, or ``""``.

    The recipe in the environment is what keeps that from happening twice.
    """
    wanted = environment.get("PYTHONHASHSEED", "")
    if not wanted.isdigit() or _hook.load("hashing").in_force(int(wanted)):
        return ""
    reason = _why_not()
    if not reason:
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
        except OSError as error:
            reason = f"Python could not be started again ({error.strerror})"
    return reason


def _why_not():
    if sys.flags.ignore_environment:
        return "python -E and -I read no PYTHONHASHSEED"
    try:
        if not sys.executable or not os.path.samefile("/proc/self/exe", sys.executable):
            return "Python is part of another program, which cannot be started again"
        if len(os.listdir("/proc/self/task")) > 1:
            return "Python runs in one of several threads, and cannot be started again"
        if b"\nTracerPid:\t0\n" not in _read("/proc/self/status"):
            return "a debugger holds Python, so it is not started again"
    except OSError as error:
        return f"Python could not be started again ({error.strerror})"
    return ""


def _from_file(path, *, mine=False):
    """Return the variables of a recipe in a file, which must be this user's alone to write where ``mine``."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return {}
    try:
        status = os.fstat(file)
        if mine and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return {}  # it is in a folder that everybody may write
        text = os.read(file, 1 << 16)
    finally:
        os.close(file)
    import json  # only for a process whose environment was emptied

    return _variables(json.loads(text)["words"])


def _left_by_entrypoint():
    """Return the variables of the recipe that the entrypoint left where no CLI had mounted one."""
    return _from_file(f"/tmp/.reprobox-recipe-{os.getuid()}.json", mine=True)  # noqa: S108


def _from_parents():
    """Return the variables of the recipe that a process above this one was started with."""
    pid = os.getppid()
    while pid > 0:
        try:
            blocks = _read(f"/proc/{pid}/environ").split(b"\0")
            status = _read(f"/proc/{pid}/stat")
        except OSError:
            return {}
        environment = dict(os.fsdecode(block).split("=", 1) for block in blocks if b"=" in block)
        if _hook.VARIABLE in environment:
            return _variables(_hook.words_of(environment[_hook.VARIABLE]))
        if PREFIX + "SEED" in environment:
            return {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        pid = int(status.rpartition(b")")[2].split()[1])
    return {}


def _variables(words):
    """Return a recipe's words as the variables that they come from."""
    return {PREFIX + key.upper(): str(value) for key, value in words.items() if key != "ranks" and "." not in key}


def _read(path):
    file = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(file, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def _say_later(*lines):
    """Leave ``lines`` to be said when the first process from here on imports torch."""
    os.environ.setdefault(_hook.SAY, _worded(*lines))


def _worded(*lines):
    """Return the value of ``SAY``: which process the tree begins with, and the lines."""
    return "\n".join([f"{os.getpid()}-{time.time_ns()}", *lines])
