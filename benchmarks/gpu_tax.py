"""What each variant of the recipe costs a training step: pairs of processes that train in turns."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from gpu_variants import MODELS, PROGRAM, VARIANTS, worker_environment
from pairs import quartiles, ratios


class Worker:
    """A process that trains under one variant, a timing at a time."""

    def __init__(self, variant: str, cpu: bool) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--worker", variant, *(["--cpu"] if cpu else [])],
            env=worker_environment(variant),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, model: str) -> dict[str, Any]:
        """One timing; a dict with `error` where it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(model + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return {"error": f"the process ended with {self._process.returncode}: {said[-1] if said else 'silently'}"}

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def measure_tax(rounds: int, cpu: bool) -> dict[str, Any]:
    """Every variant against its base, and the weights of every start."""
    weights: dict[str, dict[str, list[str]]] = {model: {} for model in MODELS}
    pairs: dict[str, Any] = {}
    for variant, chosen in VARIANTS.items():
        base = chosen.get("base", "defaults")
        if variant == "defaults":
            continue
        print(f"tax: {variant} / {base}", file=sys.stderr)
        both = {"base": Worker(base, cpu), "variant": Worker(variant, cpu)}
        pairs[variant] = {"base": base}
        for model in MODELS:
            first = {side: worker.ask(model) for side, worker in both.items()}
            for side, name in (("base", base), ("variant", variant)):
                if "weights" in first[side]:
                    weights[model].setdefault(name, []).append(first[side]["weights"])
            pairs[variant][model] = failed(first) or pair(model, both, rounds)
        for worker in both.values():
            worker.close()
        if "recipe" in chosen:  # a second start: the defaults have many
            again = Worker(variant, cpu)
            for model in MODELS:
                if "weights" in (answer := again.ask(model)):
                    weights[model].setdefault(variant, []).append(answer["weights"])
            again.close()
    starts = {
        model: {name: {"starts": len(found), "results": len(set(found))} for name, found in names.items()}
        for model, names in weights.items()
    }
    return {"pairs": pairs, "weights_after_ten_steps": starts}


def failed(answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What went wrong on either side; empty where nothing did."""
    errors = {side: answer["error"] for side, answer in answers.items() if "error" in answer}
    return {"error": errors} if errors else {}


def pair(model: str, both: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Time both sides in turn."""
    times: dict[str, list[float]] = {side: [] for side in both}
    peaks: dict[str, int] = {}
    for number in range(rounds):
        for side in both if number % 2 == 0 else reversed(both):
            answer = both[side].ask(model)
            if "error" in answer:
                return {"error": {side: answer["error"]}}
            times[side].append(answer["ms"])
            peaks[side] = answer.get("peak_mib", 0)
    return {
        **{f"{side}_ms": [round(value, 3) for value in quartiles(found)] for side, found in times.items()},
        "ratio": ratios(times["variant"], times["base"]),
        "peak_mib": peaks,
    }
