"""Which programs, and which modules, reprobox takes of this machine: none that lies in the project."""

from __future__ import annotations

import os
import sys

import pytest

from reprobox.host_programs import find_program, host_environment, is_of_the_project, path_outside, python_command


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "reprobox.toml").touch()
    (tmp_path / "link").symlink_to(root / "src")
    (root / "out").symlink_to(tmp_path)
    monkeypatch.chdir(root / "src")
    return root


def test_a_search_path_keeps_what_is_absolute_and_outside_of_the_project(project, tmp_path):
    inside = (
        str(project),
        f"{project}/bin",
        f"{project}/src/../x",
        f"{tmp_path}/link",
        f"{project}/out",
        "bin",
        ".",
        "",
    )
    assert path_outside(os.pathsep.join(("/usr/bin", *inside, f"{tmp_path}/beside"))) == f"/usr/bin:{tmp_path}/beside"


def test_a_program_of_the_project_is_passed_over(project, tmp_path, monkeypatch):
    for folder in (project / "bin", tmp_path / "bin"):
        folder.mkdir()
        (folder / "tool").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}:{tmp_path / 'bin'}")
    assert find_program("tool") == str(tmp_path / "bin" / "tool")
    assert is_of_the_project(str(project / "bin" / "tool"))


@pytest.mark.parametrize("given", ["", ":", ".", "{project}", "{project}/src:"])
def test_a_module_path_that_leads_into_the_project_alone_is_left_out(project, monkeypatch, given):
    monkeypatch.setenv("PYTHONPATH", given.format(project=project))
    assert "PYTHONPATH" not in host_environment()


def test_a_module_path_elsewhere_stays(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"/opt/modules::{project}")
    assert host_environment()["PYTHONPATH"] == "/opt/modules"
    assert python_command("-m", "pip") == [sys.executable, "-P", "-m", "pip"]
