"""What ``make run`` does around the box: who may install an engine, and what it says of two runs."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from support.cli import ROOT

NOBODY = 4321


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without rights")
def test_a_user_without_rights_is_told_the_two_commands_and_nothing_is_installed():
    # Handed over as text: that user may not be allowed into the folder of this checkout.
    done = subprocess.run(
        ["sh", "-s"],
        input=(ROOT / "scripts" / "engine.sh").read_text(),
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": "unix:///no/such.sock"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.count("    sudo ") == 2
    assert "apt-get install" in done.stderr
    assert "usermod -aG docker" in done.stderr


@pytest.fixture
def twice(tmp_path):
    """``run-twice.sh`` with an engine that answers as ``engine`` says and a reprobox that prints ``weights``."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "scripts" / "run-twice.sh", tmp_path / "scripts")

    def run(weights, engine=0):
        programs = {
            "scripts/engine.sh": f"exit {engine}",
            "bin/make": "exit 0",
            "bin/reprobox": f'[ "$1" = build ] && exit 0\necho "$@" >>calls\n{weights}',
        }
        for name, body in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            ["scripts/run-twice.sh", "train.py"],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_two_runs_with_the_same_weights_agree(twice):
    done, calls = twice("echo weights sha256 abc")
    assert done.returncode == 0
    assert "both runs agree to the last bit: abc" in done.stdout
    assert calls == ["run --engine docker --gpus none --seed 42 -- python train.py"] * 2


@pytest.mark.parametrize(
    ("weights", "said"),
    [("echo weights sha256 $$", "the runs differ"), ("echo done", "printed no weights hash"), ("exit 7", "")],
    ids=["different weights", "no weights", "a failed run"],
)
def test_anything_else_is_a_failure(twice, weights, said):
    done, _ = twice(weights)
    assert done.returncode != 0
    assert "agree" not in done.stdout
    assert said in done.stderr


def test_without_an_engine_it_says_so_and_uses_the_local_one(twice):
    done, calls = twice("echo weights sha256 abc", engine=3)
    assert done.returncode == 0
    assert "--engine local isolates nothing" in done.stderr
    assert all("--engine local" in call for call in calls)
