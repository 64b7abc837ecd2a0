"""Watches the standard library: its global generator, instances made without a seed, and real entropy that is drawn."""

import os
import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")
watch = _hook.load("watch")

ENTROPY_MODULES = (os.sep + "random.py", os.sep + "secrets.py", os.sep + "uuid.py")
"""Standard-library modules that hand entropy on to their caller, who is the one to name."""


def apply(module, recipe):
    """Watch Python's global generator, instances made without a seed, and entropy taken from the operating system."""
    del recipe
    watch.wrap(module, "seed", lambda original: watch.seed_wrapper("random", original))
    watch.wrap(module.Random, "seed", _instance_seed)
    _watch_entropy(module)
    receipt.at_exit(lambda state: state["generators"].update(random=watch.digest(seeding.random_state(module))))


def _instance_seed(original):
    def seed(self, a=None, version=2):
        if a is None and type(self).__name__ != "SystemRandom":
            a = watch.guarded(watch.bits_instead, 256, "random.Random", (os.sep + "random.py",))
        return original(self, a, version)

    return seed


def _watch_entropy(random):
    """List draws of real entropy through SystemRandom and secrets as well, which hold os.urandom under another name."""
    random._urandom = os.urandom


def note_entropy():
    """List a draw of real entropy by user code; it stays random."""
    file, line, origin = receipt.caller(through=ENTROPY_MODULES)
    if origin == "user":
        receipt.note("entropy", source="os.urandom", file=file, line=line)
