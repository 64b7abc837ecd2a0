"""``--engine local``: no box, and all the same a command that ends when it ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reprobox.box

pytestmark = pytest.mark.local


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_run(local):
    started = time.monotonic()
    assert local.run("sh", "-c", "echo out; sleep 60 & exit 3", check=False).returncode == 3
    assert time.monotonic() - started < 30


def test_a_grandchild_that_prints_on_does_not_hold_the_run(local):
    program = "(while sleep 0.05; do echo x; done) & echo out; exit 3"
    done = local.run("sh", "-c", program, check=False, timeout=30)
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == "out"


def test_what_the_command_said_is_whole_where_a_grandchild_prints_on_and_the_reader_is_slow(local):
    program = "(while sleep 0.05; do echo x >&2; done) & head -c 1000000 /dev/zero; head -c 50000 /dev/zero; printf end"
    with started(local, "sh", "-c", program, flags=("--seed", "1"), stderr=subprocess.DEVNULL) as process:
        data = b""
        while piece := os.read(process.stdout.fileno(), 20000):
            data += piece
            time.sleep(0.05)
    assert (len(data), data[-3:]) == (1050003, b"end")


def test_a_signal_reaches_the_command_once(local):
    program = "trap 'echo got; exit 42' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        local.argv("sh", "-c", program), cwd=local.folder, env=local.environment, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"got\n"
    assert process.wait(timeout=30) == 42


def test_no_gpus_means_that_the_command_sees_none(local):
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    flags = ("--seed", "1", "--gpus", "none")
    assert local.run("printenv", "CUDA_VISIBLE_DEVICES", flags=flags, environment=environment).stdout == "\n"
    assert local.run("printenv", "CUDA_VISIBLE_DEVICES", environment=environment).stdout == "0\n"


def test_the_machines_settings_for_reprobox_do_not_reach_the_command(local):
    environment = {"REPROBOX_ENGINE": "local", "REPROBOX_IMAGE": "some:image", "REPROBOX_SHM_SIZE": "1g"}
    done = local.reprobox("run", "--seed", "1", "--", "env", environment=environment)
    assert "REPROBOX_ENGINE" not in done.stdout
    assert "REPROBOX_SEED=1" in done.stdout


@pytest.mark.parametrize("flag", [("--image", "a:b"), ("--shm-size", "1g"), ("--network", "none"), ("--name", "box")])
def test_what_it_cannot_do_is_refused(local, flag):
    done = local.run("true", flags=flag, check=False)
    assert done.returncode == 2
    assert f"--engine local has no {flag[0]}" in done.stderr


def test_bytes_that_are_no_text_reach_the_command(local):
    word = b"\xff\xfe".decode(errors="surrogateescape")
    assert local.run("printf", "%s", word, text=False).stdout == b"\xff\xfe"
    assert local.manifest()["outcome"] == "exited"


def test_the_stages_lock_is_free_once_the_command_runs(tmp_path):
    launcher = Path(reprobox.box.__file__).with_name("local.py")
    command = [sys.executable, "-IS", str(launcher), "--", "sh", "-c", "echo up; read line"]
    environment = {**os.environ, "REPROBOX_RUN_DIR": str(tmp_path), "REPROBOX_SEED": "1", "REPROBOX_SELFTEST": "off"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as box:
        assert box.stdout.readline() == b"up\n"
        with (tmp_path / "stage").open() as stage:
            assert stage.read() == "exec\n"
            fcntl.flock(stage, fcntl.LOCK_SH | fcntl.LOCK_NB)
        box.stdin.close()


def started(local, *command, flags, **options):
    """Start a run and return its process."""
    return subprocess.Popen(
        local.argv(*command, flags=flags),
        cwd=local.folder,
        env=local.environment,
        stdout=subprocess.PIPE,
        **options,
    )


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_hashing_a_large_input_ends_with_a_signal(local):
    with (local.folder / "in").open("wb") as file:
        file.truncate(1 << 40)
    process = started(local, "true", flags=("--seed", "1", "--input", "in"))
    until(lambda: [run for run in local.runs() if (run / "manifest.json").exists()])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert local.manifest()["outcome"] == "interrupted"


def test_hashing_a_large_output_ends_with_a_signal_and_the_code_is_the_commands(local):
    process = started(local, "sh", "-c", "truncate -s 1T out; exit 3", flags=("--seed", "1", "--output", "out"))
    until(lambda: [run for run in local.runs() if (run / "stage").exists()])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 3
    manifest = local.manifest()
    assert (manifest["outcome"], manifest["outputs"]) == ("exited", {"out": None})
