"""Watches numpy: its global generator, and the generators that are made without a seed."""

import sys

_hook = sys.modules["_reprobox_hook"]
receipt = _hook.load("receipt")
seeding = _hook.load("seeding")
watch = _hook.load("watch")


def apply(module, recipe):
    """Watch numpy's global generator, and make unseeded ones (default_rng, RandomState, SeedSequence) reproducible."""
    del recipe
    watch.wrap(module, "seed", lambda original: watch.seed_wrapper("numpy", original))
    bits = sys.modules["numpy.random.bit_generator"]

    def make(original):
        def randbits(count):
            # numpy's compiled frames do not show, so the nearest frame is who asked for a generator.
            ours = watch.guarded(watch.bits_instead, count, "numpy.random")
            return original(count) if ours is None else ours

        return randbits

    _replace_randbits(bits, make)
    _watch_legacy_seeding(module)
    receipt.at_exit(lambda state: state["generators"].update(numpy=watch.digest(seeding.numpy_state(module))))


def _replace_randbits(bits, make):
    original = bits.randbits
    if not hasattr(original, "reprobox_original"):
        wrapper = make(original)
        wrapper.reprobox_original = original
        bits.randbits = wrapper


def _watch_legacy_seeding(module):
    """Take the note of an unseeded generator back for ``RandomState(5)``: it makes one, and seeds it right afterwards."""

    def make(original):
        def _legacy_seeding(self, seed):
            if seed is not None and self is not module.mtrand._rand._bit_generator:
                watch.guarded(_take_back)
            return original(self, seed)

        return _legacy_seeding

    watch.replace_method(module.MT19937, "_legacy_seeding", make)


def _take_back():
    file, line, origin = receipt.caller()
    receipt.take_back("unseeded", generator="numpy.random", file=file, line=line, origin=origin)
