"""The box half on the oldest Python it promises to run on (CI has it; here where one is found)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def interpreters():
    """This Python, and a 3.10 that really starts (a shim on PATH may not)."""
    found = [sys.executable]
    candidate = shutil.which("python3.10")
    if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
        found.append(candidate)
    return found


@pytest.mark.local
@pytest.mark.parametrize("python", interpreters())
def test_the_box_half_runs(python):
    script = Path(__file__).with_name("on_python_3_10.py")
    done = subprocess.run([python, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the box half runs" in done.stdout
