"""reprobox without torch: this checkout with one package in its list, so that ``reprobox build`` takes seconds.

Everything else of the image is what it always is: the Dockerfile, the base, the box, the labels.
"""

from __future__ import annotations

import json
import shutil

from support.cli import BIN, ROOT, Cli
from support.daemon import TAG, Daemon

PACKAGE = "filelock"
VENV = """\
#!/bin/sh
set -eu
/usr/bin/python3 -m venv --without-pip /opt/venv
/opt/venv/bin/python -m zipfile -e "$2"/*.whl /opt/venv/lib/python3.11/site-packages
"""
BUILD = ("build", "--base", "bootstrap", "--no-compiler", "--tag", TAG)


def small_edition(folder):
    """Copy this checkout to ``folder``, as far as an image is made of it, with a list of one package."""
    for name in ("reprobox", "docker"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Dockerfile", folder)
    lock = folder / "docker" / "locks" / "cpu.txt"
    lines = [line for line in lock.read_text().splitlines(keepends=True) if line.startswith(f"{PACKAGE}==")]
    assert len(lines) == 1
    lock.write_text(lines[0])
    (folder / "docker" / "make-venv.sh").write_text(VENV)
    return folder


def build(edition, cli, *options):
    """Have an edition build its image on the engine of ``cli``, as :data:`support.daemon.TAG`; return what it reports."""
    environment = {"PYTHONPATH": str(edition)}
    done = cli.call(BIN / "python", "-m", "reprobox", *BUILD, *options, "--json", environment=environment)
    return json.loads(done.stdout)


def small_archive(folder, edition):
    """Have Debian 12's Docker build the image of an edition, and save it in ``folder``, with what the save reports as ``saved.json``."""
    cli = Cli(folder, "docker")
    with Daemon() as daemon:
        cli.environment |= daemon.start().environment
        made = build(edition, cli)
        saved = json.loads(cli.reprobox("save", "small.img", "--image", TAG, "--json").stdout)
    assert saved["image_id"] == made["image_id"]
    (folder / "saved.json").write_text(json.dumps({**saved, "file": str(folder / "small.img")}))
