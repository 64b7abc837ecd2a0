"""Every way a Python process starts, as one table: each row is run four times and its outcome kept for several tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from support.cli import Cli
from support.once import once

BOTH = ("docker", "local")
DOCKER = ("docker",)

PACKAGES = (
    # pytest, with xdist
    *("pytest", "iniconfig", "pluggy", "pygments", "packaging", "pytest-xdist", "execnet"),
    # accelerate launch
    *("accelerate", "huggingface_hub", "psutil", "pyyaml", "safetensors", "tqdm"),
    # Jupyter's kernel, and the client that talks to it
    *("ipykernel", "jupyter_client", "jupyter_core", "traitlets", "comm", "nest_asyncio", "pyzmq", "tornado"),
    *("ipython", "ipython_pygments_lexers", "matplotlib-inline", "python-dateutil", "six", "platformdirs"),
    *("decorator", "jedi", "parso", "prompt_toolkit", "wcwidth", "stack_data", "executing", "asttokens", "pure_eval"),
    *("pexpect", "ptyprocess", "typing_extensions"),
    "uv",
)
"""What the image does not hold and some rows need. Without dependencies, so that none of them brings torch."""

PACKAGES_IN_BOX = "/packages/site-packages"


def install_packages(folder):
    """Install :data:`PACKAGES` under ``folder`` for the image's Python, which is this one's minor version."""
    target = folder / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- programs -------------------------------------------------------------------------------------------------------

RANDOM = "import random; print(random.random())\n"
RANDOM_HASH = "import random; print(random.random(), hash('reprobox'))\n"
NUMPY = "import random, numpy; print(random.random(), numpy.random.rand())\n"
NUMPY_HASH = "import random, numpy; print(random.random(), numpy.random.rand(), hash('reprobox'))\n"

TORCH_HASH = (
    "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item(), hash('reprobox'))\n"
)

RANKS = """\
import os, random, numpy, torch
drawn = random.random(), numpy.random.rand(), torch.rand(1).item(), hash("reprobox")
os.write(1, f"{os.environ['RANK']} {drawn}\\n".encode())
"""

PYTEST = """\
import os, random, numpy, pytest

@pytest.mark.parametrize("case", [0, 1])
def test_draws(case):
    with open(os.path.join(os.environ["DRAWS"], str(case)), "w") as file:
        print(case, random.random(), numpy.random.rand(), hash("reprobox"), file=file)
"""

JUPYTER = """\
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3")
try:
    for _ in range(int(sys.argv[1])):  # as an impatient client does: the kernel makes a banner with a tip each time
        client.kernel_info(reply=True, timeout=60)
    for cell in ("import random, numpy", "print(random.random(), numpy.random.rand(), hash('reprobox'))"):
        client.execute_interactive(cell, timeout=60)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""

PROCESSES = """\
import concurrent.futures, multiprocessing, os, random, sys
import numpy

def draw():
    return random.random(), numpy.random.rand()

def process(queue):
    queue.put(draw())

def initialize(shared):
    global barrier
    barrier = shared

def task(_):
    barrier.wait(60)  # until every worker has a task: one each
    return draw()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    multiprocessing.set_start_method(sys.argv[1])
    print("parent", *draw())
    queue = context.Queue()
    for _ in range(2):
        worker = context.Process(target=process, args=(queue,))
        worker.start()
        print("Process", *queue.get(timeout=60))
        worker.join()
    options = {"initializer": initialize, "initargs": (context.Barrier(2),)}
    with context.Pool(2, **options) as pool:
        for drawn in sorted(pool.map(task, range(2), chunksize=1)):
            print("Pool", *drawn)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, **options) as pool:
        for drawn in sorted(pool.map(task, range(2))):
            print("executor", *drawn)
    if sys.argv[1] == "fork":
        for _ in range(2):
            sys.stdout.flush()
            if os.fork() == 0:
                print("os.fork", *draw())
                sys.stdout.flush()
                os._exit(0)
            os.wait()
"""

