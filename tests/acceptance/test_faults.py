"""An engine that is away, hangs, dies, is stopped or is full, and what becomes of the run: each fault is really caused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest
from support.cli import Cli
from support.daemon import TAG, Daemon, full, small_disk, until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="a daemon, a loop device and a capability to drop need root"),
]

SECRET = "canary-of-the-faults"
FLAGS = ("--seed", "42", "--network", "none", "--image", TAG, "-e", f"HF_TOKEN={SECRET}")
TIMEOUT_SECONDS = 3
"""How long the CLI waits for one answer of the engine (``DOCKER_CLIENT_TIMEOUT``)."""
BOUNDED_SECONDS = 15
"""What a few answers that do not come may take altogether."""

HOG = "held = []\nwhile True: held.append(b'x' * (1 << 20))"


@pytest.fixture(scope="module")
def the_daemon(small_image):
    with Daemon() as daemon:
        daemon.start().load(small_image)
        yield daemon


@pytest.fixture(scope="module")
def daemon_on_a_small_disk(small_image, tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp("disk") / "small", 160) as data_root, Daemon(data_root) as daemon:
        daemon.start().load(small_image)
        yield daemon


@pytest.fixture
def daemon(the_daemon):
    """The module's daemon, brought back to life if the test before this one left it otherwise."""
    the_daemon.ensure(live_restore=False)
    return the_daemon


@pytest.fixture
def cli(tmp_path, daemon):
    with faulty_cli(tmp_path, daemon) as cli:
        yield cli


@contextlib.contextmanager
def faulty_cli(folder, daemon):
    """The command line on ``daemon``; whatever the test did, its runs leave complete records and nothing else."""
    project, temporary = folder / "project", folder / "tmp"
    project.mkdir()
    temporary.mkdir()
    cli = Cli(project, "docker")
    cli.environment.pop("DOCKER_CONTEXT", None)
    cli.environment |= daemon.environment
    cli.environment |= {"DOCKER_CLIENT_TIMEOUT": str(TIMEOUT_SECONDS), "TMPDIR": str(temporary)}
    try:
        yield cli
        daemon.ensure(live_restore=daemon.live_restore)
        assert until(lambda: not daemon.containers(), seconds=5), f"containers are left: {daemon.containers()}"
        for run in cli.runs():
            manifest = json.loads((run / "manifest.json").read_text())
            assert manifest["end"], f"the record was not completed: {manifest}"
            left = [path.name for path in run.iterdir() if path.name.startswith(".") or path.name == "box"]
            assert left == [], f"files that were for the run alone are left: {left}"
        assert list(temporary.iterdir()) == []
        for path in project.rglob("*"):
            assert path.is_dir() or path.stat().st_size > 1 << 24 or SECRET.encode() not in path.read_bytes(), path
    finally:
        daemon.ensure(live_restore=False)
        daemon.remove_containers()


