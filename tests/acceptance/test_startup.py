"""What a prompt waits for: help, version and completion import none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.cli import BIN

HEAVY = {"torch", "numpy", "docker", "requests", "pynvml", "rich"}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--version"], {}),
        (["--help"], {}),
        (["run", "--help"], {}),
        ([], {"_REPROBOX_COMPLETE": "complete_bash", "COMP_WORDS": "reprobox r", "COMP_CWORD": "1"}),
    ],
    ids=["version", "help", "run help", "completion"],
)
def test_nothing_heavy_is_imported(arguments, environment):
    # The import listing is the interpreter's own, so that nothing about the check is loaded beside it.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(BIN / "reprobox"), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "reprobox.cli" in imported, "the listing is empty, so this test is void"
    assert not {name for name in imported if name.split(".")[0] in HEAVY}
