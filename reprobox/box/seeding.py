"""The recipe applied inside a process: generators, cuDNN, deterministic algorithms, ranks, forks.

Loaded by the hook under a private name in the user's interpreter, so it imports nothing of the package, and none of the
libraries it seeds: each is handed in as the module that has just been imported.
"""

import os
import sys

# The compiled module alone: hashlib loads OpenSSL, which a bare `import random` should not pay for.
try:
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

SEED_SPACE = 2**32

originals = {}
"""The seed functions as the libraries made them, by generator: ``random``, ``numpy``, ``torch``."""

users_own = set()
"""The generators that the program has seeded itself: they are the program's from then on."""

_rank_of_group = []
_at_fork = {}


def rank(environment, names):
    """Return the global rank a launcher put in ``environment`` under one of ``names`` (first match), or ``None``."""
    for name in names:
        value = environment.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None


def process_rank(recipe):
    """Return this process's global rank: its launcher's, else its process group's, else ``None``."""
    known = rank(os.environ, recipe.get("ranks", "").split(","))
    if known is None and _rank_of_group:
        return _rank_of_group[0]
    return known


def process_seed(recipe, lineage=()):
    """Return the seed of this process's generators.

    The base seed, moved by the rank under ``rank_seeds=offset``; in a forked child a seed of its own that follows from
    that and from which fork it was.
    """
    seed = int(recipe["seed"])
    if recipe.get("rank_seeds") != "same":
        seed = (seed + (process_rank(recipe) or 0)) % SEED_SPACE
    return derive(seed, *lineage) if lineage else seed


def derive(seed, *parts):
    """Return a 32-bit seed that follows from ``seed`` and ``parts`` and looks unrelated to every other."""
    return derive_bits(32, seed, *parts)


def derive_bits(count, seed, *parts):
    """Return ``count`` bits as an int, SHA-256 in counter mode over ``seed`` and ``parts``."""
    name = "/".join(map(str, ("reprobox", seed, *parts)))
    blocks = (sha256(f"{name}/{i}".encode()).digest() for i in range(-(-count // 256)))
    return int.from_bytes(b"".join(blocks), "big") >> (-count % 256)


def apply(name, module, recipe):
    """Apply ``recipe`` (the hook's dict of strings) to the just imported ``module`` called ``name``."""
    hook = sys.modules.get("_reprobox_hook")
    seed = process_seed(recipe, hook.lineage if hook else ())
    generator = name.partition(".")[0]
    reseed = _reseeder(generator, module)
    originals[generator] = reseed
    reseed(seed)
    if hook is None:
        return
    receipt = hook.load("receipt")
    watch = hook.load("watch")
    if generator == "torch":
        set_flags(module, recipe)
    receipt.seeded(generator, seed, process_rank(recipe))
    hook.load("watch_" + generator).apply(module, recipe)
    if generator not in _at_fork:
        # Registered after the library's own: CPython's random takes new entropy in every forked child.
        _at_fork[generator] = None
        digest = _STATES[generator]
        os.register_at_fork(
            before=lambda: watch.guarded(_remember, generator, digest, module),
            after_in_child=lambda: watch.guarded(_separate, generator, reseed, hook.lineage),
        )


def _reseeder(generator, module):
    seed = module.manual_seed if generator == "torch" else module.seed
    return getattr(seed, "reprobox_original", seed)


def random_state(module):
    """Return Python's global generator's state as bytes."""
    return repr(module.getstate()).encode()


def numpy_state(module):
    """Return numpy's global generator's state as bytes."""
    return repr(module.get_state(legacy=False)).encode() + module.get_state()[1].tobytes()


def torch_state(torch):
    """Return the CPU generator's state as bytes, without the padding of its C struct, which holds whatever was there.

    The layout (at::CPUGeneratorImplState, 5056 bytes): seed, left, seeded, next, 624 words; then cached normal samples,
    of which only the flags that say whether they count are taken.
    """
    state = torch.get_rng_state().numpy().tobytes()
    return state if len(state) != 5056 else state[:5016] + state[5040:5044] + state[5052:5053]


_STATES = {"random": random_state, "numpy": numpy_state, "torch": torch_state}
"""The state of each generator: a child's stream follows from its parent's."""


def _remember(generator, digest, module):
    _at_fork[generator] = digest(module)


def _separate(generator, reseed, lineage):
    """Give a forked child a stream of its own, the same in every run: from its parent's state and its place in line."""
    value = derive(0, generator, sha256(_at_fork[generator]).hexdigest(), *lineage)
    if generator == "torch":
        # Not through torch.manual_seed: a forked child must not touch its parent's CUDA context.
        sys.modules["torch"].default_generator.manual_seed(value)
    else:
        reseed(value)
    hook = sys.modules["_reprobox_hook"]
    hook.load("receipt").seeded(generator, value, process_rank(hook.recipe))


def reseed_all(recipe):
    """Seed again every generator that is imported already and that the program has not seeded itself."""
    hook = sys.modules["_reprobox_hook"]
    seed = process_seed(recipe, hook.lineage)
    for generator, reseed in originals.items():
        if generator not in users_own:
            reseed(seed)
            hook.load("receipt").seeded(generator, seed, process_rank(recipe))


def learn_rank(number, recipe):
    """Move the generators to a rank that the process learns only from its process group."""
    if process_rank(recipe) is not None:
        return
    _rank_of_group.append(number)
    sys.modules["_reprobox_hook"].lineage.clear()  # the rank says better than the process's place in line whose it is
    reseed_all(recipe)


def set_flags(torch, recipe):
    """Set the flags of the profile. ``fast`` constrains no algorithm."""
    profile = recipe["profile"]
    if profile == "fast":
        return
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    set_deterministic_algorithms(torch, warn_only=profile == "warn")
    set_fill(torch, recipe.get("fill", "on") == "on")


def set_deterministic_algorithms(torch, *, warn_only):
    """Enforce deterministic algorithms, at no cost where PyTorch allows it.

    The public call imports Inductor's configuration, 823 modules and about two seconds, to set a flag that
    TORCHINDUCTOR_DETERMINISTIC=1 sets as well when Inductor is really used (measured with torch 2.13). Where that
    variable is not in force, or the private setter has gone, the public call does both.
    """
    setter = getattr(torch._C, "_set_deterministic_algorithms", None)
    inductor_follows = (
        os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == "1" and "torch._inductor.config" not in sys.modules
    )
    if setter is None or not inductor_follows:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
    else:
        setter(True, warn_only=warn_only)


def set_fill(torch, fill):
    """Choose whether deterministic mode fills uninitialised memory."""
    setter = getattr(torch._C, "_set_deterministic_fill_uninitialized_memory", None)
    if setter is None:
        torch.utils.deterministic.fill_uninitialized_memory = fill
    else:
        setter(fill)
