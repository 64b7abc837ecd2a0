"""Unit tests are hermetic by force: no socket, no process."""

from __future__ import annotations

import os
import subprocess

import pytest


@pytest.fixture(autouse=True)
def _hermetic(monkeypatch, socket_disabled):
    def refuse(*arguments, **_options):
        pytest.fail(f"a unit test started a process: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    for name in list(os.environ):
        if name.startswith("REPROBOX_"):
            monkeypatch.delenv(name)
