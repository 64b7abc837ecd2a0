"""Every knob of the recipe read back in the process itself, under every profile, in the image and on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Cli

from reprobox.knobs import KNOBS
from reprobox.recipe import Profile, Recipe

ENGINES = [pytest.param("docker", marks=pytest.mark.engine), pytest.param("local", marks=pytest.mark.local)]
SEED = 42

# Each expression is what the process itself says, not what was set: the value it must give is the knob's.
OBSERVE = {
    "PYTHONHASHSEED": "SEED if hash('reprobox') == REFERENCE_HASH else 'free'",
    "TORCHINDUCTOR_DETERMINISTIC": "str(int(torch._inductor.config.deterministic))",
    "OMP_NUM_THREADS": "str(torch.get_num_threads())",
    "MKL_NUM_THREADS": "parallel('mkl_get_max_threads()')",
    "ATEN_CPU_CAPABILITY": "torch.backends.cpu.get_cpu_capability().lower()",
    "random.seed": "SEED if FIRST['random'] == random.Random(int(SEED)).random() else 'free'",
    "numpy.random.seed": "SEED if FIRST['numpy'] == np.random.RandomState(int(SEED)).rand() else 'free'",
    "torch.manual_seed": "str(torch.initial_seed())",
    "torch.backends.cudnn.deterministic": "str(torch.backends.cudnn.deterministic)",
    "torch.backends.cudnn.benchmark": "str(torch.backends.cudnn.benchmark)",
    "torch.use_deterministic_algorithms": "ALGORITHMS",
    "torch.utils.deterministic.fill_uninitialized_memory": (
        "'on' if torch.utils.deterministic.fill_uninitialized_memory else 'off'"
    ),
}

PROGRAM = f"""
import json, os, random, subprocess, sys
import numpy as np
import torch
import torch._inductor.config
SEED = "{SEED}"
FIRST = {{"random": random.random(), "numpy": np.random.rand()}}
reference = [sys.executable, "-c", "print(hash('reprobox'))"]
REFERENCE_HASH = int(subprocess.check_output(reference, env={{"PYTHONHASHSEED": SEED, "PATH": "/usr/bin:/bin"}}))
def parallel(name):
    lines = [line.partition(":") for line in torch.__config__.parallel_info().splitlines()]
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)
mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
ALGORITHMS = {{(True, False): "True", (True, True): "True, warn_only=True"}}.get(mode)
observe = json.loads(os.environ["OBSERVE"])
print(json.dumps({{name: eval(text) for name, text in observe.items()}}))
"""


def observed(project, *flags):
    expressions = {k.name: OBSERVE.get(k.name, f"os.environ.get({k.name!r})") for k in KNOBS}
    flags = ("--seed", str(SEED), "-q", *flags, "-e", f"OBSERVE={json.dumps(expressions)}")
    return json.loads(project.run("python", "-c", PROGRAM, flags=flags).stdout)


@pytest.fixture(scope="module", params=ENGINES)
def seen(request, tmp_path_factory):
    """What the process observed under each profile, one run each, shared by every row."""
    if request.param == "docker":
        request.getfixturevalue("image")
    project = Cli(tmp_path_factory.mktemp("knobs"), request.param)
    profiles = {profile: observed(project, "--profile", str(profile)) for profile in Profile}
    return {**profiles, "portable": observed(project, "--portable", "--no-fill")}


# PASSIVE waiting changes speed alone, and the caps of MKL and oneDNN are asked for at their first use.
@pytest.mark.parametrize("profile", [Profile.STRICT, Profile.WARN, Profile.FAST])
@pytest.mark.parametrize("knob", [k for k in KNOBS if k.needs is None], ids=lambda k: k.name)
def test_a_knob_is_in_force_under_each_profile_and_not_under_off(seen, knob, profile):
    wanted = knob.value(Recipe(seed=SEED, profile=profile))
    if wanted is not None:
        assert seen[profile][knob.name] == wanted
        # Some of PyTorch's own defaults are the recipe's: there is nothing to tell apart.
        if knob.name not in ("torch.backends.cudnn.benchmark", "torch.utils.deterministic.fill_uninitialized_memory"):
            assert seen[Profile.OFF][knob.name] != wanted
    else:
        assert seen[profile][knob.name] == seen[Profile.OFF][knob.name]


@pytest.mark.parametrize("knob", [k for k in KNOBS if k.needs == "portable"], ids=lambda k: k.name)
def test_portable_pins_the_instruction_set(seen, knob):
    assert seen["portable"][knob.name] == knob.value(Recipe(seed=SEED, portable=True))
    # A CPU without AVX-512 has nothing above what is pinned: PyTorch takes the same without the pin.
    is_its_best = knob.name == "ATEN_CPU_CAPABILITY" and "avx512f" not in Path("/proc/cpuinfo").read_text()
    assert (seen[Profile.STRICT][knob.name] == seen["portable"][knob.name]) is is_its_best


def test_no_fill_is_the_negative_twin_of_fill(seen):
    name = "torch.utils.deterministic.fill_uninitialized_memory"
    assert (seen[Profile.STRICT][name], seen["portable"][name]) == ("on", "off")


@pytest.mark.engine
def test_compiled_kernels_are_kept_per_image_and_shared_by_runs(tmp_path, image):
    project = Cli(tmp_path, "docker")
    program = "import torch; f = torch.compile(lambda x: (x.sin() * 3).sum()); print(f(torch.ones(8)).item())"
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    # Two runs of another image-independent cache folder: what the first compiled, the second only loads.
    tag = {"environment": environment}
    first = project.run("python", "-c", program, **tag).stdout
    (folder,) = project.manifest()["caches"]
    compiled = {p for p in (tmp_path / "cache").rglob("*.so")}
    assert compiled
    assert folder.startswith(str(tmp_path / "cache"))
    assert project.run("python", "-c", program, **tag).stdout == first
    assert {p for p in (tmp_path / "cache").rglob("*.so")} == compiled
