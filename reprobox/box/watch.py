"""What the program does to the recipe: reseeds, flags turned back, unseeded generators, and entropy drawn on purpose.

Each function of a library that can undo the recipe is wrapped right after the import: ``watch_random``, ``watch_numpy``
and ``watch_torch`` (with ``watch_flags`` and ``watch_distributed``) know which, and this module has what they share. A
wrapper notes who called it and does what the library would; it changes the outcome in two cases only: a generator that
would have started from the operating system's entropy starts from a stream of the recipe's, and under ``force_seed`` a
seed is folded into the recipe's. Where our half of a wrapper fails, the library's half is done all the same.
"""

import os
import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")

TORCH = f"-packages{os.sep}torch{os.sep}"
INTERNAL = (TORCH, f"-packages{os.sep}numpy{os.sep}")

_streams = [0]


def wrap(owner, name, make):
    """Replace ``owner.name`` by what ``make(original)`` returns, dressed as the original; once."""
    original = getattr(owner, name, None)
    if original is None or hasattr(original, "reprobox_original"):
        return
    wrapper = make(original)
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        value = getattr(original, attribute, None)
        if value is not None:
            setattr(wrapper, attribute, value)
    wrapper.reprobox_original = original
    setattr(owner, name, wrapper)


def replace_method(kind, name, make):
    """Replace a method of a compiled class by what ``make(original)`` returns; once.

    Such a class takes no attributes, so its own dictionary is written; CPython keeps a method cache that must be told.
    """
    import ctypes
    import gc

    (names,) = (d for d in gc.get_referents(kind.__dict__) if isinstance(d, dict) and name in d)
    original = names[name]
    if hasattr(original, "reprobox_original"):
        return
    names[name] = make(original)
    names[name].reprobox_original = original
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def guarded(ours, *arguments):
    """Return what ``ours`` returns; where it fails, say so and return ``None``: the user's program comes first."""
    try:
        return ours(*arguments)
    except Exception as error:
        _hook.report_failure(f"{ours.__name__.strip('_')} failed", error)
        return None


def fresh_bits(count, what):
    """Return the next ``count`` bits of the recipe's stream for generators that the program left unseeded."""
    _streams[0] += 1
    return seeding.derive_bits(count, seeding.process_seed(_hook.recipe, _hook.lineage), what, _streams[0])


def note_unseeded(what, file, line, origin="user"):
    """Record a generator made or reset without a seed."""
    receipt.note("unseeded", generator=what, file=file, line=line, origin=origin)


def seed_wrapper(generator, original):
    """Return a wrapper of a global ``seed(value)`` function: reports it, and folds or supplies the value."""

    def seed(*arguments, **options):
        value = arguments[0] if arguments else next(iter(options.values()), None)
        ours = guarded(_seed_instead, generator, value)
        return original(*arguments, **options) if ours is None else original(ours)

    return seed


def _seed_instead(generator, value):
    """Report that ``generator`` is seeded with ``value``; return the seed that takes its place, or ``None``."""
    file, line, origin = receipt.caller()
    if origin == "stdlib" or _is_internal(file):
        return None
    seeding.users_own.add(generator)
    if value is None:
        note_unseeded(f"{generator} (reset without a seed)", file, line, origin)
        return fresh_bits(32, generator)
    if _hook.recipe.get("force_seed") == "on":
        folded = seeding.derive(seeding.process_seed(_hook.recipe, _hook.lineage), "fold", repr(value))
        receipt.note("reseed", generator=generator, value=repr(value), folded=folded, file=file, line=line)
        return folded
    receipt.note("reseed", generator=generator, value=repr(value), file=file, line=line)
    return None


def bits_instead(count, what, through=()):
    """Return ``count`` bits of the recipe's for an unseeded generator, or ``None`` where real entropy is meant.

    The standard library keeps it (tempfile: two ranks must not agree on a temporary name), and so do torch and numpy.
    """
    file, line, origin = receipt.caller(through=through)
    if origin == "stdlib" or _is_internal(file):
        return None
    note_unseeded(what, file, line, origin)
    return fresh_bits(count, what)


def _is_internal(file):
    """Say whether ``file`` belongs to the libraries themselves (DataLoader's workers seed through all three)."""
    return any(part in file for part in INTERNAL)


def digest(data):
    """Return the SHA-256 of ``data`` in hex."""
    return seeding.sha256(data).hexdigest()
