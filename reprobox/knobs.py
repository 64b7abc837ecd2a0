"""The knobs: everything that follows from a recipe, each with its values, the reason, and where the fact is from.

:data:`KNOBS` is the table; :func:`environment_of` is what of it is set before a process starts.

This module runs on the host and in the box: standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from reprobox.recipe import Profile, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["IMAGE_ENVIRONMENT", "KNOBS", "Knob", "environment_of"]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One thing the recipe fixes.

    ``values`` gives the value per profile as a template over the recipe's fields (``{seed}``, ``{rank_seed}``,
    ``{threads}``, ``{fill}``); ``None`` leaves the knob alone. ``acts`` says where: in the environment before the process
    starts, or in the process right after the module is imported. ``needs`` names a recipe switch that must be on.
    ``allowed`` is the pattern a caller's own value must match under *strict* (``None``: any), ``allowed_text`` the same
    in words. ``source`` is where the fact was read or measured.
    """

    name: str
    acts: Literal["environment", "process"]
    values: Mapping[Profile, str | None]
    why: str
    source: str
    needs: Literal["portable"] | None = None
    allowed: str | None = None
    allowed_text: str = ""

    def value(self, recipe: Recipe) -> str | None:
        """Return the value under ``recipe`` (rank 0), or ``None`` where the recipe leaves the knob alone."""
        if self.needs is not None and not getattr(recipe, self.needs):
            return None
        template = self.values[recipe.profile]
        if template is None:
            return None
        return template.format(
            seed=recipe.seed,
            rank_seed=recipe.seed,
            threads=recipe.threads,
            fill="on" if recipe.fill else "off",
        )

    def breaks_determinism(self, value: str) -> bool:
        """Say whether a caller's own ``value`` would undo what the knob is for."""
        return self.allowed is not None and re.fullmatch(self.allowed, value) is None


def _values(strict: str | None, warn: str | None, fast: str | None) -> Mapping[Profile, str | None]:
    return MappingProxyType(
        {Profile.STRICT: strict, Profile.WARN: warn, Profile.FAST: fast, Profile.OFF: None},
    )


def _seeded(value: str) -> Mapping[Profile, str | None]:
    """Every profile but *off*."""
    return _values(value, value, value)


def _deterministic(value: str) -> Mapping[Profile, str | None]:
    """The profiles that constrain algorithms."""
    return _values(value, value, None)


_NOTES = "https://docs.pytorch.org/docs/stable/notes/randomness.html"
_NUMERICS = "https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html"
_ENGINE_FLAGS = "https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html"

