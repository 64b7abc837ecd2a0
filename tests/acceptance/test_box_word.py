"""What a box writes is never taken for what the host wrote, nor run by another project's box."""

from __future__ import annotations

import json
import os

import pytest
from support.cli import Cli

pytestmark = pytest.mark.engine

FORGE = """
import json, os, pathlib
pathlib.Path(os.environ["REPROBOX_RUN_DIR"], "selftest.json").write_text(json.dumps({"forged": True}))
"""


def test_a_command_cannot_forge_the_certificate_in_its_run_s_record(docker):
    docker.run("python", "-c", FORGE)
    (run,) = docker.runs()
    assert not (run / "selftest.json").exists()
    assert docker.manifest()["self_test"]["verdict"] == "off"


def test_a_command_cannot_replace_the_certificate_that_the_host_wrote(docker, tmp_path_factory):
    docker.environment |= {"REPROBOX_SELFTEST": "auto", "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    docker.run("python", "-c", FORGE)
    (run,) = docker.runs()
    assert json.loads((run / "selftest.json").read_text())["schema"] == "reprobox.certificate/1"


def test_what_is_taken_over_from_the_box_is_marked_as_its_word(docker):
    docker.run("python", "-c", "pass")
    assert docker.manifest()["receipt"]["told_by"] == "box"


PLANT = 'mkdir -p "$TORCHINDUCTOR_CACHE_DIR" && touch "$TORCHINDUCTOR_CACHE_DIR/planted"'
LOOK = 'test -e "$TORCHINDUCTOR_CACHE_DIR/planted" && echo there || echo not there'


def test_what_one_project_compiled_is_not_there_for_another_one_and_stays_for_itself(image, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    a, b = (tmp_path / name for name in "ab")
    for folder in (a, b):
        folder.mkdir()
    os.symlink(a, tmp_path / "link")
    Cli(a, "docker").run("sh", "-c", PLANT, environment=cache)
    seen = {
        name: Cli(tmp_path / name, "docker").run("sh", "-c", LOOK, environment=cache).stdout.strip()
        for name in ("a", "link", "b")
    }
    assert seen == {"a": "there", "link": "there", "b": "not there"}
