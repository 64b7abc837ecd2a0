"""The recipe read back in this process: what is in force, as the libraries themselves say, beside what was asked for."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from reprobox.knobs import IMAGE_ENVIRONMENT, KNOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reprobox.knobs import Knob
    from reprobox.recipe import Recipe

__all__ = ["KnobReading", "hash_under_seed", "read_knobs"]

Verdict = Literal["in force", "not in force", "yours"]


@dataclass(frozen=True, kw_only=True)
class KnobReading:
    """One knob: what the recipe wants, what is in force, and whether that is as it should be.

    ``yours`` is a value of the caller's own, which wins and was announced.
    """

    name: str
    wanted: str
    found: str
    verdict: Verdict

    def to_json(self) -> dict[str, str]:
        """Return the reading as the self-test's document holds it."""
        return {"name": self.name, "wanted": self.wanted, "found": self.found, "verdict": self.verdict}


def read_knobs(
    torch: Any, recipe: Recipe, seed: int, environment: Mapping[str, str] | None = None
) -> list[KnobReading]:
    """Read back every knob that ``recipe`` sets. Call it before anything has been drawn from a global generator.

    :param seed: this process's own seed: the recipe's, moved by the rank.
    :param environment: this process's, by default.
    """
    given = os.environ if environment is None else environment
    readings = []
    for knob in KNOBS:
        wanted = knob.value(recipe)
        if wanted is None:
            continue
        if knob.acts == "process" and knob.name.endswith("seed"):
            wanted = str(seed)
        found = _READERS[knob.name](torch, given, wanted)
        readings.append(
            KnobReading(name=knob.name, wanted=wanted, found=found, verdict=_verdict(knob, wanted, found, given))
        )
    return readings


def _verdict(knob: Knob, wanted: str, found: str, environment: Mapping[str, str]) -> Verdict:
    if found == wanted:
        return "in force"
    present = environment.get(knob.name)
    own = knob.acts == "environment" and present not in (None, wanted, IMAGE_ENVIRONMENT.get(knob.name))
    return "yours" if own and found == present else "not in force"


def _variable(name: str) -> Callable[[Any, Mapping[str, str], str], str]:
    return lambda _torch, environment, _wanted: environment.get(name, "unset")