KNOBS: tuple[Knob, ...] = (
    Knob(
        name="PYTHONHASHSEED",
        acts="environment",
        values=_seeded("{seed}"),
        why="the order of sets of strings follows str.__hash__, which CPython salts at every start; the same on every rank",
        source="https://docs.python.org/3/using/cmdline.html#envvar-PYTHONHASHSEED",
        allowed=r"[0-9]{1,10}",
        allowed_text="a number from 0 to 4294967295",
    ),
    Knob(
        name="CUBLAS_WORKSPACE_CONFIG",
        acts="environment",
        values=_deterministic(":4096:8"),
        why="cuBLAS picks split-K algorithms by the workspace it finds; fixed buffers per stream fix the choice",
        source="https://docs.nvidia.com/cuda/cublas/#results-reproducibility",
        allowed=r":4096:8|:16:8",
        allowed_text=":4096:8 or :16:8",
    ),
    Knob(
        name="CUBLASLT_WORKSPACE_SIZE",
        acts="environment",
        values=_deterministic("32768"),
        why="cuBLASLt's heuristic ranks algorithms by workspace; 32768 KiB is what :4096:8 gives cuBLAS",
        source="https://docs.pytorch.org/docs/stable/notes/cuda.html#cublas-workspaces",
        allowed=r"[0-9]+",
        allowed_text="a number of KiB",
    ),
    Knob(
        name="NCCL_ALGO",
        acts="environment",
        values=_deterministic("Ring"),
        why="NCCL's tuner may sum in another order from one start to the next; a ring has one order",
        source="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-algo; Megatron-LM",
        allowed=r"(?i:ring|tree|\^nvls)",
        allowed_text="Ring, Tree or ^NVLS",
    ),
    Knob(
        name="NCCL_NVLS_ENABLE",
        acts="environment",
        values=_deterministic("0"),
        why="in-switch reduction adds in the order packets arrive",
        source="https://github.com/pytorch/pytorch/pull/156381",
        allowed="0",
        allowed_text="0",
    ),
    Knob(
        name="NVTE_ALLOW_NONDETERMINISTIC_ALGO",
        acts="environment",
        values=_deterministic("0"),
        why="Transformer Engine's attention backward accumulates with atomics unless told not to",
        source="https://docs.nvidia.com/deeplearning/transformer-engine/user-guide/envvars.html",
        allowed="0",
        allowed_text="0",
    ),
    Knob(
        name="FLASH_ATTENTION_DETERMINISTIC",
        acts="environment",
        values=_deterministic("1"),
        why="FlashAttention's backward accumulates dQ with atomics unless told not to; transformers reads this variable",
        source="https://github.com/huggingface/transformers (enable_full_determinism)",
        allowed="1",
        allowed_text="1",
    ),
    Knob(
        name="TORCHINDUCTOR_DETERMINISTIC",
        acts="environment",
        values=_deterministic("1"),
        why="Inductor's autotuner times kernels and may choose another next time",
        source="https://github.com/pytorch/pytorch/pull/165950",
        allowed="1",
        allowed_text="1",
    ),
    Knob(
        name="OMP_NUM_THREADS",
        acts="environment",
        values=_seeded("{threads}"),
        why="CPU kernels split sums by thread; torchrun would set 1, and python the number of cores",
        source="measured: 20 steps of a CNN and a transformer differ between 1 and 2 threads",
        allowed=r"[1-9][0-9]*",
        allowed_text="a number of threads",
    ),
    Knob(
        name="MKL_NUM_THREADS",
        acts="environment",
        values=_seeded("{threads}"),
        why="MKL splits a matrix product by thread",
        source=_NUMERICS,
        allowed=r"[1-9][0-9]*",
        allowed_text="a number of threads",
    ),
    Knob(
        name="OPENBLAS_NUM_THREADS",
        acts="environment",
        values=_seeded("{threads}"),
        why="numpy's OpenBLAS splits a matrix product by thread",
        source="https://github.com/OpenMathLib/OpenBLAS#setting-the-number-of-threads-using-environment-variables",
        allowed=r"[1-9][0-9]*",
        allowed_text="a number of threads",
    ),
    Knob(
        name="OMP_DYNAMIC",
        acts="environment",
        values=_seeded("FALSE"),
        why="the OpenMP runtime may lower the thread count under load, and with it change the order of sums",
        source="https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fDYNAMIC.html",
        allowed=r"(?i:false)",
        allowed_text="FALSE",
    ),
    Knob(
        name="MKL_DYNAMIC",
        acts="environment",
        values=_seeded("FALSE"),
        why="MKL may lower the thread count by problem size and load",
        source="https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/2025-0/mkl-dynamic.html",
        allowed=r"(?i:false)",
        allowed_text="FALSE",
    ),
    Knob(
        name="OMP_WAIT_POLICY",
        acts="environment",
        values=_seeded("PASSIVE"),
        why="with more threads than cores, spinning threads starve the working ones; changes speed, never bits",
        source="https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fWAIT_005fPOLICY.html",
    ),
    Knob(
        name="ATEN_CPU_CAPABILITY",
        acts="environment",
        values=_seeded("avx2"),
        needs="portable",
        why="ATen picks kernels by the CPU's vector width, and sums in another order for each",
        source="measured: changes all four models tried",
    ),
    Knob(
        name="MKL_CBWR",
        acts="environment",
        values=_seeded("AVX2,STRICT"),
        needs="portable",
        why="MKL's conditional numerical reproducibility; without STRICT it adds a dependence on threads",
        source="https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/2025-0/obtaining-numerically-reproducible-results.html",
    ),
    Knob(
        name="ONEDNN_MAX_CPU_ISA",
        acts="environment",
        values=_seeded("AVX2"),
        needs="portable",
        why="oneDNN generates its kernels for the widest vectors it finds",
        source="https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html",
    ),
    Knob(
        name="random.seed",
        acts="process",
        values=_seeded("{rank_seed}"),
        why="Python's global generator starts from the operating system's entropy",
        source="https://docs.python.org/3/library/random.html#random.seed",
    ),
    Knob(
        name="numpy.random.seed",
        acts="process",
        values=_seeded("{rank_seed}"),
        why="numpy's global generator starts from the operating system's entropy",
        source="https://numpy.org/doc/stable/reference/random/generated/numpy.random.seed.html",
    ),
    Knob(
        name="torch.manual_seed",
        acts="process",
        values=_seeded("{rank_seed}"),
        why="the CPU generator and the generator of every CUDA device",
        source=_NOTES,
    ),
    Knob(
        name="torch.backends.cudnn.deterministic",
        acts="process",
        values=_deterministic("True"),
        why="cuDNN has faster algorithms that accumulate with atomics",
        source=_NOTES,
    ),
    Knob(
        name="torch.backends.cudnn.benchmark",
        acts="process",
        values=_deterministic("False"),
        why="cuDNN's autotuner times algorithms and may choose another next time",
        source=_NOTES,
    ),
    Knob(
        name="torch.use_deterministic_algorithms",
        acts="process",
        values=_values("True", "True, warn_only=True", None),
        why="ops take their deterministic implementation; one without raises (strict) or warns (warn)",
        source=_ENGINE_FLAGS,
    ),
    Knob(
        name="torch.utils.deterministic.fill_uninitialized_memory",
        acts="process",
        values=_deterministic("{fill}"),
        why="torch.empty and resize_ show what the memory held before; the price is a pass over each new tensor",
        source="https://docs.pytorch.org/docs/stable/deterministic.html",
    ),
)
"""The knob table: every value the recipe fixes, where it acts, why, and where the fact is from."""


def environment_of(recipe: Recipe) -> dict[str, str]:
    """Return the environment knobs that ``recipe`` sets, ready for ``execve``."""
    return {k.name: v for k in KNOBS if k.acts == "environment" and (v := k.value(recipe)) is not None}


IMAGE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(environment_of(Recipe(seed=0)))
"""The environment knobs baked into the image, so that even ``docker exec`` finds them; the entrypoint knows them by value."""
