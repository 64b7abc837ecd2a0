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
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run_overhead import quartiles, ratios
from startup import SCHEMA, write_json

from reprobox.box.entrypoint import box_environment
from reprobox.recipe import Profile, Recipe

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "reprobox" / "box" / "selftest" / "launch.py"
ENTRYPOINT = ROOT / "reprobox" / "box" / "local.py"
PARTS = ("selftest", "controls", "tax")
SEED = 20200220
STEPS = 10
"""Steps before the weights are compared, and in one timing."""

REPEATS = 20

# --- what is compared in `tax` ----------------------------------------------------------------------------------------

WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{f"profile {name}": {"recipe": {"profile": name}} for name in ("off", "fast", "warn", "strict")},
    "profile strict, no fill": {"recipe": {"profile": "strict", "fill": False}},
    "CUBLAS_WORKSPACE_CONFIG": {"environment": WORKSPACE},
    "CUBLASLT_WORKSPACE_SIZE": {"environment": {"CUBLASLT_WORKSPACE_SIZE": "32768"}},
    "cudnn.deterministic": {"flags": ["cudnn.deterministic"]},
    "cudnn.benchmark on": {"flags": ["cudnn.benchmark"]},
    # PyTorch refuses cuBLAS under deterministic algorithms without the workspace.
    "deterministic algorithms": {"environment": WORKSPACE, "flags": ["algorithms"], "base": "CUBLAS_WORKSPACE_CONFIG"},
    "fill": {"environment": WORKSPACE, "flags": ["algorithms", "fill"], "base": "deterministic algorithms"},
}
"""Each is compared with its `base`, the defaults where none is named. `cudnn.benchmark` is off by default and in the
recipe: its row is what a program that would turn it on gives up."""


def worker_environment(variant: str) -> dict[str, str]:
    """The environment of a process that trains under ``variant``."""
    chosen = VARIANTS[variant]
    drop = ("REPROBOX", "OMP_", "MKL_", "CUBLAS", "PYTHONPATH")
    own = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    own |= chosen.get("environment", {})
    if "recipe" in chosen:
        words = dict(chosen["recipe"])
        recipe = Recipe(seed=SEED, profile=Profile(words.pop("profile")), **words)
        own, _ = box_environment(own, recipe, {})
    own["PYTHONPATH"] = os.pathsep.join([*filter(None, [own.get("PYTHONPATH")]), str(ROOT)])
    return own


# --- in a process of its own: these import torch ----------------------------------------------------------------------


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


