"""``reprobox gpus`` as a person and a script use it, on machines made by a stand-in for the driver's library."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
import termios
import time

import pexpect
import pytest
from support import nvml
from support.cli import BIN

PATIENCE = 30
NOT_LOADED = 9
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
ME = pwd.getpwuid(os.getuid()).pw_name


def with_uuids_of_its_own(driver):
    """Claims are the machine's: those of other tests on the same UUIDs must not be seen here."""
    mark = secrets.token_hex(3)
    for i, gpu in enumerate(driver.gpus):
        gpu.uuid = f"GPU-{i:02x}{mark}-0000-4000-8000-00000000000{i}"
    return driver


@pytest.fixture
def driver(standin_nvml):
    return with_uuids_of_its_own(standin_nvml)


@pytest.fixture
def cli(local, driver):
    """The command line on a machine with eight GPUs, without any engine but itself."""
    local.environment |= {**driver.environment(), "DOCKER_HOST": f"unix://{local.folder}/no.sock", "COLUMNS": "160"}
    local.environment.pop("CUDA_VISIBLE_DEVICES", None)
    return local


@pytest.fixture
def sleeper():
    """A process that computes, as far as the stand-in can tell."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


def told(cli, *flags, **options):
    done = cli.reprobox("gpus", "--json", *flags, **options)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema"] == "reprobox.gpus/1"
    return document


def states(text):
    """The last column, of each line that has one of a GPU's."""
    words = ("free", "claimed", "busy", "divided", "unusable")
    found = [next((line.find(f"  {word}") for word in words if f"  {word}" in line), -1) for line in text.splitlines()]
    return [line[at:].strip() for line, at in zip(text.splitlines(), found, strict=True) if at >= 0]


# Seen once


def test_eight_idle_gpus_are_all_free(cli):
    text = cli.reprobox("gpus").stdout
    assert text.startswith("Driver 550.54.15   CUDA 12.4\n")
    assert states(text) == ["free"] * 8
    assert "No process runs on them." in text
    document = told(cli)
    assert [gpu["free"] for gpu in document["gpus"]] == [True] * 8
    assert (document["driver"], document["cuda"], document["missing"]) == ("550.54.15", "12.4", None)
    assert [gpu["index"] for gpu in document["gpus"]] == list(range(8))


def test_a_divided_a_busy_and_a_lost_gpu_say_what_they_are(cli, driver, sleeper):
    nvml.sliced(driver.gpus[0], "1g.10gb", "3g.40gb")
    nvml.busy(driver.gpus[1], sleeper)
    nvml.lost(driver.gpus[2])
    driver.write()
    text = cli.reprobox("gpus").stdout
    divided, first, second, busy, unusable, *others = states(text)
    assert (divided, first, second) == ("divided: 2 MIG instances", "free", "free")
    assert busy == f"busy: sleep ({ME})"
    assert unusable.startswith("unusable: the GPU has fallen off")
    assert others == ["free"] * 5
    assert [i["uuid"] for i in told(cli)["gpus"][0]["mig_instances"] if i["uuid"] in text] == [
        instance.uuid for instance in driver.gpus[0].mig
    ]
    assert text.rstrip().splitlines()[-1].split() == ["1", str(sleeper), "C", ME, "sleep", "600", "8192MiB", "-"]


def test_the_document_has_what_auto_goes_by(cli, driver, sleeper):
    nvml.busy(driver.gpus[1], sleeper)
    driver.write()
    idle, busy, *_ = told(cli)["gpus"]
    assert (idle["free"], idle["occupied_by"]) == (True, None)
    assert (busy["free"], busy["occupied_by"]) == (False, f"sleep 600 (pid {sleeper}, {ME})")
    assert busy["processes"] == [
        {"pid": sleeper, "kind": "compute", "user": ME, "command": "sleep 600", "memory_bytes": 8 << 30, "run": None}
    ]
    assert idle["links"][busy["uuid"]] == "NV4"


