"""The recipe applied inside a process: generators, cuDNN, deterministic algorithms, ranks.

Loaded by the hook under a private name in the user's interpreter, so it imports nothing of the package, and none of the
libraries it seeds: each is handed in as the module that has just been imported.
"""

import os
import sys

SEED_SPACE = 2**32


def rank(environment, names):
    """Return the global rank a launcher put in ``environment`` under one of ``names`` (first match), or 0."""
    for name in names:
        value = environment.get(name, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return 0


def process_seed(recipe, environment):
    """Return the seed of this process's generators: the base seed, moved by the rank under ``rank_seeds=offset``."""
    seed = int(recipe["seed"])
    if recipe.get("rank_seeds") == "same":
        return seed
    return (seed + rank(environment, recipe.get("ranks", "").split(","))) % SEED_SPACE


def apply(name, module, recipe):
    """Apply ``recipe`` (the hook's dict of strings) to the just imported ``module`` called ``name``."""
    seed = process_seed(recipe, os.environ)
    if name == "torch":
        seed_torch(module, seed, recipe)
    else:
        module.seed(seed)


def seed_torch(torch, seed, recipe):
    """Seed the CPU generator and those of every CUDA device, then set the flags of the profile.

    ``torch.manual_seed`` reaches CUDA devices lazily, so no context is created and no memory taken for it.
    """
    torch.manual_seed(seed)
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
