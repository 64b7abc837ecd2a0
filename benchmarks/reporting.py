"""What the benchmarks have in common: their arguments, their report and its file, and how they fail."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = "reprobox.benchmark/1"


class BenchmarkError(Exception):
    """A command that is to be measured does not work."""


def console_script() -> Path | None:
    """The installed `reprobox` that belongs to this interpreter, or None."""
    # Not resolved: in a virtual environment the interpreter is a link, and the scripts lie next to the link.
    name = "reprobox.exe" if os.name == "nt" else "reprobox"
    script = Path(sys.executable).with_name(name)
    return script if os.access(script, os.X_OK) else None


def parse_rounds(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a benchmark that has only rounds to choose: `rounds`, and `json`, a path or None."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=30, help="rounds to measure (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here too")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def circumstances(benchmark: str) -> dict[str, Any]:
    """What every report begins with: which benchmark it is of, and on what machine."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report so that a reader finds the old file or the whole new one, never a part."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            json.dump(report, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)  # a temporary file is readable by its owner alone
    os.replace(file.name, path)


def carry_out(
    benchmark: str, make: Callable[[], dict[str, Any]], show: Callable[[Mapping[str, Any]], None], path: "Path | None"
) -> int:
    """Make the report, show it, and write it to `path` too where one is given; the exit code.

    2, having said why, where a command does not work or cannot be measured.
    """
    try:
        report = {**circumstances(benchmark), **make()}
    except BenchmarkError as error:
        print(f"{benchmark}: {error}", file=sys.stderr)
        return 2
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{benchmark}: a command could not be measured: {error}", file=sys.stderr)
        return 2
    show(report)
    if path is not None:
        write_json(path, report)
    return 0
