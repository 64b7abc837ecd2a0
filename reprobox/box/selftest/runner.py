"""The self-test carried out: knobs, cases several times here and once in a second process, canaries; one JSON document.

Runs as a program of its own, in the environment that the command will get. The second process has another memory
layout (its free memory is poisoned, and the cases come in the opposite order) and competes with the first for the cores.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from reprobox.box import seeding
from reprobox.box.selftest import collective
from reprobox.box.selftest.canary import missed_canaries
from reprobox.box.selftest.case import Bench, Case, Description
from reprobox.box.selftest.cases.table import CASES
from reprobox.box.selftest.knobs import read_knobs
from reprobox.box.selftest.measure import Measured, measure
from reprobox.recipe import RANK_VARIABLES, BoxSettings, Profile, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    _Step = tuple[str, Callable[[], "Result"]]
    """A result's key, and what computes it."""

__all__ = ["main"]

SCHEMA = "reprobox.selftest/1"
DEFAULT_REPEAT = 3
POISON_BYTES = 64 << 20
NO_DETERMINISTIC_KERNEL = "does not have a deterministic"
"""How PyTorch begins to say so (``torch.use_deterministic_algorithms``), as an error or, under *warn*, as a warning."""

BURN = "import os, sys\nwhile str(os.getppid()) == sys.argv[1]: sum(range(100_000))"
"""Keeps a core busy for as long as the process lives that started it, whose id it is given."""

NOT_AVAILABLE = ("not implemented for", "No available kernel", "No viable backend", "not compiled with")


@dataclass
class Result:
    """What is known of one case on one device."""

    case: Description
    device: torch.device
    measured: Measured | None = None
    verdict: str = "same"
    message: str | None = None
    alerted: bool = False
    ms: float = 0.0
    digests: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return _key(self.case, self.device)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "name": self.case.name,
            "device": str(self.device),
            "dtype": self.case.dtype_name,
            "verdict": self.verdict,
            "ms": round(self.ms, 1),
        }
        if self.message:
            document["message"] = self.message
        if self.case.ill_conditioned:
            document["ill_conditioned"] = True
        return {**document, **(self.measured.to_json() if self.measured else {"digest": None})}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the self-test; print the document on stdout and progress on stderr. Exit 0: passed, 1: not."""
    options = _parse(argv)
    if options.rank is not None:
        return collective.rank_main(options.rank, options.world, options.store, options.backend)
    settings = BoxSettings.parse(os.environ)
    document = _reserved_stdout()
    knobs = [] if options.second else read_knobs(torch, settings.recipe, _own_seed(settings.recipe))
    devices = [torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    chosen = [(case, device) for device in devices for case in _choose(options, device.type)]
    if options.second:
        return _second(chosen, document)
    steps: list[_Step] = [(_key(c, device), partial(_run, c, device, options.repeat)) for c, device in chosen]
    if options.tier == "full" and _is_chosen(collective.CASE, options):
        steps.append((_key(collective.CASE, devices[0]), partial(_all_reduce, devices)))
    with _second_process(argv) as second:
        results = [compute() for compute in _progress(steps, quiet=options.quiet)]
        _compare(results[: len(chosen)], second())  # a second process takes no part in the all-reduce
    found = _document(results, [knob.to_json() for knob in knobs], devices, settings.recipe.profile, options)
    with document:
        json.dump(found, document)
    return 0 if found["passed"] else 1


def _reserved_stdout() -> TextIO:
    """Return stdout for the document alone; what a library prints (MKL_VERBOSE, NCCL_DEBUG) goes to stderr from now on."""
    document = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return document


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="selftest")
    parser.add_argument("--tier", choices=("start", "full"), default="full")
    parser.add_argument("--repeat", type=int, default=DEFAULT_REPEAT)
    parser.add_argument("--cases", default="", help="comma-separated names or patterns")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--second", action="store_true", help=argparse.SUPPRESS)
    for name, kind in (("--rank", int), ("--world", int), ("--store", str), ("--backend", str)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _own_seed(recipe: Recipe) -> int:
    """Return this process's seed: the recipe's, moved by a launcher's rank."""
    words = {"seed": str(recipe.seed or 0), "rank_seeds": str(recipe.rank_seeds), "ranks": ",".join(RANK_VARIABLES)}
    return int(seeding.process_seed(words))


