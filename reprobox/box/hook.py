"""Reaches every Python process: applies the recipe right after the program imports random, numpy or torch.

Runs at the start of every interpreter, so it imports nothing that CPython has not loaded by then, and reads the recipe
from one variable of plain words that the entrypoint wrote. The work itself is in ``seeding.py``, loaded by the first
import it has something to do for.
"""

import os
import sys

VARIABLE = "_REPROBOX_RECIPE"
"""Where the entrypoint leaves the recipe for its children, as ``key=value`` words."""

TARGETS = ("random", "numpy.random", "torch")
"""The modules whose generators the recipe seeds."""

recipe = {}
"""The recipe of this process, as the entrypoint wrote it; empty where the hook has nothing to do."""


def read_recipe(environment):
    """Return the recipe in ``environment`` as a dict of strings, empty when there is none."""
    text = environment.get(VARIABLE, "")
    return dict(word.split("=", 1) for word in text.split())


def install():
    """Start watching imports, unless there is no recipe or its profile leaves the process alone."""
    recipe.update(read_recipe(os.environ))
    if recipe.get("profile", "off") == "off":
        return
    sys.meta_path.insert(0, _Finder())
    for name in TARGETS:
        # A .pth file of the user's may have imported one before site came to us.
        if name in sys.modules:
            _apply(name)


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
        _seeding().apply(name, sys.modules[name], recipe)
    except Exception as error:  # the user's program comes first: it runs on, and the gap is said
        sys.stderr.write(
            f"reprobox: {name} is not seeded in process {os.getpid()}: {type(error).__name__}: {error}\n",
        )


def _seeding():
    name = "_reprobox_seeding"
    module = sys.modules.get(name)
    if module is None:
        path = os.path.join(os.path.dirname(__file__), "seeding.py")
        module = type(sys)(name)
        module.__file__ = path
        exec(sys.modules["_frozen_importlib_external"].SourceFileLoader(name, path).get_code(name), module.__dict__)
        sys.modules[name] = module
    return module
