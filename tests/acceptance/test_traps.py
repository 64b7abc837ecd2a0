"""A project full of files that a Python, or a shell, on its folder would take for its own: no command runs one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from support.cli import BIN
from support.locking import Place

NAMES = (
    *(
        "pip",
        "json",
        "torch",
        "numpy",
        "typing",
        "os",
        "re",
        "types",
        "sitecustomize",
        "usercustomize",
        "site",
        "encodings",
    ),
    *(
        "subprocess",
        "tempfile",
        "typer",
        "rich",
        "docker",
        "requests",
        "platformdirs",
        "packaging",
        "tomllib",
        "setuptools",
    ),
)
PROGRAMS = ("git", "uv", "pip", "apt-get", "apt-cache", "dpkg-deb", "docker", "podman", "sh", "nvidia-smi", "python3")


def plant(folder, marker):
    """Fill ``folder`` with modules, packages and programs that each leave a marker."""
    marker.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(marker / name)!r}, 'w')\n")
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n: >{marker / name}-program\n")
        program.chmod(0o755)


@pytest.fixture
def trapped(tmp_path):
    """A project with traps in it; PATH leads into it by its name, by a link, and from where one stands."""
    place = Place(tmp_path / "project", tmp_path / "cache").write()
    subprocess.run(["git", "init", "--quiet", place.folder], check=True)
    plant(place.folder, tmp_path / "marks")
    (tmp_path / "link").symlink_to(place.folder)
    path = place.environment["PATH"]
    place.environment["PATH"] = f"{place.folder / 'bin'}:{tmp_path / 'link' / 'bin'}:bin:{path}"
    place.marks = tmp_path / "marks"
    return place


def called(trapped, *words):
    return subprocess.run(
        words, cwd=trapped.folder, env=trapped.environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        *("gpus", "init --force", "doctor --engine docker", "run --engine local --dry-run true", "runs list", "recipe"),
        "selftest --engine docker --cases nothing",
    ],
)
def test_no_command_runs_a_file_of_the_project_it_stands_in(trapped, words):
    called(trapped, BIN / "reprobox", *words.split())
    assert os.listdir(trapped.marks) == []


@pytest.mark.timeout(600)
def test_lock_and_fetch_run_no_file_of_the_project_they_stand_in(trapped, locked_once):
    trapped.environment["XDG_CACHE_HOME"] = str(locked_once.cache)
    locked = called(trapped, BIN / "reprobox", "lock")
    fetched = called(trapped, BIN / "reprobox", "fetch")
    assert (locked.returncode, fetched.returncode, os.listdir(trapped.marks)) == (0, 0, [])


def test_doctor_on_the_local_engine_imports_torch_from_where_it_is_installed(trapped):
    shutil.rmtree(trapped.folder / "bin")  # with --engine local, a python of the project's is what was asked for
    trapped.environment["PYTHONPATH"] = ""
    said = called(trapped, BIN / "reprobox", "doctor", "--engine", "local")
    assert os.listdir(trapped.marks) == []
    assert "torch" in said.stdout


def without_the_standard_library_s(trapped):
    for name in ("types", "typing", "re", "os"):
        (trapped.folder / f"{name}.py").unlink()


def test_python_m_reprobox_takes_nothing_of_its_current_folder(trapped):
    # What Python's own runpy imports first is out of reprobox's hands.
    without_the_standard_library_s(trapped)
    done = called(trapped, sys.executable, "-m", "reprobox", "runs", "list")
    assert (done.returncode, os.listdir(trapped.marks)) == (0, [])


def test_such_a_folder_traps_what_is_started_in_it(trapped):
    without_the_standard_library_s(trapped)
    called(trapped, sys.executable, "-c", "import pip, json, torch")
    called(trapped, "/bin/sh", "-c", "git")
    assert {"pip", "json", "torch", "git-program"} <= set(os.listdir(trapped.marks))
