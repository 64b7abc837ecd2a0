"""The full self-test under each profile, by the command line or, without its libraries, by the entrypoint alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_variants import ROOT, SEED

from reprobox.recipe import Profile, Recipe

LAUNCHER = ROOT / "reprobox" / "box" / "selftest" / "launch.py"
ENTRYPOINT = ROOT / "reprobox" / "box" / "local.py"


def run_selftests(cpu: bool) -> dict[str, Any]:
    """The full self-test under each profile that promises something, and under fast, where it may differ."""
    result = {}
    for profile in ("strict", "warn", "fast"):
        print(f"selftest: {profile}", file=sys.stderr)
        start = time.perf_counter()
        said, done = [], by_command_line(profile, cpu)
        if isinstance(done, str):
            said, done = [done], by_entrypoint(profile, cpu)
        document = None if isinstance(done, str) else done[1]
        verdicts = [case["verdict"] for case in document["cases"]] if document else []
        result[profile] = {
            "by": "entrypoint" if said else "command line",
            "command_line_said": said[0] if said else None,
            "exit_code": None if isinstance(done, str) else done[0],
            "error": done if isinstance(done, str) else None,
            "seconds": round(time.perf_counter() - start, 1),
            "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
            "document": document,
        }
    return result


def base_environment(cpu: bool) -> dict[str, str]:
    """This process's environment without anything for reprobox, this Python first, and, with ``cpu``, no GPU."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("REPROBOX", "PYTHONPATH"))}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    return {**own, "CUDA_VISIBLE_DEVICES": ""} if cpu else own


def by_command_line(profile: str, cpu: bool) -> Any:
    """Exit code and document of `reprobox selftest`, or why there is none."""
    environment = {**base_environment(cpu), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "reprobox.toml").touch()
        environment["XDG_CACHE_HOME"] = folder
        argv = [sys.executable, "-m", "reprobox", "selftest", "--engine", "local", "--profile", profile, "--json"]
        return answer_of(argv, environment, folder)


def by_entrypoint(profile: str, cpu: bool) -> Any:
    """Exit code and document of the self-test's program under the entrypoint, or why there is none."""
    environment = {
        **base_environment(cpu),
        **Recipe(seed=SEED, profile=Profile(profile)).to_variables(),
        "REPROBOX_QUIET": "on",
        "REPROBOX_SELFTEST": "off",
    }
    argv = [sys.executable, "-IS", str(ENTRYPOINT), "--", sys.executable, str(LAUNCHER), "--tier", "full", "--quiet"]
    return answer_of(argv, environment, "/")


def answer_of(argv: list[str], environment: dict[str, str], folder: str) -> Any:
    done = subprocess.run(argv, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    try:
        document = json.loads(done.stdout)
        return (done.returncode, document) if document["schema"] == "reprobox.selftest/1" else "no self-test's result"
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines()
        return f"exit code {done.returncode}: {said[-1] if said else 'silent'}"
