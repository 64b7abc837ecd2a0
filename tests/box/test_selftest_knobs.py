"""The self-test as the program that it is, in the recipe's environment: what it finds, and every knob read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from support.cli import ROOT, clean_environment

from reprobox.box.environment import box_environment
from reprobox.box.selftest import runner
from reprobox.box.selftest.knobs import hash_under_seed
from reprobox.knobs import KNOBS
from reprobox.recipe import Recipe

pytestmark = [pytest.mark.torch, pytest.mark.local]
RECIPE = Recipe(seed=42, portable=True)


def in_the_recipe(program, recipe=RECIPE, arguments=(), **variables):
    """Run ``program`` as the box would: the recipe's environment, and what it does to each process."""
    given = {**clean_environment(), **recipe.to_variables(), "PYTHONPATH": str(ROOT), **variables}
    given.pop("CUDA_VISIBLE_DEVICES", None) if "CUDA_VISIBLE_DEVICES" not in variables else None
    environment, _ = box_environment(given, recipe, {})
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def planted(tmp_path, text):
    """A self-test with something changed in both of its processes."""
    path = tmp_path / "planted.py"
    path.write_text(
        "import os, sys, torch\n"
        "from reprobox.box.selftest import measure, runner\n"
        "from reprobox.box.selftest.case import Case\n"
        "runner.LAUNCHER = __file__\n"
        f"{text}\n"
        "raise SystemExit(runner.main())\n"
    )
    return path


FAULTS = """
def per_process(bench):
    return [bench.values(100) + (os.getpid() % 1000003) * 1e-6]
def second_only(bench):
    if "--second" in sys.argv:
        raise RuntimeError("here it cannot be computed")
    return [bench.values(100)]
def printing(bench):
    os.write(1, b"MKL_VERBOSE says so\\n")
    return [bench.values(100)]
def put(bench):
    return [bench.values(100).put_(bench.integers(100, 50), bench.values(50))]
def memory(bench):
    return [torch.empty(100)]  # filled, or whatever was there
runs = {"per process": per_process, "second only": second_only, "printing": printing, "put": put, "memory": memory}
runner.CASES = (*runner.CASES[:2], *(Case(name=name, run=run) for name, run in runs.items()))
"""


def test_the_whole_program_finds_what_differs_in_the_second_process_and_nothing_else(tmp_path):
    done = in_the_recipe(
        planted(tmp_path, FAULTS), arguments=["--repeat", "2", "--cases", "*m*,put,per process,pr*,second*"]
    )
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert {case["name"]: case["verdict"] for case in found["cases"]} == {
        "matmul": "same",
        "per process": "different",
        "second only": "different",
        "printing": "same",
        "put": "unsupported",
        "memory": "same",
    }
    assert [failure.partition(":")[0] for failure in found["failures"]] == [
        "per process[float32] cpu",
        "second only[float32] cpu",
    ]
    assert found["canaries_missed"] == []
    assert {knob["verdict"] for knob in found["knobs"]} == {"in force"}
    assert [knob["name"] for knob in found["knobs"]] == [knob.name for knob in KNOBS]
    assert (found["tier"], found["repeat"], found["profile"]) == ("custom", 2, "strict")
    assert "MKL_VERBOSE says so" in done.stderr


def test_a_blind_measure_a_knob_and_a_gpu_that_are_not_there_fail_the_whole_program(tmp_path):
    text = "measure._bytes = lambda tensor: b''\ntorch.use_deterministic_algorithms(False)"
    done = in_the_recipe(
        planted(tmp_path, text), arguments=["--repeat", "2", "--cases", "matmul"], CUDA_VISIBLE_DEVICES="GPU-none"
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"] == [
        "the planted fault 'one ulp' was not noticed",
        "the planted fault 'permutation' was not noticed",
        "the planted fault 'unseeded draw' was not noticed",
        "torch.use_deterministic_algorithms is False and should be True",
        "the GPUs seen are none, and those asked for GPU-none",
    ]


def test_a_core_is_kept_busy_only_while_someone_waits():
    command = [sys.executable, "-IS", "-c", runner.BURN]
    burner = subprocess.Popen([*command, str(os.getpid())])
    time.sleep(0.3)
    assert burner.poll() is None
    burner.kill()
    burner.wait()
    assert subprocess.run([*command, "0"], timeout=30).returncode == 0, "whoever started it is no more"


# --- knobs ------------------------------------------------------------------------------------------------------------