LOADERS = """\
import random
import numpy, torch
from torch.utils.data import DataLoader, Dataset

class Draws(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info().id
        return f"worker {worker} {random.random()} {numpy.random.rand()} {torch.rand(1).item()}"

if __name__ == "__main__":
    torch.multiprocessing.set_forkserver_preload(["torch"])
    for method, persistent in (("fork", False), ("fork", True), ("spawn", True), ("forkserver", True)):
        options = {} if method == "fork" else {"multiprocessing_context": method}
        loader = DataLoader(Draws(), num_workers=2, persistent_workers=persistent, **options)
        for epoch in range(2):
            for (line,) in loader:
                print(method, persistent, epoch, line)
"""

GROUP = """\
import random, tempfile
import numpy, torch
import torch.distributed as dist
import torch.multiprocessing as mp

def rank(number, folder):
    if number == 1:
        numpy.random.seed(7)  # its own from here on
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=number, world_size=2)
    with open(f"{folder}/{number}", "w") as file:
        print(random.random(), torch.rand(1).item(), *([numpy.random.rand()] if number == 1 else []), file=file)
    with open(f"{folder}/name-{number}", "w") as file:
        file.write(tempfile.mktemp())
    dist.barrier()  # a rank that leaves early breaks a connection that the other is still making
    dist.destroy_process_group()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, args=(folder,), nprocs=2)
        for number in (0, 1):
            print("rank", number, open(f"{folder}/{number}").read().strip())
        names = {open(f"{folder}/name-{number}").read() for number in (0, 1)}
        print("temporary names", len(names))
"""

UNSEEDED = """\
import random, secrets, tempfile, uuid, os
import numpy as np, torch
show = lambda name, value: print(name, repr(value))
show("default_rng", np.random.default_rng().random())  # line 4
show("default_rng", np.random.default_rng().random())
show("RandomState", np.random.RandomState().rand())
show("RandomState", np.random.RandomState().rand())
show("SeedSequence", np.random.SeedSequence().entropy)
show("SeedSequence", np.random.SeedSequence().entropy)
show("Random", random.Random().random())
show("Random", random.Random().random())
show("Generator.seed", torch.Generator().seed())
show("Generator.seed", torch.Generator().seed())
random.seed(); show("random.seed", random.random())
random.seed(); show("random.seed", random.random())
np.random.seed(); show("np.random.seed", np.random.rand())
np.random.seed(); show("np.random.seed", np.random.rand())
torch.seed(); show("torch.seed", torch.rand(1).item())
torch.seed(); show("torch.seed", torch.rand(1).item())  # line 19
"""
UNSEEDED_LINES = range(4, 20)

