"""What the recipe's constant thread count costs on a machine with fewer cores, by OpenMP wait policy.

Four threads on two cores give the bits of four threads anywhere; threads that spin while they wait would take the cores
from those that work. A small transformer is trained for some steps with each setting, in turn; the figure is wall time
of the steps alone (no import), minimum over the rounds, and its ratio to one thread per core.

    python benchmarks/threads.py --json threads.json
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from reporting import SCHEMA, parse_rounds, write_json

from reprobox.recipe import DEFAULT_THREADS

PROGRAM = """
import time
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(64, 128), nn.TransformerEncoderLayer(128, 4, batch_first=True), nn.Linear(128, 64))
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(0, 64, (32, 64))

def step():
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

step()
start = time.perf_counter()
for _ in range(20):
    step()
print(time.perf_counter() - start)
"""


def seconds(settings: dict[str, str]) -> float:
    """Wall seconds of the program's steps under ``settings``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**environment, **settings}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> int:
    args = parse_rounds("Measure what four threads cost on fewer cores.")
    cores = len(os.sched_getaffinity(0))
    many = {"OMP_NUM_THREADS": str(DEFAULT_THREADS), "MKL_NUM_THREADS": str(DEFAULT_THREADS)}
    variants = {
        "one thread per core": {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)},
        f"{DEFAULT_THREADS} threads, PASSIVE (the recipe)": {**many, "OMP_WAIT_POLICY": "PASSIVE"},
        f"{DEFAULT_THREADS} threads, policy unset": many,
        f"{DEFAULT_THREADS} threads, ACTIVE": {**many, "OMP_WAIT_POLICY": "ACTIVE"},
    }
    rounds = max(3, args.rounds // 5)
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in variants if number % 2 == 0 else reversed(variants):
            measured[name].append(seconds(variants[name]))
    best = {name: min(values) for name, values in measured.items()}
    baseline = best["one thread per core"]
    print(f"threads: Python {platform.python_version()}, {platform.machine()}, {cores} cores, {rounds} rounds, minimum")
    for name, value in best.items():
        print(f"{name:<32} {value * 1e3:8.0f} ms {value / baseline:6.2f}x")
    if args.json is not None:
        rows = [{"variant": n, "seconds": round(v, 4), "ratio": round(v / baseline, 3)} for n, v in best.items()]
        write_json(Path(args.json), {"schema": SCHEMA, "benchmark": "threads", "cpus": cores, "variants": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