SABOTAGE = """
import json, os, random
import numpy as np
import torch
from reprobox.box.selftest.knobs import read_knobs
from reprobox.knobs import KNOBS
from reprobox.recipe import BoxSettings
recipe = BoxSettings.parse(os.environ).recipe
def off(environment=os.environ):
    return {k.name: [k.found, k.verdict] for k in read_knobs(torch, recipe, 42, environment) if k.verdict != "in force"}
found = {"nothing": off()}
for knob in KNOBS:
    if knob.acts == "environment":
        found[knob.name] = off({k: v for k, v in os.environ.items() if k != knob.name})
def flag(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    result = off()
    setattr(owner, name, before)
    return result
found["torch.backends.cudnn.deterministic"] = flag(torch.backends.cudnn, "deterministic", False)
found["torch.backends.cudnn.benchmark"] = flag(torch.backends.cudnn, "benchmark", True)
fill = "torch.utils.deterministic.fill_uninitialized_memory"
found[fill] = flag(torch.utils.deterministic, "fill_uninitialized_memory", False)
torch.use_deterministic_algorithms(True, warn_only=True)
found["warn only"] = off()
torch.use_deterministic_algorithms(False)
found["torch.use_deterministic_algorithms"] = off()
torch.use_deterministic_algorithms(True)
torch.set_num_threads(3)
found["set_num_threads"] = off()
torch.set_num_threads(4)
state = random.getstate()
random.random()
found["random.seed"] = off()
random.setstate(state)
state = np.random.get_state()
np.random.rand()
found["numpy.random.seed"] = off()
np.random.set_state(state)
state = torch.get_rng_state()
torch.rand(1)
found["torch.manual_seed"] = off()
torch.manual_seed(43)
found["another torch seed"] = off()
torch.manual_seed(42)
found["nothing again"] = off()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sabotaged(tmp_path_factory):
    """Each knob switched off in turn, and what was then read as not in force."""
    program = tmp_path_factory.mktemp("sabotage") / "program.py"
    program.write_text(SABOTAGE)
    done = in_the_recipe(program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("knob", [knob.name for knob in KNOBS])
def test_a_knob_switched_off_alone_is_caught_by_name(sabotaged, knob):
    assert list(sabotaged[knob]) == [knob]
    assert sabotaged[knob][knob][1] == "not in force"


def test_with_nothing_switched_off_every_knob_is_in_force(sabotaged):
    assert sabotaged["nothing"] == sabotaged["nothing again"] == {}


def test_a_knob_set_half_or_otherwise_is_caught(sabotaged):
    assert sabotaged["warn only"] == {"torch.use_deterministic_algorithms": ["True, warn_only=True", "not in force"]}
    assert list(sabotaged["another torch seed"]) == ["torch.manual_seed"]
    assert set(sabotaged["set_num_threads"]) == {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}


AT_START = """
import json, os, torch
from reprobox.box.selftest.knobs import read_knobs
from reprobox.knobs import environment_of
from reprobox.recipe import BoxSettings
recipe = BoxSettings.parse(os.environ).recipe
said = {k: v for k, v in os.environ.items() if k in environment_of(recipe)}
if "PRETEND" in os.environ:
    said = environment_of(recipe)
readings = read_knobs(torch, recipe, 42, said)
print(json.dumps({k.name: [k.found, k.verdict] for k in readings if k.verdict != "in force"}))
"""
OWN = {
    "PYTHONHASHSEED": "7",
    "MKL_NUM_THREADS": "3",
    "OMP_WAIT_POLICY": "ACTIVE",
    "NCCL_ALGO": "Tree",
    "ATEN_CPU_CAPABILITY": "default",
}


@pytest.fixture
def at_start(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(AT_START)

    def run(**variables):
        done = in_the_recipe(program, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_callers_own_value_is_theirs(at_start):
    assert at_start(**OWN) == {name: [value, "yours"] for name, value in OWN.items()}
    assert at_start(OMP_NUM_THREADS="3") == {"OMP_NUM_THREADS": ["3", "yours"]}


def test_what_the_variables_say_is_not_believed_where_the_process_does_otherwise(at_start):
    assert at_start(**OWN, PRETEND="1") == {
        "PYTHONHASHSEED": ["another seed", "not in force"],
        "OMP_NUM_THREADS": ["3", "not in force"],
        "MKL_NUM_THREADS": ["3", "not in force"],
        "ATEN_CPU_CAPABILITY": ["default", "not in force"],
    }


@pytest.mark.parametrize("seed", [0, 1, 42, 20200220, 2**31, 2**32 - 1])
@pytest.mark.parametrize("text", ["", "a", "reprobox", "eight by", "something longer than two words of eight"])
def test_the_hash_of_a_text_is_what_an_interpreter_gives(seed, text):
    if not text:
        assert hash("") == 0  # CPython's own exception
        return
    program = "import sys; print(hash(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-S", "-c", program, text], env=environment, stdout=subprocess.PIPE)
    assert int(done.stdout) == hash_under_seed(text, seed)
    assert int(done.stdout) != hash_under_seed(text, seed ^ 1)


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_counts_every_result_the_all_reduce_too():
    done = in_the_recipe(runner.LAUNCHER, arguments=("--cases", "matmul,all-reduce", "--repeat", "2"))
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"case"')]
    results = json.loads(done.stdout)["cases"]
    assert [line["case"] for line in told] == [f"{r['name']}[{r['dtype']}] {r['device']}" for r in results]
    assert [(line["done"], line["total"]) for line in told] == [(n, len(results)) for n in range(len(results))]
    assert results[-1]["name"] == "all-reduce"