ENTROPY = """\
import os, random, secrets, tempfile, uuid
print("mktemp", tempfile.mktemp())
print("uuid4", uuid.uuid4())  # line 3
print("token_hex", secrets.token_hex())
print("randbelow", secrets.randbelow(2**64))
print("urandom", os.urandom(8).hex())
print("SystemRandom", random.SystemRandom().random())  # line 7
"""
ENTROPY_LINES = range(3, 8)


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way a process starts.

    ``PACKAGES`` and ``PYTHON`` in ``command`` stand for where the engine has them; ``packages`` puts :data:`PACKAGES` on
    the path. ``flags`` go to ``reprobox run``.
    """

    name: str
    command: tuple[str, ...]
    engines: tuple[str, ...] = BOTH
    files: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    flags: tuple[str, ...] = ()
    packages: bool = False


def venv(options, program, pth=""):
    """Return a command that makes a virtual environment and runs ``program`` in it."""
    add = f"for site in $v/lib/python3*/site-packages; do echo '{pth}' > $site/theirs.pth; done; " if pth else ""
    return ("sh", "-c", f"v=$(mktemp -d -p .); python -m venv --without-pip {options} $v; {add}exec $v/bin/{program}")


DRAWS = {"draws.py": NUMPY_HASH}
CHILD = "import subprocess, sys; subprocess.run([sys.executable, *{options!r}, '-c', {program!r}], check=True{more})"

KERNEL_ROW = Row(
    name="Jupyter's kernel", command=("python", "notebook.py", "0"), files={"notebook.py": JUPYTER}, packages=True
)

REACH = (
    Row(name="python", command=("python", "draws.py"), files={"draws.py": TORCH_HASH}),
    Row(name="python -m", command=("python", "-m", "draws"), files=DRAWS),
    Row(name="python -c", command=("python", "-c", NUMPY_HASH)),
    Row(name="sh -c", command=("sh", "-c", "exec python draws.py"), files=DRAWS),
    Row(
        name="a child",
        command=("python", "-c", "import subprocess; subprocess.run(['python', 'draws.py'], check=True)"),
        files=DRAWS,
    ),
    Row(name="shebang", command=("./draws",), files={"draws": "#!/usr/bin/env python\n" + NUMPY_HASH}),
    Row(name="the base interpreter", command=("BASE_PYTHON", "-c", RANDOM_HASH)),
    Row(name="a venv", command=venv("", "python draws.py"), files={"draws.py": RANDOM_HASH}),
    Row(
        name="a system-site venv",
        command=venv("--system-site-packages", "python draws.py"),
        files={"draws.py": RANDOM_HASH},
    ),
    Row(name="-I", command=("python", "-I", "-c", NUMPY), engines=DOCKER),
    Row(name="-E", command=("python", "-E", "-c", NUMPY), engines=DOCKER),
    Row(name="-S", command=("python", "-S", "-c", RANDOM_HASH), engines=DOCKER),
    Row(name="-I -S", command=("python", "-I", "-S", "-c", RANDOM), engines=DOCKER),
    Row(name="-I in a venv", command=venv("", "python -I draws.py"), files={"draws.py": RANDOM}, engines=DOCKER),
    Row(
        name="uv run",
        command=("PACKAGES/bin/uv", "run", "--no-project", "--offline", "--python", "PYTHON", "draws.py"),
        files=DRAWS,
        packages=True,
    ),
    Row(name="torchrun", command=("torchrun", "--nproc-per-node", "2", "ranks.py"), files={"ranks.py": RANKS}),
    Row(
        name="accelerate launch",
        command=(
            *("python", "-m", "accelerate.commands.launch"),  # what the command of that name runs
            *(
                "--cpu",
                "--num_processes",
                "1",
                "--num_machines",
                "1",
                "--mixed_precision",
                "no",
                "--dynamo_backend",
                "no",
            ),
            "draws.py",
        ),
        files=DRAWS,
        packages=True,
    ),
    *(
        Row(
            name=f"pytest{options}",
            command=(
                *("sh", "-c"),
                "export DRAWS=$(mktemp -d -p .); "
                f"python -m pytest -q -p no:cacheprovider{options} test_draws.py >&2; cat $DRAWS/*",
            ),
            files={"test_draws.py": PYTEST, "pytest.ini": "[pytest]\n"},
            packages=True,
        )
        for options in ("", " -n 2")
    ),
    Row(
        name="a child with an empty environment",
        command=("python", "-c", CHILD.format(options=[], program=NUMPY, more=", env={}")),
        engines=DOCKER,
    ),
    Row(
        name="a child in isolation",
        command=("python", "-c", CHILD.format(options=["-I"], program=NUMPY, more="")),
        engines=DOCKER,
    ),
    Row(
        name="a sitecustomize of the program's own",
        command=("python", "-c", "import sitecustomize; assert sitecustomize.mine\n" + NUMPY_HASH),
        files={"mine/sitecustomize.py": "mine = True\n"},
        flags=("-e", "PYTHONPATH=mine"),
    ),
    Row(
        name="random and torch imported by a .pth",
        command=venv("", "python draws.py", "SITE\nimport random, torch"),
        files={
            "draws.py": "import random, sys; assert 'torch' in sys.modules; import torch; print(random.random(), torch.rand(1).item())"
        },
    ),
    KERNEL_ROW,
)
"""Part one: every way to start an interpreter."""

METHODS = ("fork", "spawn", "forkserver")
PROCESS_ROWS = {
    method: Row(name=f"processes by {method}", command=("python", "p.py", method), files={"p.py": PROCESSES})
    for method in METHODS
}
LOADER_ROW = Row(name="DataLoader workers", command=("python", "loaders.py"), files={"loaders.py": LOADERS})
GROUP_ROW = Row(name="ranks of mp.spawn", command=("python", "group.py"), files={"group.py": GROUP})
UNSEEDED_ROW = Row(name="unseeded generators", command=("python", "u.py"), files={"u.py": UNSEEDED})
ENTROPY_ROW = Row(name="real entropy", command=("python", "e.py"), files={"e.py": ENTROPY})

ROWS = (*REACH, *PROCESS_ROWS.values(), LOADER_ROW, GROUP_ROW, UNSEEDED_ROW)
"""Every row whose bits the recipe promises."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What four runs of a row printed, and the receipt of the first: in the manifest, and as the line that ends it."""

    first: str
    again: str
    other_seed: str
    without: str
    receipt: dict
    line: str