def controls(cpu: bool) -> dict[str, Any]:
    """How many results each operation has in :data:`REPEATS` repeats, without and with deterministic algorithms."""
    import torch
    import torch.nn.functional as F  # noqa: N812  (its name in the field)

    device = torch.device("cpu" if cpu else "cuda")
    rows = 2_000 if cpu else 200_000

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    def places(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, below, shape, device=device)

    def gradient(output: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        weights = torch.randn(output.shape, device=device, generator=torch.Generator(device).manual_seed(1))
        return torch.autograd.grad(output, leaf, weights)[0]

    source, where = values(rows, 32), places(10, rows)
    wide = where[:, None].expand(-1, 32)
    weights = values(rows)
    image, volume = values(4, 8, 64, 64).requires_grad_(), values(2, 4, 16, 16, 16).requires_grad_()
    grid, table = values(4, 96, 96, 2).clamp(-1, 1), values(10, 32).requires_grad_()
    signal, long = values(2, rows // 100 * 4).requires_grad_(), values(rows * 5)
    logits = values(60, 8, 20).requires_grad_()
    targets, lengths = places(19, 8, 12) + 1, (torch.full((8,), 60), torch.full((8,), 12))
    operations = {
        "index_add": lambda: torch.zeros(10, 32, device=device).index_add(0, where, source),
        "scatter_add": lambda: torch.zeros(10, 32, device=device).scatter_add(0, wide, source),
        "scatter_reduce sum": lambda: torch.zeros(10, 32, device=device).scatter_reduce(0, wide, source, "sum"),
        "index_put accumulate": lambda: torch.zeros(10, 32, device=device).index_put((where,), source, accumulate=True),
        "put accumulate": lambda: torch.zeros(10, device=device).put(where, weights, accumulate=True),
        "bincount weights": lambda: torch.bincount(where, weights=weights, minlength=10),
        "cumsum": lambda: long.cumsum(0),
        "embedding backward": lambda: gradient(F.embedding(where, table), table),
        "embedding_bag max backward": lambda: gradient(
            F.embedding_bag(where[: rows // 10 * 10].view(-1, 10), table, mode="max"), table
        ),
        "interpolate linear backward": lambda: gradient(
            F.interpolate(signal[None], scale_factor=3.3, mode="linear"), signal
        ),
        "interpolate bilinear backward": lambda: gradient(
            F.interpolate(image, scale_factor=3.3, mode="bilinear"), image
        ),
        "interpolate bicubic backward": lambda: gradient(F.interpolate(image, scale_factor=3.3, mode="bicubic"), image),
        "grid_sample backward": lambda: gradient(F.grid_sample(image, grid, align_corners=False), image),
        "reflection_pad2d backward": lambda: gradient(F.pad(image, (7, 7, 7, 7), mode="reflect"), image),
        "adaptive_avg_pool2d backward": lambda: gradient(F.adaptive_avg_pool2d(image, (9, 7)), image),
        "adaptive_max_pool2d backward": lambda: gradient(F.adaptive_max_pool2d(image, (9, 7)), image),
        "max_pool3d backward": lambda: gradient(F.max_pool3d(volume, 3, stride=1), volume),
        "ctc_loss backward": lambda: gradient(
            F.ctc_loss(logits.log_softmax(2), targets, *lengths, reduction="none"), logits
        ),
    }
    result = {}
    for name, operation in operations.items():
        result[name] = {}
        for mode, on in (("off", False), ("on", True)):
            torch.use_deterministic_algorithms(on)
            try:
                digests = {digest([operation()]) for _ in range(REPEATS)}
                result[name][mode] = {"results": len(digests), "repeats": REPEATS}
            except Exception as error:  # noqa: BLE001  (what refuses, and how, is the result)
                result[name][mode] = {"refused": " ".join(str(error).split())[:200]}
    torch.use_deterministic_algorithms(False)
    return result


def digest(tensors: Any) -> str:
    """128 bits over the bytes of ``tensors``."""
    import torch

    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def train(variant: str, cpu: bool) -> None:
    """Answer each line of stdin, the name of a model, with how long its step took; the first time with its weights."""
    import torch

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
                parameters, steps[name] = MODELS[name](device, cpu)
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
    import torch

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


def cnn(device: Any, cpu: bool) -> Any:
    """A residual network; float32, as PyTorch computes that by default."""
    import torch
    import torch.nn.functional as F  # noqa: N812  (its name in the field)
    from torch import nn

    torch.manual_seed(SEED)
    width, depth, batch, side = (8, 2, 4, 16) if cpu else (64, 8, 64, 224)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.norms[0](self.first(x)))
            return F.relu(x + self.norms[1](self.second(y)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.head = nn.Linear(width, 100)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    net = Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(0, 100, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return list(net.parameters()), step


def transformer(device: Any, cpu: bool) -> Any:
    """A causal language model; autocast to bfloat16."""
    import torch
    import torch.nn.functional as F  # noqa: N812  (its name in the field)
    from torch import nn

    torch.manual_seed(SEED)
    width, heads, depth, batch, length, vocabulary = (32, 2, 2, 4, 32, 64) if cpu else (768, 12, 6, 16, 512, 8192)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.projections, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.projections(self.before(x)).view(batch, length, 3, heads, -1).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
            return x + F.dropout(self.down(F.gelu(self.up(self.between(x)))), 0.1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.layers = nn.ModuleList(Layer() for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.places.weight
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    tokens = torch.randint(0, vocabulary, (batch, length), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()

    return list(model.parameters()), step


MODELS = {"cnn": cnn, "transformer": transformer}

# --- here: these do not ---------------------------------------------------------------------------------------------


class Worker:
    """A process that trains under one variant, a timing at a time."""

    def __init__(self, variant: str, cpu: bool) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", variant, *(["--cpu"] if cpu else [])],
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
        train(args.worker, args.cpu)
        return 0
    if args.only:
        print(json.dumps(describe() if args.only == "describe" else controls(args.cpu)))
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
