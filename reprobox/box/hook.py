"""Reaches every Python process: applies the recipe right after the program imports random, numpy or torch.

Runs at the start of every interpreter, so it imports nothing that CPython has not loaded by then, and reads the recipe
from one variable of plain words that the entrypoint wrote. The work itself is in the modules beside this one, loaded by
the first import they have something to do for.
"""

import os
import sys

VARIABLE = "_REPROBOX_RECIPE"
"""Where the entrypoint leaves the recipe for its children, as ``key=value`` words."""

SAY = "_REPROBOX_SAY"
"""What ``say_once`` is to say when torch is imported, where no entrypoint has said it."""

TARGETS = {
    "random": "seeding",
    "numpy.random": "seeding",
    "torch": "seeding",
    "subprocess": "children",
    "multiprocessing.context": "children",
    "multiprocessing.pool": "children",
    "multiprocessing.process": "children",
    "concurrent.futures.process": "children",
    "IPython.core.tips": "notebook",
}
"""The modules after whose import there is something to do, and which module of ours does it."""

recipe = {}
"""The recipe of this process, as the entrypoint wrote it; empty where the hook has nothing to do."""

lineage = []
"""How this process came from the first by forking: ``["f0", "f2"]`` is the third fork of the first fork."""

_forks = [0]
_said = set()


def install():
    """Start watching imports, unless there is no recipe or its profile leaves the process alone."""
    text = os.environ.get(VARIABLE)
    recipe.update(load("self_start").begin() if text is None else words_of(text))
    if SAY in os.environ:
        load("say_once").begin()
    if recipe.get("profile", "off") == "off":
        if SAY in os.environ:
            TARGETS.clear()
            TARGETS["torch"] = "say_once"
            _watch_imports()
        return
    _watch_entropy()
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    _sign_the_ledger()
    _watch_imports()


def words_of(text):
    """Return a recipe as a dict of strings, from the words of :data:`VARIABLE`."""
    return dict(word.split("=", 1) for word in text.split())


def _watch_imports():
    sys.meta_path.insert(0, _Finder())
    for name in TARGETS:
        # A .pth file of the user's may have imported one before site came to us.
        if name in sys.modules:
            _apply(name)


def load(name):
    """Return the module ``name`` beside this file, loaded once under a private name."""
    private = "_reprobox_" + name
    module = sys.modules.get(private)
    if module is None:
        path = os.path.join(os.path.dirname(__file__), name + ".py")
        module = type(sys)(private)
        module.__file__ = path
        code = sys.modules["_frozen_importlib_external"].SourceFileLoader(private, path).get_code(private)
        exec(code, module.__dict__)
        sys.modules[private] = module
    return module


def run_the_users_sitecustomize(ours):
    """Import the ``sitecustomize`` that ours, at the real path ``ours``, hides from the program."""
    path_finder = sys.modules["_frozen_importlib_external"].PathFinder
    for entry in list(sys.path):
        spec = path_finder.find_spec("sitecustomize", [entry])
        if spec is None or spec.loader is None or spec.origin is None or os.path.realpath(spec.origin) == ours:
            continue
        module = type(sys)("sitecustomize")
        module.__file__ = spec.origin
        module.__spec__ = spec
        module.__loader__ = spec.loader
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)
        return


class _Finder:
    """A meta-path finder that lets the others find a target and adds one step after its execution."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec the other finders give for a target, its loader wrapped; ``None`` for all else."""
        if name not in TARGETS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _apply_after_execution(spec)
                return spec
        return None


def _apply_after_execution(spec):
    loader = spec.loader
    original = loader.exec_module

    def exec_module(module):
        # An instance attribute shadows the class's method for this one execution and is gone afterwards.
        del loader.exec_module
        original(module)
        _apply(spec.name)

    loader.exec_module = exec_module


def _apply(name):
    try:
        load(TARGETS[name]).apply(name, sys.modules[name], recipe)
        if name == "torch" and SAY in os.environ:
            load("say_once").apply(name, sys.modules[name], recipe)
    except Exception as error:  # the user's program comes first: it runs on, and the gap is said
        report_failure(f"{name} is not {'seeded' if TARGETS[name] == 'seeding' else 'watched'}", error)


def report_failure(what, error):
    """Say on stderr, and in the receipt if that still works, that the hook failed at something."""
    sentence = f"{what} in process {os.getpid()}: {type(error).__name__}: {error}"
    if sentence in _said:
        return
    _said.add(sentence)
    try:
        sys.stderr.write(f"reprobox: {sentence}\n")
        load("receipt").note("failure", message=sentence)
    except Exception:  # noqa: S110  stderr has it, or there is nowhere left to say it
        pass


def _before_fork():
    _forks[0] += 1


def _after_fork_in_child():
    lineage.append(f"f{_forks[0] - 1}")
    _forks[0] = 0
    if "_reprobox_receipt" in sys.modules:
        load("receipt").after_fork()


def _watch_entropy():
    """Have draws from the operating system listed, whoever imports what: os is there before any import of the program's."""
    original = os.urandom
    if hasattr(original, "reprobox_original"):
        return

    def urandom(size):
        try:
            load("watch_random").note_entropy()
        except Exception as error:
            report_failure("a draw of entropy is not listed", error)
        return original(size)

    urandom.__doc__ = original.__doc__
    urandom.reprobox_original = original
    os.urandom = urandom


def _sign_the_ledger():
    """Leave this process's id in the run folder: a Python process without one was not reached."""
    folder = run_dir()
    if not folder:
        return
    try:
        ledger = os.open(os.path.join(folder, "ledger"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(ledger, f"hook {os.getpid()}\n".encode())
        os.close(ledger)
    except OSError:
        pass  # a run folder that went away takes the receipts with it; the program runs on


def run_dir():
    """Return where this process leaves what it saw, or an empty string."""
    return os.environ.get("REPROBOX_RUN_DIR") or recipe.get("run_dir", "")