def start(cli, *command, stderr=subprocess.DEVNULL):
    options = {"cwd": cli.folder, "env": cli.environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    return subprocess.Popen(cli.argv(*command, flags=FLAGS), stderr=stderr, **options)


class Going:
    """A run under way, whose stdout is read as it comes."""

    def __init__(self, cli, *command):
        self.cli = cli
        self.stdout = b""
        self._said = cli.folder.parent / "stderr"
        with self._said.open("wb") as stderr:
            self.process = start(cli, *command, stderr=stderr)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while data := self.process.stdout.read1():
            self.stdout += data

    def after(self, text):
        """Wait until it has printed ``text``."""
        assert until(lambda: text in self.stdout or self.process.poll() is not None)
        assert text in self.stdout, self.stderr
        return self

    def end(self, timeout=60):
        """Return the exit code, when all its output has been read."""
        code = self.process.wait(timeout=timeout)
        self._reader.join(timeout=10)
        return code

    @property
    def stderr(self):
        return self._said.read_text()

    @property
    def lines(self):
        return self.stdout.decode().split("\n")[:-1]

    @property
    def folder(self):
        return self.cli.runs()[-1]


def counting(last, code=7):
    """A command that prints the numbers up to ``last``, one every 50 ms."""
    return "sh", "-c", f"for i in $(seq {last}); do echo $i; sleep 0.05; done; exit {code}"


def numbers(last):
    return [str(number) for number in range(1, last + 1)]


def assert_exited(going, code, lines):
    """The run ended as if nothing had happened to the engine."""
    assert going.lines == lines
    assert (going.folder / "stdout.log").read_text().splitlines() == lines
    assert_recorded(going.cli, code)


def assert_recorded(cli, code):
    manifest = cli.manifest()
    assert (manifest["outcome"], manifest["stage"]) == ("exited", "exec")
    assert (manifest["exit_code"], manifest["exit_code_of"]) == (code, "command")


def assert_failed(cli, stderr, *words):
    """The run is reprobox's failure: what happened is on stderr and, in the same words, in the record."""
    manifest = cli.manifest()
    assert (manifest["outcome"], manifest["exit_code"], manifest["exit_code_of"]) == ("failed", 125, "reprobox")
    for word in words:
        assert word in manifest["message"]
        assert word in stderr


def assert_one_line_of_help(done, address, cause):
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert str(address) in line
    assert cause in line
    assert "DOCKER_HOST" in line, "it says what to do next"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("absent", "no such socket"), ("dead", "connection refused"), ("another's", "permission denied")],
)
def test_an_engine_that_cannot_be_reached_is_125_and_one_line_of_help(cli, tmp_path_factory, fault, cause):
    address = tmp_path_factory.mktemp("s") / "s"
    program = []
    with socket.socket(socket.AF_UNIX) as listener:
        if fault != "absent":
            listener.bind(str(address))
        if fault == "another's":
            listener.listen()
            address.chmod(0o600)
            os.chown(address, 65534, 65534)
            # Root that keeps its uid, so that it can read this checkout wherever it lies, and obeys permissions.
            program = ["setpriv", "--bounding-set=-dac_override"]
        argv = [*program, *cli.argv("true", flags=FLAGS)]
        began = time.monotonic()
        done = cli.call(*argv, check=False, environment={"DOCKER_HOST": f"unix://{address}"})
    assert time.monotonic() - began < BOUNDED_SECONDS
    assert_one_line_of_help(done, address, cause)


def test_an_engine_that_accepts_and_never_answers_is_125_in_bounded_time(cli, daemon):
    began = time.monotonic()
    with daemon.frozen():
        done = cli.run("true", flags=FLAGS, check=False, timeout=60)
    assert time.monotonic() - began < BOUNDED_SECONDS
    assert_one_line_of_help(done, daemon.socket, "does not answer")


def test_an_engine_that_hangs_during_the_run_loses_nothing(cli, daemon):
    going = Going(cli, *counting(50)).after(b"\n5\n")
    with daemon.frozen():
        time.sleep(TIMEOUT_SECONDS + 1)
    assert going.end() == 7
    assert_exited(going, 7, numbers(50))


def test_an_engine_that_hangs_while_it_creates_the_box_leaves_nothing_when_it_goes_on(cli, daemon):
    going = Going(cli, "true")
    # The record is written just before the engine is asked, and the engine needs longer than this loop to answer.
    assert until(lambda: any((run / "manifest.json").exists() for run in cli.runs()))
    with daemon.frozen():
        time.sleep(TIMEOUT_SECONDS + 1)
    assert (going.end(), going.stdout) == (125, b"")
    assert_failed(cli, going.stderr, "create the box")
    # Once it goes on it creates the box, although nobody waits for that any more: for some ms there is none to remove.
    time.sleep(1)


def test_an_engine_killed_and_back_with_live_restore_loses_nothing(cli, daemon):
    daemon.ensure(live_restore=True)
    going = Going(cli, *counting(80)).after(b"\n10\n")
    daemon.kill_and_restart(live_restore=True)
    assert going.end() == 7
    assert_exited(going, 7, numbers(80))


def test_an_engine_killed_and_back_twice_with_live_restore_loses_nothing(cli, daemon):
    daemon.ensure(live_restore=True)
    going = Going(cli, *counting(300)).after(b"\n10\n")
    for seen in (b"\n60\n", b"\n200\n"):
        daemon.kill_and_restart(live_restore=True)
        going.after(seen)
    assert going.end() == 7
    assert_exited(going, 7, numbers(300))