def _choose(options: argparse.Namespace, kind: str) -> list[Case]:
    return [
        case
        for case in CASES
        if case.only in (None, kind) and (case.start or options.tier == "full") and _is_chosen(case, options)
    ]


def _patterns(options: argparse.Namespace) -> list[str]:
    return [pattern for text in options.cases.split(",") if (pattern := text.strip())]


def _is_chosen(case: Description, options: argparse.Namespace) -> bool:
    patterns = _patterns(options)
    return not patterns or any(_matches(case.name, case.id, pattern) for pattern in patterns)


def _matches(name: str, full_name: str, pattern: str) -> bool:
    """Say whether ``pattern`` means this case; brackets are those of a case's full name, not a set of characters."""
    pattern = pattern.replace("[", "[[]")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(full_name, pattern)


def _key(case: Description, device: torch.device) -> str:
    """Return what the two processes, progress and failures call ``case`` on ``device``."""
    return f"{case.id} {device}"


def _run(case: Case, device: torch.device, repeat: int) -> Result:
    """Compute ``case`` ``repeat`` times, with other memory in use each time."""
    result = Result(case=case, device=device)
    began = time.perf_counter()
    litter = []
    try:
        for number in range(repeat):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                measured = measure(case.compute(device))
            result.alerted = result.alerted or any(NO_DETERMINISTIC_KERNEL in str(w.message) for w in said)
            result.measured = result.measured or measured
            result.digests.append(measured.digest)
            litter.append(torch.full((12_345 * (number + 1),), float("nan"), device=device))
    except Exception as error:
        _note_error(result, error)
    result.ms = (time.perf_counter() - began) * 1000
    return result


def _note_error(result: Result, error: Exception) -> None:
    message = " ".join(str(error).split())
    known = NO_DETERMINISTIC_KERNEL in message or any(text in message for text in NOT_AVAILABLE)
    result.verdict = "unsupported" if known else "error"
    result.message = f"{type(error).__name__}: {message[:500]}"
    result.measured = None


def _compare(results: Sequence[Result], second: dict[str, str]) -> None:
    """Hold each result against its repeats, and against the digest that the ``second`` process found for its key."""
    for result in results:
        if result.verdict != "same":
            continue
        other = second.get(result.key)
        if len(set(result.digests)) > 1:
            result.verdict = "different"
            result.message = f"{len(set(result.digests))} results in {len(result.digests)} repeats of one process"
        elif other is None:
            result.verdict = "different"
            result.message = "another process could not compute it"
        elif other != result.digests[0]:
            result.verdict = "different"
            result.message = "another process, with another memory layout and load, gave another result"


