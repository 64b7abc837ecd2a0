"""What a prompt waits for: help, version and completion import none of the heavy libraries."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    "arguments",
    [["recipe"], ["runs", "list"], ["runs", "list", "--json"], ["run", "--dry-run", "--engine", "local", "true"]],
)
def test_a_reader_that_has_gone_is_141_without_a_word(tmp_path, arguments):
    (tmp_path / "reprobox.toml").write_text("")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(
            [str(BIN / "reprobox"), *arguments], cwd=tmp_path, stdout=nobody, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (141, "")
    with open(os.devnull, "wb") as somebody:
        assert subprocess.run([str(BIN / "reprobox"), *arguments], cwd=tmp_path, stdout=somebody).returncode == 0
