"""What it takes to find that nothing has changed: `reprobox build` and `reprobox run` in a project whose image is there.

Two things are timed. Whole commands, in turn: `docker image inspect` (the question to the engine), `reprobox --version`
(the start of the program) and `reprobox build`, wall time. And the decision alone, in a process of its own each round:
from reading `reprobox.lock` to knowing that the engine's image is the one it names, without and with the imports it
needs; the budget of 100 ms is for this. It exits 2 where the image is not there: `reprobox lock && reprobox build` first.

    python benchmarks/no_change.py ~/project --json no_change.json
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pairs import in_turns
from reporting import BenchmarkError, carry_out, console_script

BUDGET_MS = 100
"""For the decision alone, imports included."""

DECIDE = """
import time; begin = time.perf_counter()
from pathlib import Path
from reprobox.engines import EngineName, open_engine
from reprobox.images.lockfile import require_lock
from reprobox.runs.locked_image import LockedChoice, locked_image, locked_variant
engine = open_engine(EngineName.DOCKER)
imported = time.perf_counter()
root = Path.cwd()
lock = require_lock(root)
variant = locked_variant(lock, gpus=False, asked=False)
choice = LockedChoice(lock=lock, path=root, variant=variant, repository=None, pull="never")
locked_image(engine, choice, None)  # "never": it neither pulls nor builds, and so has nothing to say
end = time.perf_counter()
print(end - imported, end - begin)
"""


def seconds_of(argv: Sequence[str], folder: Path) -> tuple[float, str]:
    """Wall time of one run of the command in ``folder``, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    took = time.perf_counter() - start
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv[:3])} exited {done.returncode}: {done.stderr.strip()[-300:]}")
    return took, done.stdout


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Time the commands in turns, and the decision in as many processes."""
    script = str(console_script() or "reprobox")
    image = seconds_of((script, "build"), folder)[1].strip()
    commands = {
        "docker image inspect": ("docker", "image", "inspect", "--format", "{{.Id}}", image),
        "reprobox --version": (script, "--version"),
        "reprobox build": (script, "build"),
    }
    decide = (sys.executable, "-c", DECIDE)
    seconds_of(decide, folder)  # writes the bytecode
    whole: dict[str, list[float]] = {label: [] for label in commands}
    decision: list[tuple[float, float]] = []
    for label in in_turns([*commands, "decide"], rounds):
        if label == "decide":
            alone, with_imports = seconds_of(decide, folder)[1].split()
            decision.append((float(alone), float(with_imports)))
        else:
            whole[label].append(seconds_of(commands[label], folder)[0])
    base = statistics.median(whole["docker image inspect"])
    medians = {label: statistics.median(values) for label, values in whole.items()}
    return {
        "rounds": rounds,
        "image": image,
        "commands": [
            {"command": label, "median_s": round(value, 6), "ratio": round(value / base, 3)}
            for label, value in medians.items()
        ],
        "decision": {
            "median_s": round(statistics.median(alone for alone, _ in decision), 6),
            "with_imports_s": round(statistics.median(both for _, both in decision), 6),
            "budget_s": BUDGET_MS / 1e3,
        },
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the two tables."""
    print(f"no change: Python {report['python']}, {report['system']}, {report['rounds']} rounds, medians")
    for row in report["commands"]:
        print(f"{row['command']:<24} {row['median_s'] * 1e3:8.1f} ms {row['ratio']:7.2f}x")
    decision = report["decision"]
    print(f"{'the decision alone':<24} {decision['median_s'] * 1e3:8.1f} ms")
    print(f"{'... and its imports':<24} {decision['with_imports_s'] * 1e3:8.1f} ms (budget {BUDGET_MS} ms)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time how a project finds that its image is there and up to date.")
    parser.add_argument("project", type=Path, help="a folder with a reprobox.lock whose image is built")
    parser.add_argument("--rounds", type=int, default=20, help="rounds to measure (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here too")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not (args.project / "reprobox.lock").is_file():
        parser.error(f"{args.project} has no reprobox.lock; write one there: reprobox lock && reprobox build")
    return carry_out("no_change", lambda: measure(args.project, args.rounds), show, args.json)


if __name__ == "__main__":
    sys.exit(main())
