"""What `gpu.py` and its processes agree on: the variants of the recipe and their environments, models, numbers."""

import os
from pathlib import Path
from typing import Any

from reprobox.box.environment import box_environment
from reprobox.recipe import Profile, Recipe

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(__file__).with_name("gpu.py")
SEED = 20200220
STEPS = 10
"""Steps before the weights are compared, and in one timing."""

REPEATS = 20
"""How often each of the negative controls is computed."""

MODELS = ("cnn", "transformer")
"""The names of what is trained; `gpu_models.py` has the rest of them, and needs torch."""

WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{f"profile {name}": {"recipe": {"profile": name}} for name in ("off", "fast", "warn", "strict")},
    "profile strict, no fill": {"recipe": {"profile": "strict", "fill": False}},
    "CUBLAS_WORKSPACE_CONFIG": {"environment": WORKSPACE},
    "CUBLASLT_WORKSPACE_SIZE": {"environment": {"CUBLASLT_WORKSPACE_SIZE": "32768"}},
    "cudnn.deterministic": {"flags": ["cudnn.deterministic"]},
    "cudnn.benchmark on": {"flags": ["cudnn.benchmark"]},
    # PyTorch refuses cuBLAS under deterministic algorithms without the workspace.
    "deterministic algorithms": {"environment": WORKSPACE, "flags": ["algorithms"], "base": "CUBLAS_WORKSPACE_CONFIG"},
    "fill": {"environment": WORKSPACE, "flags": ["algorithms", "fill"], "base": "deterministic algorithms"},
}
"""Each is compared with its `base`, the defaults where none is named. `cudnn.benchmark` is off by default and in the
recipe: its row is what a program that would turn it on gives up."""


def worker_environment(variant: str) -> dict[str, str]:
    """The environment of a process that trains under ``variant``."""
    chosen = VARIANTS[variant]
    drop = ("REPROBOX", "OMP_", "MKL_", "CUBLAS", "PYTHONPATH")
    own = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    own |= chosen.get("environment", {})
    if "recipe" in chosen:
        words = dict(chosen["recipe"])
        recipe = Recipe(seed=SEED, profile=Profile(words.pop("profile")), **words)
        own, _ = box_environment(own, recipe, {})
    own["PYTHONPATH"] = os.pathsep.join([*filter(None, [own.get("PYTHONPATH")]), str(ROOT)])
    return own
