"""A user without HOME and without an entry in passwd, as containers of clusters and CI jobs have them."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from support.cli import BIN

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that does not exist"),
]

UID = 54321
RIGHTS = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # the checkout may be root's alone
AS_NOBODY = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *RIGHTS, "--", "env", "-i"]


@pytest.fixture
def call(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o111 != 0o111:
            path.chmod(path.stat().st_mode | 0o111)
    (folder / "reprobox.toml").write_text("")
    os.chown(folder, UID, UID)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)

    def call(*words):
        command = [*AS_NOBODY, f"PATH={BIN}:{os.environ['PATH']}", f"TMPDIR={temporary}", "reprobox", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert "~" not in os.listdir(folder), "a folder called ~ was made in the project"
        assert "reprobox itself failed" not in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def test_a_run_of_a_user_without_a_home_is_as_any_other(call):
    program = "import random; print(random.random())"
    done = call("run", "--engine", "local", "--seed", "7", "--self-test", "off", "--", "python", "-c", program)
    assert (done.returncode, done.stdout) == (0, "0.32383276483316237\n"), done.stderr
    assert json.loads(call("runs", "--json").stdout)["runs"][0]["exit_code"] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--version",), 0),
        (("recipe",), 0),
        (("runs",), 0),
        (("trust",), 0),
        (("run", "--engine", "local", "--dry-run", "true"), 0),
        (("gpus",), 125),
        (("fetch", "--offline"), 125),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_every_command_works_or_says_why_not(call, words, code):
    done = call(*words)
    assert done.returncode == code, done.stderr