def test_an_engine_killed_and_back_without_live_restore_ends_the_command_and_that_is_said(cli, daemon):
    going = Going(cli, *counting(200)).after(b"\n10\n")
    daemon.kill_and_restart(live_restore=False)
    assert going.end() == 143  # it sends SIGTERM to what it finds running when it starts
    assert going.lines == numbers(len(going.lines))
    # The engine's log has what the command printed while it was away: some 30 lines.
    assert len(going.lines) >= 20 or "may be missing" in going.stderr
    manifest = cli.manifest()
    assert manifest["exit_code"] == 143
    assert "engine" in manifest["message"]
    assert "stopped" in manifest["message"]
    assert "engine" in going.stderr


def test_a_command_that_ends_while_the_engine_is_away_has_its_code_and_a_gap_that_is_said(cli, daemon):
    daemon.ensure(live_restore=True)
    going = Going(cli, *counting(30)).after(b"\n10\n")
    daemon.kill_and_restart(live_restore=True, after=2.5)
    assert going.end() == 7
    assert cli.manifest()["exit_code"] == 7
    # The engine does not read what a box that has ended meanwhile left in its pipe.
    assert going.lines == numbers(len(going.lines))
    assert len(going.lines) == 30 or "may be missing" in going.stderr


def test_an_engine_that_stays_away_is_125_and_the_run_can_be_waited_for(cli, daemon):
    lines = numbers(720)  # longer than the CLI waits for the engine to come back
    daemon.ensure(live_restore=True)
    going = Going(cli, *counting(len(lines))).after(b"\n10\n")
    daemon.kill()
    began = time.monotonic()
    assert going.end(timeout=60) == 125
    assert time.monotonic() - began < 30 + BOUNDED_SECONDS
    advice = f"reprobox runs wait {going.folder.name}"
    assert advice in going.stderr
    assert advice in cli.manifest()["message"]
    daemon.start(live_restore=True)
    assert_waited_for(cli, going.folder.name, 7, lines)


def assert_waited_for(cli, run_id, code, lines):
    waited = cli.reprobox("runs", "wait", run_id, check=False)
    assert waited.returncode == code, waited.stderr
    assert_recorded(cli, code)
    assert cli.reprobox("runs", "logs", run_id).stdout.splitlines() == lines


def test_an_engine_that_is_stopped_ends_the_command_and_that_is_said(cli, daemon):
    going = Going(cli, *counting(200)).after(b"\n10\n")
    daemon.stop()
    daemon.start()
    assert going.end() == 143
    assert going.lines == numbers(len(going.lines))
    assert cli.manifest()["exit_code"] == 143
    assert "engine" in cli.manifest()["message"]
    assert "stopped" in cli.manifest()["message"]
    assert "engine" in going.stderr


def test_a_full_disk_at_the_start_is_125_and_the_engines_own_reason(tmp_path, daemon_on_a_small_disk):
    with faulty_cli(tmp_path, daemon_on_a_small_disk) as cli, full(daemon_on_a_small_disk.data_root):
        done = cli.run("true", flags=FLAGS, check=False)
        assert (done.returncode, done.stdout) == (125, "")
        assert_failed(cli, done.stderr, "no space left")


def test_a_disk_that_fills_up_during_the_run_loses_no_output(tmp_path, daemon_on_a_small_disk):
    program = "seq 10000; until [ -e go-on ]; do sleep 0.05; done; seq 10001 20000"
    with faulty_cli(tmp_path, daemon_on_a_small_disk) as cli:
        going = Going(cli, "sh", "-c", program).after(b"\n10000\n")
        with full(daemon_on_a_small_disk.data_root):
            cli.write("go-on", "")
            assert going.end() == 0
        assert_exited(going, 0, numbers(20000))


def test_a_command_that_runs_out_of_memory_is_137_and_that_is_said(cli):
    done = cli.run("python", "-c", HOG, flags=(*FLAGS, "--memory", "64m"), check=False)
    assert done.returncode == 137
    assert "out of memory" in done.stderr
    manifest = cli.manifest()
    assert (manifest["outcome"], manifest["stage"], manifest["exit_code"]) == ("out-of-memory", "exec", 137)
    assert "out of memory" in manifest["message"]


def test_a_child_that_runs_out_of_memory_is_a_warning_where_the_command_ends_well(cli):
    parent = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {HOG!r}]).returncode)"
    done = cli.run("python", "-c", parent, flags=(*FLAGS, "--memory", "64m"))
    assert done.stdout == "-9\n"
    assert "out of memory" in done.stderr
    assert_recorded(cli, 0)
    assert cli.manifest()["out_of_memory"] is True


