"""What `reprobox run` costs over `docker run`: the time from start to exit, and how fast a long output passes through.

The first table pairs `reprobox run --engine docker --seed 1 --network none -- true` with `docker run --rm --init` of the
same image: `true` alone, no entrypoint, and the flags read from a real box with `docker inspect` (user, capabilities,
security options, read-only root, tmpfs, mounts, /dev/shm, limit of processes, network), so that they follow reprobox. The
second sends `--mib` MiB of text lines through each into a pipe that is counted: megabytes a second, the CPU time of the
command line, and its peak of memory after an eighth of the stream and at its end. docker appears twice there: with its
default log, which grows without limit, and with one capped at 20 MB.

The two of a pair run one after the other, every other pair in the opposite order, and what is shown of a ratio are the
quartiles over the pairs. Goals are shown and not asserted. Needs a Docker Engine on this machine, the docker command
line, and the image (`reprobox build`); exits 2 when something does not work.

    python benchmarks/run_overhead.py --rounds 30 --mib 1024 --json run_overhead.json
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import in_turns, quartiles, ratios
from reporting import BenchmarkError, carry_out, console_script

MIB = 2**20
READ_AT_ONCE = MIB
CAPPED_LOG = ("--log-driver", "json-file", "--log-opt", "max-size=20m")
LINE = "epoch 12 step 003400 loss 0.4831927 accuracy 0.8312500 lr 2.500e-04 grad_norm 1.2043 samples/s 1834.2"
GOALS = {"run": "ratio <= 1.25", "stream": "ratio >= 2", "memory": "the same peak after an eighth and at the end"}
# ru_maxrss would not do: what this process had before exec counts there too.
PEAK = "VmHWM:"


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One stream that went through: how long it took, and what the command line needed for it."""

    seconds: float
    cpu_seconds: float
    early_peak_kib: int
    peak_kib: int


@dataclass(frozen=True, kw_only=True)
class Box:
    """The image of a box, and the flags that make `docker run` give its container the same."""

    image: str
    flags: tuple[str, ...]


def ask(argv: Sequence[str]) -> str:
    """The stdout of a command that must succeed."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"cannot run {' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(argv)} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def container_flags(inspected: Mapping[str, Any], run_folder: str, stand_in: str) -> Iterator[str]:
    """The flags that make `docker run` give its container what the inspected one has."""
    host = inspected["HostConfig"]
    yield from ("--user", inspected["Config"]["User"], "--network", host["NetworkMode"])
    yield from ("--shm-size", str(host["ShmSize"]))
    if host["PidsLimit"]:
        yield from ("--pids-limit", str(host["PidsLimit"]))
    for capability in host["CapDrop"] or ():
        yield from ("--cap-drop", capability)
    for option in host["SecurityOpt"] or ():
        yield from ("--security-opt", option)
    if host["ReadonlyRootfs"]:
        yield "--read-only"
    for path, options in (host["Tmpfs"] or {}).items():
        yield from ("--tmpfs", f"{path}:{options}")
    for mount in inspected["Mounts"]:
        source = mount["Name"] if mount["Type"] == "volume" else mount["Source"].replace(run_folder, stand_in, 1)
        words = [f"type={mount['Type']}", f"source={source}", f"target={mount['Destination']}"]
        yield from ("--mount", ",".join([*words, *([] if mount["RW"] else ["readonly"])]))


def look_at_a_box(reprobox: Sequence[str], project: Path, stand_in: Path) -> Box:
    """Start a box, read what the engine made of it, and end it."""
    name = f"reprobox-overhead-{os.getpid()}"
    with tempfile.TemporaryFile() as errors:
        probe = subprocess.Popen(
            [*reprobox, "--name", name, "--", "sleep", "60"],
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            (run_folder,) = wait_for_the_command(probe, project)
            inspected = json.loads(ask(["docker", "inspect", name]))[0]
            shutil.copytree(run_folder, stand_in)
        except BenchmarkError:
            errors.seek(0)
            print(errors.read().decode(errors="replace"), file=sys.stderr, end="")
            raise
        finally:
            if probe.poll() is None:
                probe.send_signal(signal.SIGTERM)
            probe.wait(timeout=60)
    return Box(image=inspected["Image"], flags=tuple(container_flags(inspected, str(run_folder), str(stand_in))))


def wait_for_the_command(probe: "subprocess.Popen[bytes]", project: Path) -> list[Path]:
    """The run's folder, as soon as its box has handed over to the command."""
    for _ in range(600):
        folders = [stage.parents[2] for stage in (project / ".reprobox" / "runs").glob("*/box/out/stage")]
        if folders:
            return folders
        if probe.poll() is not None:
            break
        time.sleep(0.05)
    raise BenchmarkError("reprobox did not start a box")


