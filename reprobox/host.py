"""This machine and its users: what a run's record holds of them."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["host_facts", "user_name"]


@lru_cache
def user_name(uid: int) -> str:
    """Return the login name of a user, or its number where it has none here."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def host_facts() -> dict[str, Any]:
    """Return what of this machine a run's bits can depend on: kernel, CPU model, microcode, vector units, cores."""
    cpu = _cpu()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    vectors = (
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "avx512f",
        "avx512_bf16",
        "avx512_vnni",
        "amx_bf16",
        "asimd",
        "sve",
        "bf16",
    )
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu.get("model name"),
        "microcode": cpu.get("microcode"),
        "isa": [name for name in vectors if name in flags],
        "cores": os.cpu_count(),
    }


def _cpu() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