class Reach:
    """Runs rows, each once for the whole session, whichever worker asks first."""

    def __init__(self, tmp_path_factory):
        self._factory = tmp_path_factory

    def outcome(self, row, engine):
        name = re.sub(r"\W+", "-", f"reach-{engine}-{row.name}")
        folder = once(self._factory, name, lambda folder: self._run(row, engine, folder))
        return Outcome(**json.loads((folder / "outcome.json").read_text()))

    def packages(self):
        return once(self._factory, "packages", install_packages) / "site-packages"

    def _run(self, row, engine, folder):
        (folder / "project").mkdir()
        cli = Cli(folder / "project", engine)
        for name, text in row.files.items():
            cli.write(name, text, executable=text.startswith("#!"))
        command = [self._place(word, engine) for word in row.command]
        more = [*row.flags, *(self._package_flags(engine) if row.packages else ())]

        def run(flags):
            return cli.run(*command, flags=(*flags, *more))

        # A run waits more than it computes.
        with ThreadPoolExecutor() as threads:
            seeds = (("--seed", "42"), ("--seed", "42"), ("--seed", "43"), ("--profile", "off"))
            first, again, other, without = threads.map(run, seeds)
        run_id = re.match(r"reprobox: run (\S+) ", first.stderr)[1]
        manifest = next(run for run in cli.runs() if run.name == run_id) / "manifest.json"
        lines = [line for line in first.stderr.splitlines() if line.startswith("reprobox: receipt: ")]
        outcome = Outcome(
            first=_ordered(first.stdout),
            again=_ordered(again.stdout),
            other_seed=_ordered(other.stdout),
            without=_ordered(without.stdout),
            receipt=json.loads(manifest.read_text())["receipt"],
            line=lines[-1],
        )
        (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))

    def _package_flags(self, engine):
        if engine == "local":
            return ("-e", f"PYTHONPATH={self.packages()}")
        return ("-v", f"{self.packages()}:{PACKAGES_IN_BOX}:ro", "-e", f"PYTHONPATH={PACKAGES_IN_BOX}")

    def _place(self, word, engine):
        if "PACKAGES/" in word:
            word = word.replace("PACKAGES", str(self.packages()) if engine == "local" else PACKAGES_IN_BOX)
        return placed(word, engine)


def placed(word, engine):
    """Return ``word`` of a command with what stands for an interpreter, or for its packages, put in."""
    local = engine == "local"
    site = (
        next(p for p in sys.path if p.endswith("site-packages")) if local else "/opt/venv/lib/python3.11/site-packages"
    )
    return {
        "BASE_PYTHON": f"{sys.base_prefix}/bin/python3" if local else "/usr/bin/python3",
        "PYTHON": sys.executable if local else "/opt/venv/bin/python",
    }.get(word, word).replace("SITE\n", f"{site}\n")


def _ordered(text):
    """Return lines that ranks print whenever they come to it, in order."""
    lines = text.splitlines()
    return "\n".join(sorted(lines) if lines and lines[0][:2] in ("0 ", "1 ") else lines)
