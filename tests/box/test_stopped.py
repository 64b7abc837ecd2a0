"""A run on this machine whose reprobox was stopped for a while (SIGSTOP, Ctrl-Z): nothing that was said meanwhile is lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pexpect
import pytest

pytestmark = pytest.mark.local

PATIENCE = 60
SAYS = "echo ready; until test -e go; do sleep 0.02; done; "


def stopped(process):
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def await_end(pid):
    """Wait until a process that nobody has waited for is over."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.02)
    pytest.fail(f"process {pid} goes on")


def resumed(local, process, seconds=1.0):
    """Let the command say the rest and end while reprobox is stopped; return what reprobox has written."""
    stopped(process)
    (command,) = children(process.pid)
    (local.folder / "go").touch()
    await_end(command)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
    rest, _ = process.communicate(timeout=PATIENCE)
    return rest


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("printf end", b"end"),
        ("head -c 60000 /dev/zero", bytes(60000)),
        ("(sleep 60 &); printf end", b"end"),
    ],
    ids=["a word", "most of a pipe", "with a process left behind"],
)
def test_what_a_command_says_while_reprobox_is_stopped_is_whole(local, says, expected):
    process = local.start("sh", "-c", f"{SAYS}{says}; exit 3")
    assert resumed(local, process) == expected
    assert process.returncode == 3
    assert (local.runs()[-1] / "stdout.log").read_bytes() == b"ready\n" + expected
    assert local.manifest()["streams"]["log"] == "kept"


def test_what_the_command_left_behind_says_while_reprobox_is_stopped_is_whole(local):
    process = local.start("sh", "-c", f"{SAYS}(sleep 0.3; printf late; sleep 60) & printf early; exit 3")
    assert resumed(local, process, seconds=3) == b"earlylate"
    assert process.returncode == 3


def test_what_a_command_says_on_stderr_while_reprobox_is_stopped_is_whole(local):
    process = local.start("sh", "-c", f"{SAYS}head -c 50000 /dev/zero >&2", stderr=subprocess.PIPE)
    stopped(process)
    (command,) = children(process.pid)
    (local.folder / "go").touch()
    await_end(command)
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=PATIENCE)
    assert said.count(b"\0") == 50000


@pytest.mark.parametrize(("flags", "most"), [("", 4000), ("-t", 600)], ids=["on pipes", "on a terminal of 4 KiB"])
def test_a_run_that_ctrl_z_stopped_says_everything_after_fg(local, flags, most):
    shell = pexpect.spawn(
        "sh", ["-i"], cwd=local.folder, env={**local.environment, "PS1": "$ "}, timeout=PATIENCE, encoding="utf-8"
    )
    command = f"{SAYS}seq -s : {most}; touch over"
    argv = local.argv("sh", "-c", command, flags=("--seed", "42", *flags.split()))
    shell.sendline(shlex.join(argv))
    shell.expect("ready\r+\n")
    shell.sendcontrol("z")
    shell.expect("(?i)stopped")
    (local.folder / "go").touch()
    deadline = time.monotonic() + PATIENCE
    while not (local.folder / "over").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    shell.sendline("fg; echo code $?")
    shell.expect("code 0\r+\n")
    assert ":".join(map(str, range(1, most + 1))) in shell.before
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    assert f":{most}".encode() in (local.runs()[-1] / "stdout.log").read_bytes()