def _hash_seed(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    """Say which seed this interpreter hashes strings with, by the hash of a known one."""
    del torch
    if sys.flags.hash_randomization and not environment.get("PYTHONHASHSEED", "random").isdigit():
        return "random"
    for seed in (wanted, environment.get("PYTHONHASHSEED", "")):
        if seed.isdigit() and hash("reprobox") == hash_under_seed("reprobox", int(seed)):
            return seed
    return "another seed"


def _omp_threads(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    """Say what torch uses; where it is MKL's number, torch follows that, and what is set is what the rest uses."""
    del wanted
    given, used = environment.get("OMP_NUM_THREADS", "unset"), str(torch.get_num_threads())
    return given if used in (given, environment.get("MKL_NUM_THREADS")) else used


def _mkl_threads(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    lines = [line.partition(":") for line in torch.__config__.parallel_info().splitlines()]
    used = next((value.strip() for key, _, value in lines if key.strip() == "mkl_get_max_threads()"), None)
    given = _variable("MKL_NUM_THREADS")(torch, environment, wanted)
    # Where it is unset MKL takes OpenMP's number, which is no promise: that may be another tomorrow.
    return given if used in (None, given, environment.get("OMP_NUM_THREADS")) else used


def _cpu_capability(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    del wanted
    return str(torch.backends.cpu.get_cpu_capability()).lower() if "ATEN_CPU_CAPABILITY" in environment else "unset"


def _random(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    del torch, environment
    return wanted if random.getstate() == random.Random(int(wanted)).getstate() else "another state"


def _numpy(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    del torch, environment
    try:
        import numpy as np
    except ImportError:
        return wanted  # nothing to seed
    mine, theirs = np.random.get_state(legacy=False), np.random.RandomState(int(wanted)).get_state(legacy=False)
    same = (mine["state"]["key"] == theirs["state"]["key"]).all() and mine["state"]["pos"] == theirs["state"]["pos"]
    return wanted if same else "another state"


def _torch_seed(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    del environment
    expected = torch.Generator().manual_seed(int(wanted)).get_state()
    seeds = {torch.initial_seed()}
    if torch.cuda.device_count():
        torch.cuda.init()  # before it there are no generators
        seeds |= {generator.initial_seed() for generator in torch.cuda.default_generators}
    if seeds == {int(wanted)} and torch.equal(torch.get_rng_state(), expected):
        return wanted
    return f"{', '.join(map(str, sorted(seeds)))}, or drawn from"


def _algorithms(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    del environment, wanted
    if not torch.are_deterministic_algorithms_enabled():
        return "False"
    return "True, warn_only=True" if torch.is_deterministic_algorithms_warn_only_enabled() else "True"


def _fill(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
    """Say whether memory is filled: the flag, and, where deterministic algorithms are on, what ``empty`` gives."""
    del environment, wanted
    flagged = bool(torch.utils.deterministic.fill_uninitialized_memory)
    if flagged and torch.are_deterministic_algorithms_enabled():
        return "on" if bool(torch.empty(1000).isnan().all()) else "set, and memory is not filled"
    return "on" if flagged else "off"


def _flag(path: str) -> Callable[[Any, Mapping[str, str], str], str]:
    def read(torch: Any, environment: Mapping[str, str], wanted: str) -> str:
        del environment, wanted
        value = torch
        for name in path.split(".")[1:]:
            value = getattr(value, name)
        return str(value)

    return read


_READERS: dict[str, Callable[[Any, Mapping[str, str], str], str]] = {
    **{knob.name: _variable(knob.name) for knob in KNOBS if knob.acts == "environment"},
    "PYTHONHASHSEED": _hash_seed,
    "OMP_NUM_THREADS": _omp_threads,
    "MKL_NUM_THREADS": _mkl_threads,
    "ATEN_CPU_CAPABILITY": _cpu_capability,
    "random.seed": _random,
    "numpy.random.seed": _numpy,
    "torch.manual_seed": _torch_seed,
    "torch.backends.cudnn.deterministic": _flag("torch.backends.cudnn.deterministic"),
    "torch.backends.cudnn.benchmark": _flag("torch.backends.cudnn.benchmark"),
    "torch.use_deterministic_algorithms": _algorithms,
    "torch.utils.deterministic.fill_uninitialized_memory": _fill,
}
"""How each knob is observed. Where a library does not say what it does (cuBLAS, NCCL), its variable is what there is."""


def hash_under_seed(text: str, seed: int) -> int:
    """Return what CPython's ``hash(text)`` is under ``PYTHONHASHSEED=seed``, for an ASCII ``text``.

    SipHash (1-3 from Python 3.11, 2-4 before) over a key from a linear congruential generator: Python/bootstrap_hash.c and
    Python/pyhash.c of CPython.
    """
    key = bytearray()
    state = seed
    for _ in range(16):
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        key.append((state >> 16) & 0xFF)
    if seed == 0:
        key = bytearray(16)
    rounds = {"siphash13": (1, 3), "siphash24": (2, 4)}[sys.hash_info.algorithm]
    value = _siphash(bytes(key), text.encode("ascii"), *rounds)
    signed = value - (1 << 64) if value >> 63 else value
    return -2 if signed == -1 else signed


def _siphash(key: bytes, data: bytes, per_word: int, at_end: int) -> int:
    mask = (1 << 64) - 1
    k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x: int, by: int) -> int:
        return ((x << by) | (x >> (64 - by))) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    whole = len(data) - len(data) % 8
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, whole, 8)]
    for word in [*words, int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56]:
        v[3] ^= word
        rounds(per_word)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(at_end)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
