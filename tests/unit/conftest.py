"""Unit tests are hermetic by force: no socket, no process. And a machine for the doctor to examine."""

from __future__ import annotations

import os
import subprocess

import pytest
from support.earlier_runs import EarlierRuns

from reprobox.doctor import Patient
from reprobox.runs import later
from reprobox.settings import Settings


@pytest.fixture(autouse=True)
def _hermetic(monkeypatch, socket_disabled):
    def refuse(*arguments, **_options):
        pytest.fail(f"a unit test started a process: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    for name in list(os.environ):
        if name.startswith("REPROBOX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def patient(tmp_path):
    """A machine of which nothing is known yet, with no setting and no environment."""
    return Patient(settings=Settings.load({}, tmp_path, {}), directory=tmp_path, environment={})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A project with runs that were, and a fake engine for those that nobody minds any more."""
    made = EarlierRuns(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(later, "open_engine", lambda _name: made.engine)
    monkeypatch.setattr(later, "FOLLOW_SECONDS", 0.005)
    return made
