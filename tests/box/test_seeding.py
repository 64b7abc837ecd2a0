"""The recipe in the process, met by real torch: every way to start python, every flag, and each with its twin."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.cli import ROOT
from support.programs import FLAGS, RANKS, TRAINING

pytestmark = [pytest.mark.torch, pytest.mark.local]
TWINS = 2


def test_ranks_that_are_to_draw_the_same_do(local):
    local.write("ranks.py", RANKS)
    command = ["torchrun", "--nproc-per-node", "2", "--master-port", "0", "ranks.py"]
    same, differing = (
        [line.split()[1:] for line in local.run(*command, flags=("--seed", "42", *flags)).stdout.splitlines()]
        for flags in (("--rank-seeds", "same"), ())
    )
    assert same[0] == same[1]
    assert all(a != b for a, b in zip(*differing, strict=True))


def test_the_rank_moves_the_generators_and_not_the_hash_seed(local):
    program = "import random; print(random.random(), hash('x'))"
    zero, one = (local.run("python", "-c", program, environment={"RANK": r}).stdout.split() for r in "01")
    assert zero[0] != one[0]
    assert zero[1] == one[1]
    assert one[0] == local.run("python", "-c", program, flags=("--seed", "43")).stdout.split()[0]


def test_training_gives_the_same_weights_and_differs_without_each_part_of_the_recipe(local):
    local.write("train.py", TRAINING)
    first = local.run("python", "train.py").stdout
    assert local.run("python", "train.py").stdout == first
    assert local.run("python", "train.py", flags=("--seed", "43")).stdout != first
    plain = {local.run("python", "train.py", recipe=False).stdout for _ in range(TWINS)}
    assert len(plain | {first}) == TWINS + 1


@pytest.mark.parametrize("target", ["random", "numpy.random", "torch"])
def test_a_hook_that_leaves_one_generator_out_is_caught(local, target):
    """The negative twin of the whole module: with one generator unseeded, every run differs."""
    local.write("train.py", TRAINING)
    leave_out = f"import _reprobox_hook as h; h.TARGETS.pop({target!r})"
    local.write("sitecustomize.py", leave_out)
    environment = {"PYTHONPATH": str(local.folder)}
    results = {local.run("python", "train.py", environment=environment).stdout for _ in range(TWINS)}
    assert len(results) == TWINS
    tested = ("--seed", "42", "--self-test", "auto")
    refused = local.run("python", "train.py", flags=tested, environment=environment, check=False)
    assert (refused.returncode, refused.stdout) == (125, "")
    assert "the self-test failed, so the command was not started" in refused.stderr


EXPECTED = {
    "strict": {
        "deterministic": True,
        "warn_only": False,
        "cudnn_deterministic": True,
        "cudnn_benchmark": False,
        "cublas": ":4096:8",
    },
    "warn": {
        "deterministic": True,
        "warn_only": True,
        "cudnn_deterministic": True,
        "cudnn_benchmark": False,
        "cublas": ":4096:8",
    },
    "fast": {"deterministic": False, "warn_only": False, "cudnn_deterministic": False, "cublas": None, "threads": 4},
}


@pytest.mark.parametrize("profile", list(EXPECTED))
def test_the_flags_of_a_profile_are_in_force(local, profile):
    flags = json.loads(local.run("python", "-c", FLAGS, flags=("--seed", "42", "--profile", profile)).stdout)
    assert {k: flags[k] for k in EXPECTED[profile]} == EXPECTED[profile]
    assert flags["initial_seed"] == 42


def test_off_leaves_the_process_as_it_is(local):
    plain = json.loads(local.run("python", "-c", FLAGS, recipe=False).stdout)
    off = json.loads(local.run("python", "-c", FLAGS, flags=("--profile", "off")).stdout)
    varies = {"hash", "initial_seed"}
    assert {k: v for k, v in off.items() if k not in varies} == {k: v for k, v in plain.items() if k not in varies}
    again = json.loads(local.run("python", "-c", FLAGS, flags=("--profile", "off")).stdout)
    assert again["hash"] != off["hash"]


def test_threads_and_fill_follow_the_flags(local):
    flags = json.loads(local.run("python", "-c", FLAGS, flags=("--seed", "1", "--threads", "3", "--no-fill")).stdout)
    assert (flags["threads"], flags["fill"]) == (3, False)


def test_an_op_without_a_deterministic_kernel_raises_under_strict_and_warns_under_warn(local):
    program = "import torch; torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2)); print('went on')"
    strict = local.run("python", "-c", program, check=False)
    assert strict.returncode == 1
    assert "put_ does not have a deterministic implementation" in strict.stderr
    warn = local.run("python", "-c", program, flags=("--seed", "1", "--profile", "warn"))
    assert "went on" in warn.stdout
    assert "put_ does not have" in warn.stderr


def test_the_cheap_path_and_the_public_call_leave_the_same_state():
    program = """
import json, sys, torch
sys.path.insert(0, {root!r})
from reprobox.box.seeding import set_deterministic_algorithms
def state():
    import torch._inductor.config as inductor
    return [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(), inductor.deterministic]
if sys.argv[1] == "cheap":
    set_deterministic_algorithms(torch, warn_only=sys.argv[2] == "warn")
    assert "torch._inductor.config" not in sys.modules, "the cheap path is not cheap"
else:
    torch.use_deterministic_algorithms(True, warn_only=sys.argv[2] == "warn")
print(json.dumps(state()))
"""

    def state(path, mode, **environment):
        done = subprocess.run(
            [sys.executable, "-c", program.format(root=str(ROOT)), path, mode],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    for mode in ("error", "warn"):
        assert state("cheap", mode, TORCHINDUCTOR_DETERMINISTIC="1") == state("public", mode)