@contextlib.contextmanager
def _second_process(argv: Sequence[str] | None) -> Iterator[Any]:
    arguments = [*(sys.argv[1:] if argv is None else argv), "--second"]
    process = subprocess.Popen([sys.executable, LAUNCHER, *arguments], stdout=subprocess.PIPE)

    def digests() -> dict[str, str]:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the second process of the self-test ended with exit code {process.returncode}")
        return dict(json.loads(output))

    try:
        yield digests
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _second(chosen: Sequence[tuple[Case, torch.device]], document: TextIO) -> int:
    results = []
    with _burning(max(0, len(os.sched_getaffinity(0)) - 1) if len(chosen) > 20 else 0):
        for case, device in reversed(chosen):
            poison = torch.full((POISON_BYTES // 4,), float("nan"), device=device)
            del poison  # what the case allocates next has held this
            results.append(_run(case, device, 1))
    with document:
        json.dump({result.key: result.digests[0] for result in results if result.digests}, document)
    return 0


@contextlib.contextmanager
def _burning(processes: int) -> Iterator[None]:
    """Keep ``processes`` cores busy: how work is spread over threads that must wait for a core must not show."""
    command = [sys.executable, "-IS", "-c", BURN, str(os.getpid())]
    burners = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _all_reduce(devices: Sequence[torch.device]) -> Result:
    result = Result(case=collective.CASE, device=devices[0])
    began = time.perf_counter()
    try:
        tensors = collective.all_reduce(devices, LAUNCHER)
        result.measured = measure(tensors[0])
        result.digests = [measure(tensor).digest for tensor in tensors]
        if len(set(result.digests)) > 1:
            result.verdict, result.message = "different", "the same sum over the same ranks gave several results"
    except Exception as error:
        _note_error(result, error)
    result.ms = (time.perf_counter() - began) * 1000
    return result


def _progress(steps: Sequence[_Step], *, quiet: bool) -> Iterator[Callable[[], Result]]:
    """Yield what computes each result, one by one, and tell on stderr how far the test is: one JSON line a case."""
    for number, (key, compute) in enumerate(steps):
        if not quiet:
            sys.stderr.write(json.dumps({"case": key, "done": number, "total": len(steps)}) + "\n")
            sys.stderr.flush()
        yield compute


def _document(
    results: Sequence[Result],
    knobs: list[dict[str, str]],
    devices: Sequence[torch.device],
    profile: Profile,
    options: argparse.Namespace,
) -> dict[str, Any]:
    missed = missed_canaries(Bench(torch.device("cpu"), torch.float32).values(300, 257))
    visible, wanted = _visible(devices), _asked_for()
    failures = [f"the planted fault {name!r} was not noticed" for name in missed]
    failures += [
        f"{k['name']} is {k['found']} and should be {k['wanted']}" for k in knobs if k["verdict"] == "not in force"
    ]
    if wanted is not None and wanted != visible:
        failures.append(
            f"the GPUs seen are {', '.join(visible) or 'none'}, and those asked for {', '.join(wanted) or 'none'}"
        )
    failures += [f"{r.key}: {r.message}" for r in results if _fails(r, profile)]
    for pattern in _patterns(options):
        if not any(_matches(r.case.name, r.case.id, pattern) for r in results):
            failures.append(f"there is no case {pattern!r} on this machine")
    if not results:
        failures.append("no case was run")
    return {
        "schema": SCHEMA,
        "passed": not failures,
        "tier": "custom" if options.cases else options.tier,
        "profile": str(profile),
        "repeat": options.repeat,
        "failures": failures,
        "cases": [result.to_json() for result in results],
        "knobs": knobs,
        "canaries_missed": missed,
        "fingerprint": _fingerprint(devices),
    }


def _fails(result: Result, profile: Profile) -> bool:
    """Say whether the profile promised what the case does not hold."""
    if result.verdict == "error":
        return True
    if result.verdict != "different":
        return False
    return profile is Profile.STRICT or (profile is Profile.WARN and not result.alerted)


def _asked_for() -> list[str] | None:
    """Return the UUIDs asked for, in order; ``None`` where the devices were not named by UUID."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    uuids = [name for name in (names or "").split(",") if name]
    return uuids if names is not None and all(name.startswith(("GPU-", "MIG-")) for name in uuids) else None


def _visible(devices: Sequence[torch.device]) -> list[str]:
    uuids = [str(torch.cuda.get_device_properties(device).uuid) for device in devices if device.type == "cuda"]
    return [uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}" for uuid in uuids]


def _fingerprint(devices: Sequence[torch.device]) -> dict[str, Any]:
    """Return what of this process the bits can depend on, as far as only the libraries know it."""
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    gpus = [torch.cuda.get_device_properties(device) for device in devices if device.type == "cuda"]
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "multiprocessors": [gpu.multi_processor_count for gpu in gpus],
        "compute_capability": [f"{gpu.major}.{gpu.minor}" for gpu in gpus],
    }


LAUNCHER = str(Path(__file__).with_name("launch.py"))
