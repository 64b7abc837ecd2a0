"""The promise itself: the SHA-256 of trained weights from separate boxes, and its negative twins."""

from __future__ import annotations

import re
import shutil

import pytest
from support.cli import ROOT, Cli

TWINS = 2
EXAMPLES = {"charlm": ("examples/charlm/train.py", "8"), "convnet": ("examples/convnet/train.py", "8")}
PLACES = [
    pytest.param("docker", "charlm", marks=pytest.mark.engine),
    pytest.param("docker", "convnet", marks=pytest.mark.engine),
    pytest.param("local", "charlm", marks=pytest.mark.local),
]


def weights(done):
    (digest,) = re.findall(r"^weights sha256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    return digest


@pytest.mark.parametrize(("engine", "example"), PLACES)
def test_the_same_seed_gives_the_same_weights_and_nothing_else_does(request, tmp_path, engine, example):
    if engine == "docker":
        request.getfixturevalue("image")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    project = Cli(tmp_path, engine)
    program, steps = EXAMPLES[example]
    command = ["python", program, "--steps", steps]
    first = weights(project.run(*command))
    assert weights(project.run(*command)) == first
    assert weights(project.run(*command, flags=("--seed", "43"))) != first
    without = {weights(project.run(*command, flags=("--profile", "off"))) for _ in range(TWINS)}
    assert len(without | {first}) == TWINS + 1


@pytest.mark.local
def test_without_reprobox_two_plain_runs_differ(tmp_path):
    plain = Cli(tmp_path, "local")
    program, steps = EXAMPLES["charlm"]
    command = ["python", str(ROOT / program), "--steps", steps]
    assert len({weights(plain.run(*command, recipe=False)) for _ in range(2)}) == 2


@pytest.mark.engine
@pytest.mark.parametrize("knob", ["--threads", "--rank-seeds"])
def test_one_knob_moved_changes_the_bits_or_is_shown_not_to(tmp_path, image, knob):
    """Threads change the order of sums in the transformer; the rank rule changes nothing at rank 0."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    project = Cli(tmp_path, "docker")
    program, steps = EXAMPLES["charlm"]
    command = ["python", program, "--steps", steps]
    first = weights(project.run(*command))
    moved = weights(project.run(*command, flags=("--seed", "42", knob, "1" if knob == "--threads" else "same")))
    assert (moved == first) == (knob == "--rank-seeds")