def wall_time(argv: Sequence[str], project: Path) -> float:
    """Seconds from starting the command to its end; BenchmarkError when it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        done = subprocess.run(
            argv, cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, timeout=120
        )
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()
            raise BenchmarkError(f"{argv[0]} exited {done.returncode} while it was being timed: {words}")
    return seconds


def peak_kib(pid: int) -> int:
    """The peak of resident memory of a running process; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(PEAK):
                return int(line.split()[1])
    return 0


def pass_through(argv: Sequence[str], project: Path, size: int) -> Passed:
    """Run the command with its stdout in a pipe, count what comes, and say what it took."""
    buffer = bytearray(READ_AT_ONCE)
    count = look_again = peak = early = 0
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        command = subprocess.Popen(
            argv, cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        assert command.stdout is not None
        try:
            while got := os.readv(command.stdout.fileno(), [buffer]):
                count += got
                if count >= look_again:
                    peak = max(peak, peak_kib(command.pid))
                    early = peak if count <= size // 8 else early
                    look_again = count + size // 64
        except BaseException:
            command.terminate()  # reprobox and docker end their container then
            raise
        peak = max(peak, peak_kib(command.pid))  # at the end of the stream it has not ended: it still removes the box
        _, status, usage = os.wait4(command.pid, 0)
        seconds = time.perf_counter() - start
        command.returncode = os.waitstatus_to_exitcode(status)
        command.stdout.close()
        if command.returncode != 0 or count != size:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()
            raise BenchmarkError(f"{argv[0]} exited {command.returncode} after {count} of {size} bytes: {words}")
    return Passed(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, early_peak_kib=early, peak_kib=peak)


def measure_runs(commands: Mapping[str, Sequence[str]], project: Path, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {label: [] for label in commands}
    for label in commands:
        wall_time([*commands[label], "true"], project)  # warms the file cache and writes the bytecode
    for label in in_turns(list(commands), rounds):
        seconds[label].append(wall_time([*commands[label], "true"], project))
    first = next(iter(commands))
    return {
        label: {
            "minimum_s": round(min(values), 6),
            "quartiles_s": [round(value, 6) for value in quartiles(values)],
            "reprobox_ratio_quartiles": None if label == first else ratios(seconds[first], values),
        }
        for label, values in seconds.items()
    }


def measure_streams(commands: Mapping[str, Sequence[str]], project: Path, rounds: int, mib: int) -> dict[str, Any]:
    size = mib * MIB
    program = ("sh", "-c", f"yes '{LINE}' | head -c {size}")
    passed: dict[str, list[Passed]] = {label: [] for label in commands}
    for label in in_turns(list(commands), rounds):
        passed[label].append(pass_through([*commands[label], *program], project, size))
    speeds = {label: [size / p.seconds / 1e6 for p in values] for label, values in passed.items()}
    first = next(iter(commands))
    return {
        label: {
            "megabytes_per_s_quartiles": [round(value, 1) for value in quartiles(speeds[label])],
            "reprobox_ratio_quartiles": None if label == first else ratios(speeds[first], speeds[label]),
            "cli_cpu_s": round(statistics.median(p.cpu_seconds for p in values), 3),
            "cli_peak_mib_after_an_eighth": round(max(p.early_peak_kib for p in values) / 1024, 1),
            "cli_peak_mib": round(max(p.peak_kib for p in values) / 1024, 1),
        }
        for label, values in passed.items()
    }


def print_tables(report: Mapping[str, Any]) -> None:
    engine = report["engine"]
    print(
        f"run_overhead: Python {report['python']}, {report['system']}, {report['cpus']} cores, Docker Engine"
        f" {engine['server']}, docker {engine['client']}"
    )
    if report["runs"]:
        print(f"\ntrue, start to exit, {report['rounds']} pairs; goal: {GOALS['run']}")
        print(f"{'command':<34} {'min ms':>8} {'median ms':>10}   reprobox / this: median (quartiles)")
        for label, row in report["runs"].items():
            times = f"{row['minimum_s'] * 1e3:8.1f} {row['quartiles_s'][1] * 1e3:10.1f}"
            print(f"{label:<34} {times}   {ratio_text(row)}".rstrip())
    if report["streams"]:
        print(f"\n{report['mib']} MiB of lines into a pipe, {report['stream_rounds']} rounds; goal: {GOALS['stream']}")
        print(f"{'command':<34} {'MB/s':>7} {'CPU s':>7} {'peak MiB, 1/8 and end':>22}   reprobox / this")
        for label, row in report["streams"].items():
            peaks = f"{row['cli_peak_mib_after_an_eighth']:.0f}, {row['cli_peak_mib']:.0f}"
            speed = row["megabytes_per_s_quartiles"][1]
            print(f"{label:<34} {speed:7.0f} {row['cli_cpu_s']:7.2f} {peaks:>22}   {ratio_text(row)}".rstrip())


def ratio_text(row: Mapping[str, Any]) -> str:
    if row["reprobox_ratio_quartiles"] is None:
        return ""
    low, middle, high = row["reprobox_ratio_quartiles"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare reprobox run with docker run.")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of `true` (default: %(default)s; 0: none)")
    parser.add_argument(
        "--stream-rounds", type=int, default=3, help="rounds of streams (default: %(default)s; 0: none)"
    )
    parser.add_argument("--mib", type=int, default=1024, help="MiB in each stream (default: %(default)s)")
    parser.add_argument("--image", help="the image for both (default: this reprobox's own)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here too")
    args = parser.parse_args(argv)
    if args.rounds < 0 or args.stream_rounds < 0 or args.mib < 1:
        parser.error("--rounds and --stream-rounds must be at least 0, --mib at least 1")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    script = console_script()
    reprobox = [
        *((str(script),) if script else (sys.executable, "-m", "reprobox")),
        *("run", "--engine", "docker", "--seed", "1", "--network", "none", "--quiet"),
        *(("--image", args.image) if args.image else ()),
    ]
    versions = json.loads(ask(["docker", "version", "--format", "{{json .}}"]))
    with tempfile.TemporaryDirectory(prefix="reprobox-overhead-") as folder:
        project = Path(folder) / "project"
        project.mkdir()
        (project / "reprobox.toml").touch()
        box = look_at_a_box(reprobox, project, Path(folder) / "run")
        docker = ["docker", "run", "--rm", "--init", *box.flags, "--entrypoint", ""]
        ours = {"reprobox run": [*reprobox, "--"]}
        capped = {"docker run, log capped at 20 MB": [*docker, *CAPPED_LOG, box.image]}
        default = {"docker run, default log": [*docker, box.image]}
        runs = measure_runs(ours | capped, project, args.rounds) if args.rounds else {}
        streams = (
            measure_streams(ours | default | capped, project, args.stream_rounds, args.mib)
            if args.stream_rounds
            else {}
        )
    return {
        "engine": {"client": versions["Client"]["Version"], "server": versions["Server"]["Version"]},
        "rounds": args.rounds,
        "stream_rounds": args.stream_rounds,
        "mib": args.mib,
        "goals": GOALS,
        "runs": runs,
        "streams": streams,
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return carry_out("run_overhead", lambda: measure(args), print_tables, args.json)


if __name__ == "__main__":
    sys.exit(main())
