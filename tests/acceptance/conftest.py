"""Machines with GPUs that a stand-in makes up, and a project that was locked."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from support.gpus_table import with_uuids_of_its_own
from support.locking import Place
from support.session import folder_once


@pytest.fixture
def driver(standin_nvml):
    """An NVIDIA driver with eight GPUs that no other test claims."""
    return with_uuids_of_its_own(standin_nvml)


@pytest.fixture
def gpus_cli(local, driver):
    """The command line on a machine with eight GPUs, without any engine but itself."""
    local.environment |= {**driver.environment(), "DOCKER_HOST": f"unix://{local.folder}/no.sock", "COLUMNS": "160"}
    local.environment.pop("CUDA_VISIBLE_DEVICES", None)
    return local


@pytest.fixture
def sleeper():
    """A process that computes, as far as the stand-in can tell."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def locked_once(tmp_path_factory):
    """A project, locked once: asking uv and apt takes most of a minute."""

    def lock(folder):
        (folder / "said").write_text(place_in(folder).write().call("lock").stderr)

    folder = folder_once(tmp_path_factory, "lock", lock)
    place = place_in(folder)
    place.said = (folder / "said").read_text()
    return place


def place_in(folder):
    return Place(folder / "project", folder / "cache")


@pytest.fixture
def locked(locked_once, tmp_path):
    """A fresh copy of the locked project."""
    place = Place(tmp_path / "project", locked_once.cache).write()
    shutil.copy(locked_once.path, place.path)
    return place


@pytest.fixture(scope="session")
def fetched(locked_once, tmp_path_factory):
    """The project that was locked once, with everything in a cache that nothing else is added to."""

    def fetch(folder):
        place = place_in(folder).write()
        shutil.copy(locked_once.path, place.path)
        (folder / "fetch.json").write_text(place.call("fetch", "--json").stdout)

    folder = folder_once(tmp_path_factory, "fetch", fetch)
    place = place_in(folder)
    place.fetch = json.loads((folder / "fetch.json").read_text())
    return place
