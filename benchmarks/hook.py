"""What the hook costs: CPU time of a Python process with the recipe against the same process without it.

Each program runs with the knobs of the recipe in its environment both times; only the hook (and the receipt it writes) is
there or not, so the difference is the hook's. Programs take turns within a round. The figures are user plus system CPU
time of the child and all its children, minimum over the rounds, because a minimum is what repeats on a busy machine.

    python benchmarks/hook.py --json hook.json
"""

import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import SCHEMA, parse_rounds, write_json

from reprobox.box.environment import box_environment
from reprobox.recipe import Recipe

WORKERS = 2
LOADER = f"""
import torch
from torch.utils.data import DataLoader
for _ in DataLoader(torch.zeros({WORKERS}), num_workers={{workers}}): pass
"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program to measure; ``budget`` says in words what the hook may add to it."""

    label: str
    code: str
    rounds: int
    budget: str


PROGRAMS = (
    Program(label="python -c pass", code="pass", rounds=60, budget="+2.5 ms"),
    Program(label="import random", code="import random", rounds=60, budget=""),
    Program(label="import numpy", code="import numpy.random", rounds=30, budget="+2 %"),
    Program(label="import torch", code="import torch", rounds=8, budget="+2 %"),
    Program(label="DataLoader, 0 workers", code=LOADER.format(workers=0), rounds=6, budget=""),
    Program(label=f"DataLoader, {WORKERS} workers", code=LOADER.format(workers=WORKERS), rounds=6, budget=""),
)


def cpu_seconds(code: str, environment: Mapping[str, str]) -> float:
    """CPU seconds, user and system, of one run of ``code`` and of every process it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def environments(run_dir: str) -> dict[str, dict[str, str]]:
    """The same knobs with the hook and without it."""
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    hooked, _ = box_environment({**own, "REPROBOX_RUN_DIR": run_dir}, Recipe(seed=42), {})
    plain = {name: value for name, value in hooked.items() if "REPROBOX" not in name and name != "PYTHONPATH"}
    return {"plain": plain, "hooked": hooked}


def measure(program: Program, rounds: int, both: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Time ``program`` with and without the hook, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for environment in both.values():
        cpu_seconds(program.code, environment)  # warms the file cache and writes the bytecode
    for number in range(rounds):
        for name in both if number % 2 == 0 else reversed(both):
            seconds[name].append(cpu_seconds(program.code, both[name]))
    plain, hooked = min(seconds["plain"]), min(seconds["hooked"])
    return {
        "program": program.label,
        "rounds": rounds,
        "plain_s": round(plain, 6),
        "hooked_s": round(hooked, 6),
        "added_s": round(hooked - plain, 6),
        "ratio": round(hooked / plain, 4),
        "budget": program.budget,
    }


def main() -> int:
    args = parse_rounds("Measure the CPU time that the hook adds.")
    with tempfile.TemporaryDirectory() as run_dir:
        both = environments(run_dir)
        rows = [measure(p, max(2, round(p.rounds * args.rounds / 30)), both) for p in PROGRAMS]
    none, some = (next(r for r in rows if r["program"] == f"DataLoader, {n} workers") for n in (0, WORKERS))
    per_worker = (some["added_s"] - none["added_s"]) / WORKERS
    print(f"hook: Python {platform.python_version()}, {platform.system()} {platform.machine()}, CPU time, minimum")
    print(f"{'program':<24} {'plain ms':>9} {'hooked ms':>10} {'added ms':>9} {'ratio':>7} {'budget':>8}")
    for row in rows:
        print(
            f"{row['program']:<24} {row['plain_s'] * 1e3:9.1f} {row['hooked_s'] * 1e3:10.1f}"
            f" {row['added_s'] * 1e3:9.2f} {row['ratio']:7.3f} {row['budget']:>8}",
        )
    print(f"per DataLoader worker: {per_worker * 1e3:+.2f} ms")
    if args.json is not None:
        report = {"schema": SCHEMA, "benchmark": "hook", "python": platform.python_version(), "cpus": os.cpu_count()}
        write_json(Path(args.json), {**report, "programs": rows, "per_worker_s": round(per_worker, 6)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
