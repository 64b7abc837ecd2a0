"""What only a GPU can show, on a machine with PyTorch and no container engine; one JSON document holds all of it.

Three parts:

- `selftest`: the full self-test under strict, warn and fast. By the command line (`reprobox selftest --engine local`) where
  its libraries are installed; else the self-test's own program under the box's entrypoint, which takes torch alone.
- `controls`: operations that add with atomics, repeated with deterministic algorithms off, which must give several
  results, and with them on, which must give one, or refuse. A self-test on a machine where the first half gives one result
  everywhere proves little.
- `tax`: a training step of a CNN (float32) and of a transformer (autocast to bfloat16) under each profile and with each
  knob of the recipe alone, as a ratio to the same step as PyTorch does it by default. Two processes, one of each, take
  turns, every other pair in the opposite order; CUDA events time ten steps; the quartiles over the pairs are shown. The
  weights after the first ten steps are compared between starts.

`--cpu` makes everything small and runs on the CPU, to see that the program works. The JSON is written anew after each part.

    sh benchmarks/gpu.sh gpu.json
    sh benchmarks/gpu.sh dry.json --cpu

Python 3.10 syntax, the standard library and torch.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_selftests import run_selftests
from gpu_tax import measure_tax
from gpu_variants import MODELS, REPEATS, VARIANTS, worker_environment
from reporting import SCHEMA, write_json

PARTS = ("selftest", "controls", "tax")


def describe() -> dict[str, Any]:
    """The devices and libraries, as PyTorch names them."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "devices": [
            {
                "name": gpu.name,
                "compute_capability": f"{gpu.major}.{gpu.minor}",
                "multiprocessors": gpu.multi_processor_count,
                "memory_mib": gpu.total_memory >> 20,
            }
            for gpu in gpus
        ],
    }


def in_a_child(what: str, cpu: bool) -> Any:
    """The answer of one of this program's parts in a process of its own."""
    argv = [sys.executable, __file__, "--only", what, *(["--cpu"] if cpu else [])]
    done = subprocess.run(argv, env=worker_environment("defaults"), capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["silent"]
        raise RuntimeError(f"{what} ended with exit code {done.returncode}: {said[-1]}")
    return json.loads(done.stdout)


def driver() -> "str | None":
    """The version of NVIDIA's driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def print_tables(report: dict[str, Any]) -> None:
    names = ", ".join(d["name"] for d in report["torch"]["devices"]) or "no GPU"
    facts = report["torch"]
    print(
        f"gpu: {names}, driver {report['driver']}, torch {facts['torch']}, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}"
        f"{'; a dry run on the CPU: the figures mean nothing' if report['cpu'] else ''}"
    )
    for profile, row in report.get("selftest", {}).items():
        found = row["error"] or ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items())
        print(f"selftest {profile:<8} exit {row['exit_code']}, {row['seconds']} s, by the {row['by']}: {found}")
    if "controls" in report:
        print(f"\n{'operation, results in ' + str(REPEATS):<34} {'deterministic off':>18} {'on':>12}")
        for name, modes in report["controls"].items():
            shown = {mode: str(row.get("results", "refused")) for mode, row in modes.items()}
            print(f"{name:<34} {shown['off']:>18} {shown['on']:>12}")
    if "tax" in report:
        print(f"\n{'step time, ratio (quartiles)':<34} {'cnn':>22} {'transformer':>22}   to")
        for variant, row in report["tax"]["pairs"].items():
            shown = [ratio_text(row[model]) for model in MODELS]
            print(f"{variant:<34} {shown[0]:>22} {shown[1]:>22}   {row['base']}")
        print(f"\n{'weights after ten steps':<34} {'cnn':>22} {'transformer':>22}")
        found = report["tax"]["weights_after_ten_steps"]
        for name in dict.fromkeys(name for names in found.values() for name in names):
            cells = [found[model].get(name) for model in MODELS]
            texts = [f"{c['results']} in {c['starts']} starts" if c else "-" for c in cells]
            print(f"{name:<34} {texts[0]:>22} {texts[1]:>22}")


def ratio_text(row: dict[str, Any]) -> str:
    if "error" in row:
        return "error"
    low, middle, high = row["ratio"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what only a GPU can show.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")
    parser.add_argument("--cpu", action="store_true", help="a dry run: small, and on the CPU")
    parser.add_argument("--rounds", type=int, help="pairs of a timing (default: 10, with --cpu 2)")
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas (default: %(default)s)")
    parser.add_argument("--only", choices=("describe", "controls"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not (args.only or args.worker) and args.json is None:
        parser.error("--json PATH says where the results go")
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts does not know {', '.join(sorted(unknown))}")
    return args


def main() -> int:
    args = parse_args()
    if args.worker:
        from gpu_training import train

        train(args.worker, args.cpu)
        return 0
    if args.only == "describe":
        print(json.dumps(describe()))
        return 0
    if args.only == "controls":
        from gpu_controls import controls

        print(json.dumps(controls(args.cpu)))
        return 0
    rounds = args.rounds or (2 if args.cpu else 10)
    try:
        facts = in_a_child("describe", args.cpu)
    except RuntimeError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    if not facts["devices"] and not args.cpu:
        print("gpu: PyTorch sees no GPU here; --cpu makes a dry run without one", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": "gpu",
        "cpu": args.cpu,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "driver": driver(),
        "torch": facts,
        "rounds": rounds,
    }
    makers = {
        "selftest": lambda: run_selftests(args.cpu),
        "controls": lambda: in_a_child("controls", args.cpu),
        "tax": lambda: measure_tax(rounds, args.cpu),
    }
    status = 0
    for part in PARTS:
        if part not in args.parts.split(","):
            continue
        try:
            report[part] = makers[part]()
        except (RuntimeError, OSError, ValueError) as error:
            print(f"gpu: {part}: {error}", file=sys.stderr)
            report.setdefault("errors", {})[part] = str(error)
            status = 1
        write_json(args.json, report)
    print_tables(report)
    return status


if __name__ == "__main__":
    sys.exit(main())
