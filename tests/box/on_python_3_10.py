"""Imports and runs the box half on Python 3.10, with nothing but the standard library: ``python3.10 tests/box/on_python_3_10.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import random; print(random.random())"


def draw(seed: str) -> str:
    command = [sys.executable, "-IS", str(ROOT / "reprobox/box/local.py"), "--", sys.executable, "-c", PROGRAM]
    environment = {"PATH": "/usr/bin:/bin", "REPROBOX_SEED": seed}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import reprobox.errors
    import reprobox.knobs
    import reprobox.recipe

    assert reprobox.recipe.BoxSettings.parse({"REPROBOX_SEED": "7"}).recipe.seed == 7
    assert draw("42") == draw("42") != draw("43")
    print(f"the box half runs on Python {sys.version.split()[0]}")