def test_a_box_that_somebody_else_removes_is_said_and_recorded(cli, daemon):
    going = Going(cli, *counting(200)).after(b"\n10\n")
    daemon.remove_containers()
    code = going.end()
    assert code in (125, 137)
    assert going.lines == numbers(len(going.lines))
    manifest = cli.manifest()
    assert manifest["exit_code"] == code
    assert "removed" in manifest["message"]
    assert "removed" in going.stderr


def test_a_signal_at_any_moment_of_the_start_is_143_and_leaves_a_complete_record(cli):
    began = time.monotonic()
    Going(cli, "echo", "started").after(b"started\n").end()
    start = time.monotonic() - began  # this machine's, as busy as it is now
    codes = []
    for number in range(20):
        known = len(cli.runs())
        going = Going(cli, "sleep", "60")
        if number % 2:  # soon after there is a record, which is a short time of the whole
            assert until(lambda known=known: len(cli.runs()) > known, 30)
            time.sleep(0.02 * (number // 2))
        else:
            time.sleep(1.5 * start * number / 19)
        going.process.send_signal(signal.SIGTERM)
        code = going.end()
        # Before Python has its handlers the signal itself ends it, which a shell also calls 143.
        codes.append(128 - code if code < 0 else code)
    assert codes == [143] * 20
    outcomes = [json.loads((run / "manifest.json").read_text())["outcome"] for run in cli.runs()[1:]]
    assert set(outcomes) == {"interrupted", "exited"}, "the moments cover both sides of the command's start"


def test_a_run_goes_on_without_its_command_line_and_can_be_waited_for(cli, daemon):
    going = Going(cli, *counting(60)).after(b"\n10\n")
    going.process.kill()
    going.end()
    assert len(daemon.containers()) == 1
    assert_waited_for(cli, going.folder.name, 7, numbers(60))


def test_a_run_whose_command_line_was_killed_is_left_as_it_is_by_another_engine(cli, daemon, docker_client):
    going = Going(cli, *counting(200)).after(b"\n10\n")
    going.process.kill()
    going.end()
    before = cli.manifest()
    own = cli.environment.pop("DOCKER_HOST")
    for verb in ("wait", "stop", "attach"):
        done = cli.reprobox("runs", verb, going.folder.name, check=False)
        assert done.returncode == 125
        assert "made by another docker" in done.stderr
    assert json.loads(cli.reprobox("runs", "show", "--json").stdout) == before
    assert len(daemon.containers()) == 1
    cli.environment["DOCKER_HOST"] = own
    assert_waited_for(cli, going.folder.name, 7, numbers(200))


def test_a_reader_that_closes_after_one_line_ends_the_run(cli):
    process = start(cli, "sh", "-c", "while :; do echo line; sleep 0.01; done")
    head = subprocess.run(["head", "-1"], stdin=process.stdout, capture_output=True)
    process.stdout.close()
    assert head.stdout == b"line\n"
    assert process.wait(timeout=30) == 143
    assert cli.manifest()["exit_code"] == 143


def test_a_gibibyte_of_output_arrives_whole_and_the_command_line_stays_small(cli):
    # Printable and long lines: the engine's own log makes every other byte several, and every line an entry.
    tail = bytes(33 + i % 90 for i in range((1 << 15) - 9)) + b"\n"
    program = f"import sys\nfor n in range(1 << 15): sys.stdout.buffer.write(b'%08d' % n + {tail!r})"
    expected = hashlib.sha256()
    for n in range(1 << 15):
        expected.update(b"%08d" % n + tail)
    process = start(cli, "python", "-c", program)
    seen, count, peak = hashlib.sha256(), 0, 0
    while data := process.stdout.read(1 << 20):
        seen.update(data)
        count += len(data)
        peak = peak_memory(process.pid)
    assert process.wait(timeout=30) == 0
    assert (count, seen.hexdigest()) == (1 << 30, expected.hexdigest())
    assert 0 < peak < 100 << 20
    log = (cli.runs()[-1] / "stdout.log").read_bytes()  # which is capped, in its middle
    assert log.startswith(b"%08d" % 0 + tail)
    assert log.endswith(b"%08d" % n + tail)


def peak_memory(pid):
    """Bytes of memory the process has had at most; not ``ru_maxrss``, which counts what it was forked from."""
    with open(f"/proc/{pid}/status") as status:
        peaks = [int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:")]
    return peaks[0] if peaks else 0
