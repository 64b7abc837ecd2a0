"""Settings of Docker's that are wrong, and streams that are closed or full: a sentence, or the run all the same."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from support.cli import BIN

pytestmark = pytest.mark.local


@pytest.fixture
def helper(local, tmp_path):
    """Make docker's login come from a program of these lines."""

    def make(*lines):
        program = tmp_path / "bin" / "docker-credential-test"
        program.parent.mkdir()
        program.write_text("\n".join(["#!/bin/sh", *lines]))
        program.chmod(0o755)
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "config.json").write_text(json.dumps({"credsStore": "test"}))
        local.environment["DOCKER_CONFIG"] = str(tmp_path / "config")
        local.environment["PATH"] = f"{program.parent}:{local.environment['PATH']}"

    return make


@pytest.mark.engine
def test_a_credential_helper_that_hangs_is_given_up_and_ended(local, helper, tmp_path):
    helper(f"echo $$ >{tmp_path}/pid", "exec sleep 300")
    patched = "import reprobox.engines.login as login; login.HELPER_SECONDS = 2; from reprobox.cli import main; main()"
    done = local.call(BIN / "python", "-c", patched, "pull", "127.0.0.1:9/x:1", check=False, timeout=60)
    assert done.returncode == 125
    assert "the login for 127.0.0.1:9 cannot be read (its credential helper has not answered for 2 s)" in done.stderr
    pid = (tmp_path / "pid").read_text().strip()
    time.sleep(0.2)
    assert not Path(f"/proc/{pid}/exe").exists()


@pytest.mark.engine
@pytest.mark.parametrize("lines", [("echo nonsense",), ("exit 3",), ('echo "[1]"',)])
def test_a_credential_helper_that_answers_nonsense_is_named(local, helper, lines):
    helper(*lines)
    done = local.reprobox("pull", "127.0.0.1:9/x:1", check=False)
    assert done.returncode == 125
    assert "reprobox itself failed" not in done.stderr
    assert done.stderr.startswith("reprobox: the login for 127.0.0.1:9 cannot be read")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"DOCKER_HOST": "ssh://me@127.0.0.1"}, "paramiko, which is not installed"),
        (
            {"DOCKER_HOST": "tcp://127.0.0.1:9", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/nonexistent"},
            "the TLS settings for tcp://127.0.0.1:9 are wrong",
        ),
    ],
    ids=["ssh without paramiko", "TLS without certificates"],
)
def test_an_address_that_cannot_be_used_as_it_is_set_is_named_as_such(local, environment, sentence):
    done = local.reprobox("run", "--engine", "docker", "true", environment=environment, check=False)
    assert done.returncode == 125
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 125), ("2>/dev/full", 0)])
@pytest.mark.engine
def test_a_detached_run_goes_on_where_a_stream_is_closed_or_full(docker, closed, code):
    words = f'exec "$@" {closed}'
    run = ["sh", "-c", words, "sh", *docker.argv("true", flags=("-d", "--seed", "1"))]
    done = subprocess.run(run, cwd=docker.folder, env=docker.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "reprobox itself failed" not in done.stderr
    assert docker.reprobox("runs", "wait").returncode == 0
