"""How long the command line takes to start: `reprobox --version` and `--help` against an interpreter that does nothing.

Prints a table of wall times (minimum and median) with their ratio to `python -c pass`, next to a budget that is shown
and not asserted, and, with `--json`, writes the same figures to a file. The commands take turns within each round, so
that a busy spell on the machine falls on all of them. The program then checks with `-X importtime` that neither command
imports torch, numpy or docker; it exits 1 when one does, and 2 when a command cannot be run.

    python benchmarks/startup.py --json startup.json
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reporting import BenchmarkError, circumstances, console_script, parse_rounds, write_json

BASELINE = "python -c pass"
HEAVY_MODULES = ("torch", "numpy", "docker")

# `import time:  <self µs> |  <cumulative µs> |  <nested module>`, as CPython prints it; the header line has no figures.
IMPORT_LINE = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(?P<module>\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command to measure; `budget` is the ratio to the baseline that it should stay under, if it has one."""

    label: str
    argv: tuple[str, ...]
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall times of one command over all rounds, in seconds."""

    minimum: float
    median: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        return cls(minimum=min(seconds), median=statistics.median(seconds))


def check(argv: Sequence[str]) -> str:
    """Run the command once and give its stderr; BenchmarkError when it cannot be started or fails."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"cannot run {' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        last_words = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise BenchmarkError(f"{' '.join(argv)} exited {done.returncode}:\n{last_words}")
    return done.stderr


def wall_time(argv: Sequence[str]) -> float:
    """Seconds from starting the command to its end, its output thrown away."""
    start = time.perf_counter()
    subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60
    )
    return time.perf_counter() - start


def measure(commands: Sequence[Command], rounds: int) -> dict[str, Timing]:
    """Time every command once a round, in turn, and every other round in the opposite order."""
    seconds: dict[str, list[float]] = {command.label: [] for command in commands}
    for number in range(rounds):
        for command in commands if number % 2 == 0 else reversed(commands):
            seconds[command.label].append(wall_time(command.argv))
    return {label: Timing.of(values) for label, values in seconds.items()}


def heavy_imports(arguments: Sequence[str]) -> list[str]:
    """Those of HEAVY_MODULES that `python -m reprobox` imports when given `arguments`."""
    stderr = check((sys.executable, "-X", "importtime", "-m", "reprobox", *arguments))
    imported = {match["module"].partition(".")[0] for match in IMPORT_LINE.finditer(stderr)}
    if "reprobox" not in imported:
        # An empty or unreadable listing would otherwise pass for a clean one.
        raise BenchmarkError("the listing of -X importtime does not name reprobox, so it proves nothing")
    return [name for name in HEAVY_MODULES if name in imported]


def results(
    commands: Sequence[Command], timings: Mapping[str, Timing], imports: Mapping[str, list[str]], rounds: int
) -> dict[str, Any]:
    baseline = timings[BASELINE]
    return {
        **circumstances("startup"),
        "rounds": rounds,
        "commands": [
            {
                "command": command.label,
                "minimum_s": round(timings[command.label].minimum, 6),
                "median_s": round(timings[command.label].median, 6),
                "minimum_ratio": round(timings[command.label].minimum / baseline.minimum, 3),
                "median_ratio": round(timings[command.label].median / baseline.median, 3),
                "budget_ratio": command.budget,
                "heavy_imports": imports.get(command.label),
            }
            for command in commands
        ],
    }


def print_table(report: Mapping[str, Any]) -> None:
    print(f"startup: Python {report['python']}, {report['system']}, {report['rounds']} rounds")
    print(f"{'command':<28} {'min ms':>8} {'median ms':>10} {'x min':>7} {'x median':>9} {'budget':>7}")
    for row in report["commands"]:
        budget = "" if row["budget_ratio"] is None else f"{row['budget_ratio']:g}x"
        print(
            f"{row['command']:<28} {row['minimum_s'] * 1e3:8.1f} {row['median_s'] * 1e3:10.1f}"
            f" {row['minimum_ratio']:7.2f} {row['median_ratio']:9.2f} {budget:>7}"
        )
    for row in report["commands"]:
        if row["heavy_imports"] is not None:
            found = ", ".join(row["heavy_imports"]) or f"none of {', '.join(HEAVY_MODULES)}"
            print(f"{row['command']} imports {found}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_rounds("Time the start of the reprobox command line.", argv)
    script = console_script()
    name, prefix = (
        ("reprobox", (str(script),)) if script else ("python -m reprobox", (sys.executable, "-m", "reprobox"))
    )
    commands = (
        Command(label=BASELINE, argv=(sys.executable, "-c", "pass")),
        Command(label=f"{name} --version", argv=(*prefix, "--version"), budget=4),
        Command(label=f"{name} --help", argv=(*prefix, "--help"), budget=8),
    )
    try:
        for command in commands:
            check(command.argv)  # also warms the file cache and writes the bytecode, before anything is timed
        timings = measure(commands, args.rounds)
        imports = {command.label: heavy_imports(command.argv[-1:]) for command in commands if command.label != BASELINE}
    except BenchmarkError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 2
    except subprocess.SubprocessError as error:
        print(f"startup: a command failed while it was being timed: {error}", file=sys.stderr)
        return 2

    report = results(commands, timings, imports, args.rounds)
    print_table(report)
    if args.json is not None:
        write_json(args.json, report)
    return 1 if any(imports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
