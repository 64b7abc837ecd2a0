"""``reprobox gpus --watch``: at a terminal, whose screen comes back however it ends, and into a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import termios

import pexpect
import pytest
from support import nvml
from support.cli import BIN
from support.gpus_table import NOT_LOADED, states

PATIENCE = 30
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Watcher:
    """A person at a terminal who watches."""

    def __init__(self, gpus_cli, *argv, rows=60, columns=120):
        environment = {name: value for name, value in gpus_cli.environment.items() if name not in ("COLUMNS", "LINES")}
        self.child = pexpect.spawn(
            argv[0] if argv else str(BIN / "reprobox"),
            list(argv[1:]) if argv else ["gpus", "--watch"],
            cwd=str(gpus_cli.folder),
            env={**environment, "TERM": "xterm", "PS1": "prompt> "},
            dimensions=(rows, columns),
            timeout=PATIENCE,
        )
        self.settings = termios.tcgetattr(self.child.child_fd)

    def expect(self, text):
        self.child.expect_exact(text)
        return self.child.before

    def ended(self):
        """Return the exit code, having seen that the terminal is as it was."""
        shown = self.expect(pexpect.EOF)
        assert termios.tcgetattr(self.child.child_fd) == self.settings
        self.child.close()
        assert shown.rstrip().endswith(LEAVE), "the person's own screen did not come back"
        assert b"\x1b[?25h" in shown, "the cursor did not come back"
        return self.child.exitstatus


@pytest.fixture
def watcher(gpus_cli):
    made = []

    def make(*argv, **size):
        made.append(Watcher(gpus_cli, *argv, **size))
        return made[-1]

    yield make
    for one in made:
        one.child.close(force=True)


def test_watch_shows_what_changes_and_ctrl_c_gives_the_screen_back(watcher, driver, sleeper):
    person = watcher()
    person.expect(ENTER)
    person.expect(b"No process runs on them.")
    nvml.busy(driver.gpus[1], sleeper)
    driver.write()
    person.expect(b"busy: sleep")
    person.child.sendintr()
    assert person.ended() == 130


def test_watch_survives_a_driver_that_goes_and_comes_back(watcher, driver):
    person = watcher()
    person.expect(b"free")
    driver.fail["nvmlInit_v2"] = NOT_LOADED
    driver.write()
    person.expect(b"no GPUs: the NVIDIA driver is not loaded")
    driver.fail.clear()
    nvml.lost(driver.gpus[4])
    driver.gpus.pop()
    driver.write()
    person.expect(b"unusable: the GPU has fallen off")
    os.kill(person.child.pid, signal.SIGTERM)
    assert person.ended() == 143


def test_watch_ends_with_its_terminal(watcher):
    person = watcher()
    person.expect(b"free")
    person.child.ptyproc.delayafterclose = PATIENCE / 10
    person.child.close(force=False)
    assert person.child.exitstatus == 129


def test_ctrl_z_gives_the_screen_back_for_as_long_as_it_is_stopped(watcher):
    shell = watcher("bash", "--norc", "--noprofile", "-i")
    shell.expect(b"prompt> ")
    shell.child.sendline(f"{BIN}/reprobox gpus --watch")
    shell.expect(ENTER)
    shell.expect(b"free")
    shell.child.send("\x1a")
    shell.expect(LEAVE)
    shell.expect(b"Stopped")
    shell.child.sendline("fg")
    shell.expect(ENTER)
    shell.expect(b"free")
    shell.child.sendintr()
    shell.expect(LEAVE)
    shell.child.sendline("echo code $?")
    shell.expect(b"code 130\r\n")


def test_a_low_terminal_is_told_how_much_it_does_not_see(watcher):
    person = watcher(rows=12)
    assert b"more lines)" not in person.expect(ENTER)
    shown = person.expect(b" more lines)")
    assert shown.count(b"\n") == 11
    person.child.sendintr()
    assert person.ended() == 130


@contextlib.contextmanager
def piped(gpus_cli, *flags):
    process = subprocess.Popen(
        [str(BIN / "reprobox"), "gpus", "--watch", *flags],
        cwd=gpus_cli.folder,
        env=gpus_cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_watch_into_a_pipe_is_a_document_on_each_line(gpus_cli, driver, sleeper):
    with piped(gpus_cli, "--json") as process:
        first = json.loads(process.stdout.readline())
        nvml.busy(driver.gpus[1], sleeper)
        driver.write()
        second = json.loads(process.stdout.readline())
        driver.gpus.clear()
        driver.write()
        third = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(PATIENCE) == 143
    assert [document["gpus"][1]["free"] for document in (first, second)] == [True, False]
    assert third["gpus"] == []
    assert third["missing"]


def test_watch_into_a_pipe_is_a_table_after_the_time_and_has_nothing_of_a_screen(gpus_cli):
    with piped(gpus_cli) as process:
        lines = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    times = [line for line in lines if line[:2] == "20" and len(line) == len("2026-11-21 05:55:58\n")]
    assert len(times) >= 2
    assert "\x1b" not in "".join(lines)
    assert states("".join(lines))[:8] == ["free"] * 8


def test_watch_ends_when_nobody_reads_any_more(gpus_cli):
    with piped(gpus_cli, "--json") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        process.stdout = None
