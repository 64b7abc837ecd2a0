"""A process that trains under one variant of the recipe, as far as it is asked to."""

import json
import sys
import time
from typing import Any

import torch
from gpu_digest import digest
from gpu_models import STEP_MAKERS
from gpu_variants import STEPS, VARIANTS


def train(variant: str, cpu: bool) -> None:
    """Answer each line of stdin, the name of a model, with how long its step took; the first time with its weights."""
    flags = VARIANTS[variant].get("flags", ())
    if "recipe" not in VARIANTS[variant]:
        torch.use_deterministic_algorithms("algorithms" in flags)
        torch.utils.deterministic.fill_uninitialized_memory = "fill" in flags or "algorithms" not in flags
        torch.backends.cudnn.deterministic = "cudnn.deterministic" in flags
        torch.backends.cudnn.benchmark = "cudnn.benchmark" in flags
    device = torch.device("cpu" if cpu else "cuda")
    steps: dict[str, Any] = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            answer: dict[str, Any] = {}
            if name not in steps:
                parameters, steps[name] = STEP_MAKERS[name](device, cpu)
                for _ in range(STEPS):
                    steps[name]()
                answer["weights"] = digest(parameters)
            answer["ms"] = milliseconds(steps[name], device)
            if device.type == "cuda":
                answer["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
        except Exception as error:  # noqa: BLE001  (strict raises what it likes; the other side goes on)
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), flush=True)


def milliseconds(step: Any, device: Any) -> float:
    """Milliseconds a step, over :data:`STEPS` of them."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(STEPS):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / STEPS
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) * 1000 / STEPS
