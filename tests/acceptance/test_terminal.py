"""``reprobox run -it`` and ``reprobox shell`` on a real pseudo-terminal, as a person types there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import termios
import time

import pexpect
import pytest
from support.cli import BIN
from support.engine import boxes_left

PATIENCE = 20
RAW = """
import os, sys, tty
tty.setraw(0)
os.write(1, b"ready\\r\\n")
seen = b""
while not seen.endswith(b"q"):
    seen += os.read(0, 1)
print("seen", seen.hex(), end="\\r\\n")
sys.exit(6)
"""
COUNTS = """
import signal, time
count = 0
def on(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, on)
print("ready", flush=True)
end = time.time() + 15
while not count and time.time() < end:
    time.sleep(0.01)
time.sleep(0.5)
print("counted", count)
"""
STUBBORN = ("sh", "-c", "trap '' TERM INT; echo ready; while :; do sleep 0.05; done")
DRAW = "import random; print('drew', random.random())"


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.engine), pytest.param("local", marks=pytest.mark.local)]
)
def cli(request):
    yield from nothing_is_left(request, request.param)


@pytest.fixture
def docker_cli(request):
    yield from nothing_is_left(request, "docker")


def nothing_is_left(request, engine):
    """Hand out a command line; after the test no box, process or unfinished record of its runs is left."""
    cli = request.getfixturevalue(engine)
    cli.seats = []
    yield cli
    for seat in cli.seats:
        seat.close()
    if engine == "docker":
        client = request.getfixturevalue("docker_client")
        left = boxes_left(client, {run.name for run in cli.runs()})
        for name in left:
            client.containers.get(name).remove(force=True)
        assert left == []
    for run in cli.runs():
        assert json.loads((run / "manifest.json").read_text())["end"], "a run's record was not completed"
        assert not (run / "lock").exists()


class Seat:
    """A person at a terminal."""

    def __init__(self, cli, *argv, rows=24, columns=80):
        self.child = pexpect.spawn(
            argv[0],
            list(argv[1:]),
            cwd=str(cli.folder),
            env={**cli.environment, "TERM": "xterm"},
            dimensions=(rows, columns),
            timeout=PATIENCE,
        )
        self.before = self.settings()
        cli.seats.append(self)

    def settings(self):
        return termios.tcgetattr(self.child.child_fd)

    def expect(self, pattern):
        self.child.expect(pattern)
        return self.child

    def await_raw(self):
        """Wait until reprobox has made the terminal raw: it is connected then."""
        assert until(lambda: self.settings() != self.before)

    def type(self, text):
        self.child.send(text)

    def signal(self, number):
        os.kill(self.child.pid, number)

    def end(self):
        """Return the exit code and everything that was shown since the last ``expect``."""
        self.child.expect(pexpect.EOF)
        shown = self.child.before
        assert self.settings() == self.before, "the terminal was not put back"
        self.child.close()
        return self.child.exitstatus, shown

    def close(self):
        if self.child.isalive():
            for _ in range(3):
                self.signal(signal.SIGTERM)
                time.sleep(0.2)
            until(lambda: not self.child.isalive(), 10)
        self.child.close(force=True)


def sit(cli, *command, flags=("-it",), **size):
    return Seat(cli, *cli.argv(*command, flags=("--seed", "42", *flags)), **size)


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_bash_echoes_edits_and_gives_its_exit_code(cli):
    seat = sit(cli, "bash", "--norc")
    seat.expect(rb"[$#] ")
    seat.type("echo wrong\x7f\x7f\x7f\x7f\x7fright$((6*7))\r")
    assert b"echo " in seat.expect(rb"right42").before, "what is typed is echoed"
    seat.type("tty; exit 7\r")
    seat.expect(rb"/dev/")
    assert seat.end()[0] == 7
    assert cli.manifest()["exit_code"] == 7


def test_a_python_prompt_answers_and_gives_its_exit_code(cli):
    seat = sit(cli, "python", "-q")
    seat.expect(rb">>> ")
    seat.type("import sys; print(sys.stdin.isatty(), sys.stdout.isatty(), 6 * 7)\r")
    seat.expect(rb"True True 42")
    seat.type("sys.exit(4)\r")
    assert seat.end()[0] == 4


def test_ctrl_d_ends_the_input(cli):
    seat = sit(cli, "sh", "-c", "echo ready; cat")
    seat.expect(rb"ready\r\n")
    seat.type("typed\r")
    seat.expect(rb"typed\r\ntyped\r\n")
    seat.type("\x04")
    assert seat.end()[0] == 0


def test_the_commands_terminal_has_the_callers_size_and_follows_it(cli):
    seat = sit(cli, "sh", "-c", "stty size; read x; stty size", rows=33, columns=101)
    seat.expect(rb"33 101\r\n")
    seat.child.setwinsize(45, 132)
    time.sleep(0.5)
    seat.type("\r")
    seat.expect(rb"45 132\r\n")
    assert seat.end()[0] == 0


@pytest.mark.parametrize("flags", [("-it",), ("-i",), (), ("-t",)], ids=lambda f: " ".join(f) or "plain")
def test_ctrl_c_reaches_the_program_exactly_once(cli, flags):
    seat = sit(cli, "python", "-c", COUNTS, flags=flags)
    seat.expect(rb"ready\r*\n")
    seat.type("\x03")
    seat.expect(rb"counted (\d+)")
    assert seat.child.match[1] == b"1"
    assert seat.end()[0] == 0


def test_a_lone_ctrl_p_is_passed_on_with_the_next_key(cli):
    seat = sit(cli, "python", "-c", RAW)
    seat.expect(rb"ready\r\n")
    seat.type("\x10")
    time.sleep(0.2)
    seat.type("a\x11q")
    seat.expect(rb"seen 10611171\r\n")
    assert seat.end()[0] == 6


@pytest.mark.engine
def test_the_keys_leave_the_box_running_and_attach_comes_back(docker_cli, docker_client):
    seat = sit(docker_cli, "bash", "--norc")
    seat.expect(rb"[$#] ")
    seat.type("value=kept; echo first$((1+1))\r")
    seat.expect(rb"first2")
    seat.type("\x10")
    time.sleep(0.1)
    seat.type("\x11")
    code, shown = seat.end()
    assert code == 0
    assert b"runs attach" in shown
    (run,) = docker_cli.runs()
    assert boxes_left(docker_client, {run.name}) != []
    assert json.loads(docker_cli.reprobox("runs", "list", "--json").stdout)["runs"][0]["outcome"] == "running"
    back = Seat(docker_cli, str(BIN / "reprobox"), "runs", "attach", "last")
    back.await_raw()
    back.type("echo still-$value\r")
    back.expect(rb"still-kept")
    back.type("exit 5\r")
    assert back.end()[0] == 5
    manifest = docker_cli.manifest()
    assert (manifest["outcome"], manifest["exit_code"], manifest["exit_code_of"]) == ("exited", 5, "command")
    log = (run / "stdout.log").read_bytes()
    assert log.count(b"first2") == 1
    assert log.count(b"still-kept") == 1
    assert manifest["streams"]["stdout_bytes"] == len(log)


@pytest.mark.engine
def test_a_box_can_be_left_and_come_back_to_more_than_once(docker_cli):
    seat = sit(docker_cli, "python", "-c", RAW)
    seat.expect(rb"ready\r\n")
    for _ in range(2):
        seat.type("\x10\x11")
        code, shown = seat.end()
        assert (code, b"left to itself" in shown) == (0, True)
        seat = Seat(docker_cli, str(BIN / "reprobox"), "runs", "attach", "last")
        seat.await_raw()
    seat.type("xq")
    seat.expect(rb"seen 7871\r\n")
    assert seat.end()[0] == 6


@pytest.mark.local
def test_on_this_machine_itself_where_nothing_can_come_back_the_keys_are_the_commands(request):
    for cli in nothing_is_left(request, "local"):
        seat = sit(cli, "python", "-c", RAW)
        seat.expect(rb"ready\r\n")
        seat.type("\x10\x11q")
        seat.expect(rb"seen 101171\r\n")
        assert seat.end()[0] == 6


@pytest.mark.parametrize(
    ("command", "code"),
    [(("true",), 0), (("sh", "-c", "exit 9"), 9), (("sh", "-c", "kill -KILL $$"), 137), (("/no/such",), 127)],
    ids=["normal", "not zero", "killed", "no such command"],
)
def test_the_terminal_is_put_back_after_the_command(cli, command, code):
    assert sit(cli, *command).end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_put_back_after_a_signal(cli, number):
    seat = sit(cli, "sh", "-c", "echo ready; exec sleep 60")
    seat.expect(rb"ready\r\n")
    seat.signal(number)
    assert seat.end()[0] == 128 + number


def test_three_signals_kill_are_told_line_by_line_and_the_terminal_is_put_back(cli):
    seat = sit(cli, *STUBBORN)
    seat.expect(rb"ready\r\n")
    for _ in range(3):
        seat.signal(signal.SIGTERM)
        time.sleep(0.4)
    code, shown = seat.end()
    assert code == 137
    assert b"reprobox: SIGTERM sent again; once more kills the command\r\n" in shown
    assert b"reprobox: killing the command\r\n" in shown
    assert not re.search(rb"(?<!\r)\n", shown), "a line begins in the middle of a raw terminal"


@pytest.mark.engine
def test_what_attach_says_in_raw_mode_begins_at_the_margin_too(docker_cli):
    docker_cli.run(*STUBBORN, flags=("--seed", "42", "-d", "-it"))
    seat = Seat(docker_cli, str(BIN / "reprobox"), "runs", "attach", "last")
    seat.await_raw()
    for _ in range(3):
        seat.signal(signal.SIGTERM)
        time.sleep(0.4)
    code, shown = seat.end()
    assert code == 137
    assert b"killing the command\r\n" in shown
    assert not re.search(rb"(?<!\r)\n", shown)


@pytest.mark.engine
def test_the_terminal_is_put_back_where_the_engine_cannot_make_the_box(docker_cli, docker_client, image):
    code, shown = sit(docker_cli, "true", flags=("-it", "--image", "no-such-image:1", "--pull", "never")).end()
    assert code == 125
    assert b"no-such-image:1" in shown
    taken = docker_client.containers.create(image, name=f"reprobox-test-{os.getpid()}")
    try:
        code, shown = sit(docker_cli, "true", flags=("-it", "--name", taken.name)).end()
    finally:
        taken.remove(force=True)
    assert code == 125
    assert b"in use" in shown


@pytest.mark.engine
def test_the_terminal_is_put_back_where_somebody_else_removes_the_box(docker_cli, docker_client):
    seat = sit(docker_cli, "sh", "-c", "echo ready; exec sleep 60")
    seat.expect(rb"ready\r\n")
    for name in boxes_left(docker_client, {run.name for run in docker_cli.runs()}):
        docker_client.containers.get(name).remove(force=True)
    code, _ = seat.end()
    assert code != 0
    assert docker_cli.manifest()["outcome"] != "running"


@pytest.mark.parametrize("flags", [("-it",), ("-i",), ()], ids=lambda f: " ".join(f) or "plain")
def test_a_terminal_that_closes_ends_the_command_and_leaves_nothing(cli, flags):
    seat = sit(cli, "sh", "-c", "echo ready; exec sleep 60", flags=flags)
    seat.expect(rb"ready\r*\n")
    seat.child.ptyproc.fileobj.close()
    assert until(lambda: not seat.child.isalive()), "reprobox goes on without its terminal"
    assert cli.manifest()["exit_code"] == 129


def test_t_without_a_terminal_is_wrong_usage_in_one_sentence(cli):
    for flags in (("-t",), ("-it",)):
        done = cli.run("true", flags=("--seed", "1", *flags), check=False, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert "standard input is none" in done.stderr
    assert cli.runs() == []


def test_t_alone_gives_a_terminal_to_look_at_and_no_input(cli):
    seat = sit(cli, "sh", "-c", "test -t 1 && test -t 2 && stty size; exit 3", flags=("-t",), rows=31, columns=99)
    seat.expect(rb"31 99\r*\n")  # as with docker, this terminal is not raw, and adds to what the other one made
    assert seat.end()[0] == 3


def test_a_closed_standard_input_is_an_end_of_input(cli):
    argv = cli.argv("sh", "-c", "cat; echo end", flags=("--seed", "1", "-i"))
    done = cli.call("sh", "-c", 'exec "$@" <&-', "sh", *argv, timeout=PATIENCE)
    assert done.stdout == "end\n"


def test_closed_standard_streams_all_three_are_no_reason_to_fail(cli):
    argv = cli.argv("sh", "-c", "cat; echo out; echo err >&2; exit 3", flags=("--seed", "1", "-i"))
    done = cli.call("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv, timeout=PATIENCE, check=False)
    assert done.returncode == 3
    run = cli.runs()[-1]
    assert (run / "stdout.log").read_text() == "out\n"
    assert (run / "stderr.log").read_text().endswith("\nerr\n")


def test_dev_null_is_an_end_of_input(cli):
    nothing = {"stdin": subprocess.DEVNULL}
    assert cli.run("sh", "-c", "cat; echo end", flags=("--seed", "1", "-i"), **nothing).stdout == "end\n"


def test_an_end_of_input_that_comes_late_is_waited_for(cli):
    options = {"flags": ("--seed", "1", "-i"), "stdin": subprocess.PIPE}
    process = cli.start("sh", "-c", "echo ready; cat; echo end", **options)
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    time.sleep(0.5)
    assert process.poll() is None
    process.stdin.close()
    assert process.stdout.read() == b"end\n"
    assert process.wait(PATIENCE) == 0


def test_a_shell_on_a_terminal_is_seeded_and_recorded(cli):
    drawn = []
    for seed in ("7", "7", "8"):
        seat = Seat(cli, str(BIN / "reprobox"), "shell", "--engine", cli.engine, "--seed", seed)
        seat.expect(rb"[$#] ")
        seat.type(f'python -c "{DRAW}"\r')
        seat.expect(rb"drew (0\.\d+)")
        drawn.append(seat.child.match[1])
        seat.type("exit 3\r")
        assert seat.end()[0] == 3
    assert drawn[0] == drawn[1] != drawn[2]
    assert cli.manifest()["command"] == ["bash"]


def test_a_shell_without_a_terminal_runs_its_input_as_a_script(cli):
    argv = [BIN / "reprobox", "shell", "--engine", cli.engine, "--seed", "7"]
    script = f'cd /tmp\npython -c "{DRAW}"\nexit 3\n'
    first, second = (cli.call(*argv, input=script, check=False) for _ in range(2))
    assert first.returncode == 3
    assert re.fullmatch(r"drew 0\.\d+\n", first.stdout)
    assert second.stdout == first.stdout
