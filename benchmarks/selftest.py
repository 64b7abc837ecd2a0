"""What the determinism self-test costs: cold as a ratio to `import torch`, and warm as milliseconds of a run.

The first table pairs `import torch` with the start tier of the self-test as a box would run it (the same environment, the
hook included): wall time, and CPU time of the process and of all its children. The self-test imports torch in each of its
two processes; what it takes beyond these two imports has a goal.

The second pairs `reprobox run … true` with a valid certificate, and with `--self-test always`, with the same run under
`--self-test off`, on each of `--engines`. What a pair differs by is the self-test's. The manifests are read afterwards: a
run that did not do what its label says ends the benchmark.

The commands of a round run one after the other, every other round in the opposite order; what is shown are the quartiles
over the rounds. Goals are shown and not asserted. Needs torch in this Python; exits 2 when something does not work.

    python benchmarks/selftest.py --rounds 20 --run-rounds 40 --engines local,docker --json selftest.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import in_turns, quartiles
from reporting import BenchmarkError, carry_out, console_script

import reprobox.box.selftest
from reprobox.box.environment import box_environment
from reprobox.recipe import Recipe

PROCESSES = 2
"""How many processes of the self-test import torch."""

FEW = 3
"""Runs with `--self-test always`: each takes long, and they are compared with no goal."""

GOALS = {"beyond_imports": "<= 3 times import torch", "certificate": "<= 10 ms"}
IMPORT, TEST = "import torch", "start tier"
MODES = {"off": "off", "certificate": "auto", "passed": "always"}
"""What a manifest says of the self-test, and the mode that makes it so."""


@dataclass(frozen=True, kw_only=True)
class Took:
    """What one process and its children took."""

    wall: float
    cpu: float


def took(argv: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Took:
    """Run the command and say what it took; BenchmarkError when it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise BenchmarkError(f"{argv[1]} exited {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return Took(wall=wall, cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure_cold(rounds: int) -> dict[str, Any]:
    """Pair the start tier with `import torch`."""
    launcher = Path(reprobox.box.selftest.__file__).with_name("launch.py")
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment, _ = box_environment(own, Recipe(seed=42), {})
    commands = {
        IMPORT: (sys.executable, "-c", "import torch"),
        TEST: (sys.executable, str(launcher), "--tier", "start", "--quiet"),
    }
    measured: dict[str, list[Took]] = {label: [] for label in commands}
    for argv in commands.values():
        took(argv, environment)  # warms the file cache and writes the bytecode
    for label in in_turns(list(commands), rounds):
        measured[label].append(took(commands[label], environment))
    pairs = list(zip(measured[TEST], measured[IMPORT], strict=True))
    return {
        "import_torch": {
            "wall_s": rounded(p.wall for p in measured[IMPORT]),
            "cpu_s": rounded(p.cpu for p in measured[IMPORT]),
        },
        "start_tier": {
            "wall_s": rounded(p.wall for p in measured[TEST]),
            "cpu_s": rounded(p.cpu for p in measured[TEST]),
        },
        "wall_ratio": rounded(test.wall / bare.wall for test, bare in pairs),
        "wall_beyond_imports_ratio": rounded((test.wall - PROCESSES * bare.wall) / bare.wall for test, bare in pairs),
        "cpu_ratio": rounded(test.cpu / bare.cpu for test, bare in pairs),
        "cpu_beyond_imports_ratio": rounded((test.cpu - PROCESSES * bare.cpu) / bare.cpu for test, bare in pairs),
    }


def rounded(values: Any) -> list[float]:
    """The quartiles, rounded."""
    return [round(value, 4) for value in quartiles(list(values))]


def measure_runs(engine: str, image: str | None, rounds: int, import_seconds: float) -> dict[str, Any]:
    """Pair runs with a certificate, and with the self-test carried out, with runs without any."""
    script = console_script()
    base = [*((str(script),) if script else (sys.executable, "-m", "reprobox")), "run", "--engine", engine, "--quiet"]
    base += ["--seed", "1", *(["--image", image] if image and engine != "local" else [])]
    commands = {verdict: [*base, "--self-test", mode, "--", "true"] for verdict, mode in MODES.items()}
    with tempfile.TemporaryDirectory(prefix="reprobox-selftest-") as folder:
        project = Path(folder) / "project"
        project.mkdir()
        (project / "reprobox.toml").touch()
        os.environ["XDG_CACHE_HOME"] = folder  # no certificate of ours is left, and none of before is found
        # --engine local takes the python it finds: this one, which has torch.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        took(commands["passed"], folder=project)
        measured: dict[str, list[Took]] = {verdict: [] for verdict in MODES}
        for verdict in in_turns(["off", "certificate"], rounds):
            measured[verdict].append(took(commands[verdict], folder=project))
        for _ in range(FEW):
            measured["passed"].append(took(commands["passed"], folder=project))
        check_the_verdicts(project, {"off": rounds, "certificate": rounds, "passed": FEW + 1})
    pairs = list(zip(measured["certificate"], measured["off"], strict=True))
    off = quartiles([p.wall for p in measured["off"]])[1]
    return {
        "rounds": rounds,
        "off": {"wall_s": rounded(p.wall for p in measured["off"]), "cpu_s": rounded(p.cpu for p in measured["off"])},
        "certificate": {
            "wall_s": rounded(p.wall for p in measured["certificate"]),
            "cpu_s": rounded(p.cpu for p in measured["certificate"]),
            "added_wall_s": rounded(warm.wall - bare.wall for warm, bare in pairs),
            "added_cpu_s": rounded(warm.cpu - bare.cpu for warm, bare in pairs),
        },
        "always": {
            "rounds": FEW,
            "wall_s": rounded(p.wall for p in measured["passed"]),
            "added_import_ratio": rounded((p.wall - off) / import_seconds for p in measured["passed"]),
        },
    }


def check_the_verdicts(project: Path, wanted: Mapping[str, int]) -> None:
    """BenchmarkError unless the manifests say that every run did what it was timed for."""
    manifests = (project / ".reprobox" / "runs").glob("*/manifest.json")
    found = [json.loads(path.read_text(encoding="utf-8"))["self_test"]["verdict"] for path in manifests]
    counts = {verdict: found.count(verdict) for verdict in dict.fromkeys([*wanted, *found])}
    if counts != dict(wanted):
        raise BenchmarkError(f"the runs' self-tests were {counts} and should be {dict(wanted)}")


def print_tables(report: Mapping[str, Any]) -> None:
    print(
        f"selftest: Python {report['python']}, {report['system']}, {report['cpus']} cores,"
        f" load {' '.join(f'{value:.1f}' for value in report['load'])}"
    )
    if cold := report["cold"]:
        bare, test = cold["import_torch"], cold["start_tier"]
        print(f"\nstart tier, {report['rounds']} pairs; goal beyond its two imports: {GOALS['beyond_imports']}")
        print(f"{'':<12} {IMPORT + ', s':>16} {TEST + ', s':>16}   {'ratio':<22} beyond two imports")
        for kind in ("wall", "cpu"):
            ratios = f"{spread(cold[f'{kind}_ratio']):<22} {spread(cold[f'{kind}_beyond_imports_ratio'])}"
            print(f"{kind:<12} {bare[f'{kind}_s'][1]:16.2f} {test[f'{kind}_s'][1]:16.2f}   {ratios}")
    for engine, row in report["runs"].items():
        off, warm, always = row["off"], row["certificate"], row["always"]
        print(f"\nrun of true, {engine}, {row['rounds']} pairs; goal of a certificate: {GOALS['certificate']}")
        print(f"{'':<20} {'wall, ms':>8} {'CPU, ms':>8}   added")
        print(f"{'--self-test off':<20} {off['wall_s'][1] * 1e3:8.0f} {off['cpu_s'][1] * 1e3:8.0f}")
        added = ", ".join(f"{kind} {in_ms(warm[f'added_{kind}_s'])} ms" for kind in ("wall", "cpu"))
        print(f"{'with a certificate':<20} {warm['wall_s'][1] * 1e3:8.0f} {warm['cpu_s'][1] * 1e3:8.0f}   {added}")
        added = f"wall {spread(always['added_import_ratio'])} x import torch"
        print(f"{'--self-test always':<20} {always['wall_s'][1] * 1e3:8.0f} {'':8}   {added}")


def in_ms(values: Sequence[float]) -> str:
    return spread([value * 1e3 for value in values], 1)


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the self-test costs.")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of the first table (default: %(default)s)")
    parser.add_argument("--run-rounds", type=int, default=40, help="pairs of the second (default: %(default)s)")
    parser.add_argument("--engines", default="local", help="engines for the runs, by commas (default: %(default)s)")
    parser.add_argument("--image", help="the image for an engine that has images (default: this reprobox's own)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here too")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.run_rounds < 1:
        parser.error("--rounds and --run-rounds must be at least 1")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    load = [round(value, 2) for value in os.getloadavg()]
    cold = measure_cold(args.rounds)
    import_seconds = cold["import_torch"]["wall_s"][1]
    engines = [name for name in args.engines.split(",") if name]
    runs = {name: measure_runs(name, args.image, args.run_rounds, import_seconds) for name in engines}
    return {"load": load, "rounds": args.rounds, "goals": GOALS, "cold": cold, "runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return carry_out("selftest", lambda: measure(args), print_tables, args.json)


if __name__ == "__main__":
    sys.exit(main())