def test_what_an_old_driver_does_not_know_is_not_supported_and_no_error(cli, tmp_path):
    old = with_uuids_of_its_own(nvml.StandIn(tmp_path / "old", without=nvml.ANCIENT_DRIVER))
    old.gpus = old.gpus[:1]
    old.gpus[0].power = None
    cli.environment |= old.environment()
    text = cli.reprobox("gpus").stdout
    assert states(text) == ["free"]
    assert " N/A/700W " in text
    (gpu,) = told(cli)["gpus"]
    assert (gpu["power_watts"], gpu["mig"], gpu["fan_percent"]) == (None, None, None)
    assert gpu["power_limit_watts"] == 700


def test_without_a_driver_a_sentence_says_so_and_a_script_gets_a_document(cli, driver):
    driver.fail["nvmlInit_v2"] = NOT_LOADED
    driver.write()
    done = cli.reprobox("gpus", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "reprobox: no GPUs: the NVIDIA driver is not loaded; install the NVIDIA driver, or run with --gpus none\n"
    )
    document = told(cli)
    assert document["gpus"] == []
    assert document["missing"] == "the NVIDIA driver is not loaded"
    assert document["remedy"].startswith("install")
    assert cli.reprobox("gpus", "--watch", check=False).returncode == 125


def test_a_scheduler_allocation_is_marked_and_explained(cli):
    text = cli.reprobox("gpus", environment={"CUDA_VISIBLE_DEVICES": "5,1"}).stdout
    allotted = [at for at, state in enumerate(states(text)) if "not allotted" not in state]
    assert allotted == [1, 5]
    assert "0 is GPU 5, 1 is GPU 1." in text
    gpus = told(cli, environment={"CUDA_VISIBLE_DEVICES": "5,1"})["gpus"]
    assert [gpu["index"] for gpu in gpus if gpu["allotted"]] == [1, 5]
    assert all(gpu["allotted"] for gpu in told(cli)["gpus"])


def test_the_topology_is_shown_where_it_is_asked_for(cli):
    matrix = cli.reprobox("gpus", "--topology").stdout.splitlines()[-11:-2]
    assert matrix[1].split() == ["0", "X", "NV4", "NV4", "NV4", "SYS", "SYS", "SYS", "SYS"]
    assert "NV4" not in cli.reprobox("gpus").stdout


def test_a_process_cannot_draw_on_the_table(cli, driver):
    with subprocess.Popen(["[red]sleep\x1b[2J", "600"], executable="/bin/sleep") as process:
        nvml.busy(driver.gpus[1], process.pid)
        driver.write()
        text = cli.reprobox("gpus").stdout
        process.kill()
    assert "\x1b" not in text
    assert f"busy: [red]sleep\N{REPLACEMENT CHARACTER}[2J ({ME})" in text


@pytest.mark.parametrize("arguments", [("more",), ("--engine", "moby"), ("--wach",)])
def test_wrong_usage_is_2(cli, arguments):
    done = cli.reprobox("gpus", *arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")


# Who has them


@contextlib.contextmanager
def a_run(cli, *flags):
    """A run on this machine that waits; gives its id and the pid of its command."""
    process = cli.start(
        "sh", "-c", "echo ready; echo $$; exec sleep 600", flags=("--seed", "42", "--self-test", "off", *flags)
    )
    try:
        yield cli.runs()[-1].name, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)
        process.stdout.close()


@pytest.mark.local
def test_a_live_run_is_shown_with_its_id_and_gone_with_its_end(cli, driver):
    with a_run(cli, "--gpus", "auto:2") as (run, pid):
        nvml.busy(driver.gpus[6], pid)
        driver.write()
        gpus = told(cli)["gpus"]
        text = cli.reprobox("gpus").stdout
    claimed = [gpu for gpu in gpus if gpu["claims"]]
    assert len(claimed) == 2
    for gpu in claimed:
        (claim,) = gpu["claims"]
        assert (claim["run"], claim["user"], claim["source"]) == (run, ME, "claim")
        assert "sleep 600" in claim["command"]
        assert gpu["occupied_by"] == f"run {run} of {ME}"
        assert gpu["free"] is False
    assert gpus[6]["processes"][0]["run"] == run, "the process is known by its environment"
    assert text.count(f"claimed: run {run} of {ME}") == 2
    assert [gpu["claims"] for gpu in told(cli)["gpus"]] == [[]] * 8


