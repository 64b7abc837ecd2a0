"""``reprobox doctor`` where the programs that it asks, git and python, take too long or say more than they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from reprobox.doctor import Patient, machine
from reprobox.doctor.check import examine
from reprobox.doctor.table import CHECKS
from reprobox.settings import Settings


@pytest.fixture
def patient(tmp_path, monkeypatch):
    """A person in a checkout, with a folder of programs that comes first on PATH."""
    (tmp_path / "project" / ".git").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = tmp_path / "project"
    return Patient(settings=Settings.load({}, folder, {}), directory=folder, environment={})


@pytest.fixture
def program(tmp_path, patient):
    def program(name, text):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return program


def look(patient, name, **changed):
    (check,) = (check for check in CHECKS if check.name == name)
    ((_, finding),) = examine(patient, [replace(check, needs=(), only=None, **changed)])
    return finding


def test_a_git_that_takes_too_long_is_warned_of_with_what_it_means_for_runs(patient, program, monkeypatch):
    monkeypatch.setattr(machine, "GIT_SECONDS", 0.2)
    shutil.rmtree(patient.directory / ".git")
    subprocess.run(["git", "init", "--quiet", patient.directory], check=True)
    program("git", "exec sleep 4.5")
    slow = look(patient, "git")
    monkeypatch.undo()
    quick = look(patient, "git")
    assert [slow.verdict, quick.verdict] == ["warn", "ok"]
    assert "does not record whether files differ" in slow.seen
    assert "git status" in slow.remedy


@pytest.mark.parametrize(
    "more",
    ["", "import atexit, sys; atexit.register(print, 'a leaked semaphore', file=sys.stderr)", "print('[]', end='')"],
)
def test_a_python_that_says_more_than_it_is_asked_is_understood(patient, program, tmp_path, more):
    (tmp_path / "torch.py").write_text(f"__version__ = '2.9.1'\nclass version: cuda = None\n{more}")
    program("python", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    finding = look(patient, "python")
    assert finding.verdict == "ok"
    assert "torch 2.9.1 (CPU alone)" in finding.seen


def test_a_program_called_python_that_says_nothing_of_torch_fails(patient, program):
    program("python", "echo hello")
    assert look(patient, "python").verdict == "fail"


@pytest.mark.parametrize("how", ["exec sleep 30", "sleep 30\ntrue"], ids=["itself", "a wrapper's child"])
def test_a_python_that_hangs_is_ended_with_all_that_it_started(patient, program, tmp_path, how):
    mark = f"REPROBOX_TEST={tmp_path}"
    program("python", f"export {mark}\n{how}")
    finding = look(patient, "python", seconds=0.5)
    assert finding.verdict == "fail"
    assert "torch has not loaded" in finding.seen
    end = time.monotonic() + 5
    while (left := with_environment(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def with_environment(entry):
    """The processes that have ``entry`` in their environment."""
    done = subprocess.run(
        f"grep -lsaF {entry} /proc/[0-9]*/environ", shell=True, stdout=subprocess.PIPE, text=True, check=False
    )
    return [path for path in done.stdout.split() if path != "/proc/self/environ"]