@pytest.mark.local
def test_what_is_shown_as_free_is_what_the_next_run_gets(cli, driver, sleeper):
    for i in (0, 2, 3, 4, 6, 7):
        nvml.busy(driver.gpus[i], sleeper)
    driver.write()
    with a_run(cli, "--gpus", "auto") as (first, _):
        (free,) = [gpu["uuid"] for gpu in told(cli)["gpus"] if gpu["free"]]
        with a_run(cli, "--gpus", "auto") as (second, _):
            gpus = told(cli)["gpus"]
            assert [gpu["uuid"] for gpu in gpus if [c["run"] for c in gpu["claims"]] == [second]] == [free]
            assert not any(gpu["free"] for gpu in gpus)
            refused = cli.run("true", flags=("--gpus", "auto", "--self-test", "off"), check=False)
            assert refused.returncode == 125
            assert f"run {first} of {ME}" in refused.stderr


@pytest.mark.engine
def test_a_process_in_a_box_belongs_to_its_run_and_one_beside_it_to_none(cli, driver, docker_client, image, sleeper):
    run = f"20261121T000000.000-{secrets.token_hex(2)}"
    box = docker_client.containers.create(
        image, ["600"], entrypoint="sleep", labels={"reprobox.run": run, "reprobox.gpus": driver.gpus[3].uuid}
    )
    try:
        box.start()
        box.reload()
        nvml.busy(driver.gpus[3], box.attrs["State"]["Pid"], sleeper)
        driver.write()
        del cli.environment["DOCKER_HOST"]
        gpu = told(cli)["gpus"][3]
        absent = told(cli, environment={"DOCKER_HOST": "unix:///nowhere.sock"})["gpus"][3]
    finally:
        box.remove(force=True)
    assert [process["run"] for process in gpu["processes"]] == [run, None]
    assert [(claim["run"], claim["source"]) for claim in gpu["claims"]] == [(run, "box")]
    assert gpu["occupied_by"] == f"run {run}, whose box still runs"
    assert [process["run"] for process in absent["processes"]] == [None, None]


def test_an_absent_engine_is_passed_over_unless_it_was_named(cli):
    assert cli.reprobox("gpus").stderr == ""
    named = cli.reprobox("gpus", "--engine", "docker")
    assert states(named.stdout) == ["free"] * 8
    assert named.stderr.startswith("reprobox: boxes are not shown: no container engine answers at unix://")
    assert cli.reprobox("gpus", "--engine", "local").stderr == ""


def test_an_engine_that_hangs_does_not_hold_up_the_table(cli):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{cli.folder}/no.sock")
        deaf.listen()
        began = time.monotonic()
        done = cli.reprobox("gpus")
    assert time.monotonic() - began < 15, "an engine is waited for 20 seconds otherwise"
    assert states(done.stdout) == ["free"] * 8
    assert "the container engine does not answer" in done.stderr


# Seen again and again


class Watcher:
    """A person at a terminal who watches."""

    def __init__(self, cli, *argv, rows=60, columns=120):
        environment = {name: value for name, value in cli.environment.items() if name not in ("COLUMNS", "LINES")}
        self.child = pexpect.spawn(
            argv[0] if argv else str(BIN / "reprobox"),
            list(argv[1:]) if argv else ["gpus", "--watch"],
            cwd=str(cli.folder),
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
def watcher(cli):
    made = []

    def make(*argv, **size):
        made.append(Watcher(cli, *argv, **size))
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
def piped(cli, *flags):
    process = subprocess.Popen(
        [str(BIN / "reprobox"), "gpus", "--watch", *flags],
        cwd=cli.folder,
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_watch_into_a_pipe_is_a_document_on_each_line(cli, driver, sleeper):
    with piped(cli, "--json") as process:
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


def test_watch_into_a_pipe_is_a_table_after_the_time_and_has_nothing_of_a_screen(cli):
    with piped(cli) as process:
        lines = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    times = [line for line in lines if line[:2] == "20" and len(line) == len("2026-11-21 05:55:58\n")]
    assert len(times) >= 2
    assert "\x1b" not in "".join(lines)
    assert states("".join(lines))[:8] == ["free"] * 8


def test_watch_ends_when_nobody_reads_any_more(cli):
    with piped(cli, "--json") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        process.stdout = None
