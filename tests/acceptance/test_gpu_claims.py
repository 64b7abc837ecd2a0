"""Runs that share a machine: --gpus auto, --exclusive and --wait-gpus, through the real command line.

The NVML library is a stand-in, read by the real nvidia-ml-py; the claims, their folder and the processes are real.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from support.nvml import busy, lost, sliced

from reprobox.gpus.claims import Claims

pytestmark = pytest.mark.local

RUNS = 200
KILLED = 50
QUICK = ("--no-log", "--seed", "1")

# Whoever has a GPU holds a lock on a file of its name, as the kernel sees it; a second one writes "shared".
HOLD = r"""
import fcntl, os, sys, time
folder, seconds = sys.argv[1], float(sys.argv[2])
for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
    held = os.open(os.path.join(folder, uuid), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(os.open(os.path.join(folder, "shared"), os.O_WRONLY | os.O_CREAT))
    os.close(os.open(os.path.join(folder, f"used {uuid}"), os.O_WRONLY | os.O_CREAT))
time.sleep(seconds)
"""


@pytest.fixture
def machine(standin_nvml, local):
    """Eight GPUs whose UUIDs no other test has: their claims are in the folder that all of this machine share."""
    for gpu in standin_nvml.gpus:
        gpu.uuid = f"GPU-{uuid.uuid4()}"
    local.environment |= standin_nvml.environment()
    local.write("hold.py", HOLD)
    (local.folder / "held").mkdir()
    local.standin = standin_nvml
    local.uuids = [gpu.uuid for gpu in standin_nvml.gpus]
    return local


def shows(machine, *flags, **options):
    """Which GPUs a run sees, by index."""
    done = machine.run("printenv", "CUDA_VISIBLE_DEVICES", flags=(*QUICK, *flags), **options)
    return [machine.uuids.index(one) for one in done.stdout.strip().split(",")], done.stderr


def refused(machine, *flags, **options):
    done = machine.run("true", flags=(*QUICK, *flags), check=False, **options)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def holding(machine, *flags, **options):
    """Start a run that stays, and return its process."""
    return machine.start("sh", "-c", "echo ready; exec sleep 60", flags=(*QUICK, *flags), **options)


def in_line(machine, *command, flags):
    """Start a run that waits for its GPUs."""
    argv = machine.argv(*command, flags=(*QUICK, *flags, "--wait-gpus"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, cwd=machine.folder, env=machine.environment, **pipes)


def claimed(machine):
    """The GPUs of this machine that somebody claims, by index."""
    ours = [gpu for holder in Claims().holders() for gpu in holder.gpus if gpu in machine.uuids]
    return sorted(machine.uuids.index(gpu) for gpu in ours)


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    process.wait(timeout=30)


def wait_until(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_auto_takes_what_is_idle_linked_and_nobodys_and_gives_it_back(machine):
    busy(machine.standin.gpus[0], os.getpid())
    lost(machine.standin.gpus[7])
    machine.standin.write()
    assert shows(machine, "--gpus", "auto")[0] == [1]  # the others are warmer
    first = holding(machine, "--gpus", "auto:2")
    assert claimed(machine) == [1, 2]
    second = holding(machine, "--gpus", "auto:3")
    assert claimed(machine) == [1, 2, 4, 5, 6]
    third = holding(machine, "--gpus", "auto")
    assert claimed(machine) == [1, 2, 3, 4, 5, 6]
    sentence = refused(machine, "--gpus", "auto")
    assert "0 of 7 GPUs free" in sentence
    assert f"(pid {os.getpid()}, " in sentence
    assert "add --wait-gpus" in sentence
    for process in (first, second, third):
        end(process)
    assert claimed(machine) == []
    assert machine.manifest()["outcome"] == "exited"


def test_a_named_gpu_that_is_claimed_is_shared_with_a_warning_refused_or_waited_for(machine):
    first = holding(machine, "--gpus", "2")
    run = machine.runs()[-1].name
    visible, said = shows(machine, "--gpus", "2,3")
    assert visible == [2, 3]
    assert f"GPU 2 is in use as well: run {run} of root" in said
    assert f"GPU 2 is in use: run {run} of root" in refused(machine, "--gpus", "2", "--exclusive")
    assert shows(machine, "--gpus", "3", "--exclusive")[0] == [3]
    waiting = in_line(machine, "printenv", "CUDA_VISIBLE_DEVICES", flags=("--gpus", "2"))
    assert waiting.stderr.readline() == f"reprobox: waiting for GPUs: GPU 2 is in use: run {run} of root\n"
    assert waiting.poll() is None
    end(first)
    assert waiting.communicate(timeout=30)[0].strip() == machine.uuids[2]
    assert waiting.returncode == 0


def test_a_process_that_is_no_run_is_not_shared_with_where_a_gpu_is_to_be_had_alone(machine):
    busy(machine.standin.gpus[4], os.getpid())
    machine.standin.write()
    assert shows(machine, "--gpus", "4")[0] == [4]
    assert f"(pid {os.getpid()}, " in refused(machine, "--gpus", "4", "--exclusive")
    assert shows(machine, "--gpus", "5", "--exclusive")[0] == [5]


def test_a_mig_instance_is_claimed_and_with_it_its_gpu(machine):
    sliced(machine.standin.gpus[0], "1g.10gb", "1g.10gb")
    machine.standin.write()
    first, second = (instance.uuid for instance in machine.standin.gpus[0].mig)
    process = holding(machine, "--gpus", first)
    try:
        assert "in use as well" in machine.run("true", flags=(*QUICK, "--gpus", first)).stderr
        assert "in use as well" not in machine.run("true", flags=(*QUICK, "--gpus", second)).stderr
        machine.standin.gpus = machine.standin.gpus[:1]
        machine.standin.write()
        assert machine.run("printenv", "CUDA_VISIBLE_DEVICES", flags=(*QUICK, "--gpus", "auto")).stdout == f"{second}\n"
    finally:
        end(process)


def test_waiting_ends_with_ctrl_c_and_leaves_no_place_in_the_line(machine):
    process = holding(machine, "--gpus", "all")
    waiting = in_line(machine, "true", flags=("--gpus", "auto"))
    assert "waiting for GPUs: --gpus auto cannot be met now" in waiting.stderr.readline()
    end(waiting, signal.SIGINT)
    assert waiting.returncode == 130
    second = in_line(machine, "true", flags=("--gpus", "auto"))
    assert "0 of 8 GPUs free" in second.stderr.readline()  # and not behind the first
    end(process)
    assert second.wait(timeout=30) == 0
    assert len(machine.runs()) == 2


def test_who_waits_is_served_before_who_came_later(machine):
    process = holding(machine, "--gpus", "all")
    order = machine.folder / "order"
    waiting = []
    for name in ("first", "second", "third"):
        command = ("sh", "-c", f"echo {name} >>{order}; sleep 0.3")
        waiting.append(in_line(machine, *command, flags=("--gpus", "auto:8")))
        assert "waiting for GPUs" in waiting[-1].stderr.readline()
    end(process)
    assert [one.wait(timeout=60) for one in waiting] == [0, 0, 0]
    assert order.read_text().split() == ["first", "second", "third"]


def test_a_claim_outlives_a_killed_command_line_as_long_as_its_command_runs(machine):
    process = holding(machine, "--gpus", "0,1")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    (child,) = map(int, children.split())
    end(process, signal.SIGKILL)
    assert claimed(machine) == [0, 1]
    assert shows(machine, "--gpus", "auto")[0] == [2]
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: claimed(machine) == [])
    assert shows(machine, "--gpus", "auto")[0] == [0]


def test_a_detached_run_keeps_its_claim_after_its_command_line_has_ended(machine):
    done = machine.run("sleep", "60", flags=(*QUICK, "-d", "--gpus", "auto:2"))
    assert claimed(machine) == [0, 1]
    assert shows(machine, "--gpus", "auto")[0] == [2]
    machine.reprobox("runs", "stop", done.stdout.strip(), check=False)
    wait_until(lambda: claimed(machine) == [])


def test_a_dry_run_says_what_would_be_taken_and_takes_nothing(machine):
    process = holding(machine, "--gpus", "0")
    try:
        done = machine.run("true", flags=("--gpus", "auto", "--dry-run", "--json", "--seed", "1"))
        assert f'"{machine.uuids[1]}"' in done.stdout
        assert claimed(machine) == [0]
    finally:
        end(process)


def test_a_scheduler_allots_what_can_be_taken(machine):
    allotted = {"CUDA_VISIBLE_DEVICES": f"{machine.uuids[3]},{machine.uuids[5]}"}
    assert shows(machine, "--gpus", "auto", environment=allotted)[0] == [3]
    assert shows(machine, "--gpus", "1,0", environment=allotted)[0] == [5, 3]
    assert shows(machine, environment=allotted)[0] == [3, 5]
    assert "0 of" not in refused(machine, "--gpus", "auto:3", environment=allotted)
    assert "outside what CUDA_VISIBLE_DEVICES allots" in refused(machine, "--gpus", "2", environment=allotted)
    assert shows(machine, "--gpus", "2", "--gpus-ignore-allocation", environment=allotted)[0] == [2]


def test_runs_without_a_folder_for_claims_say_so_and_go_on(machine):
    """In a mount namespace of its own, where the folder is one that nobody else can see into."""
    claims = Claims()._folder.path
    script = f'mkdir -p {claims} && mount -t tmpfs -o mode=0755,uid=65534 none {claims} && exec "$@"'
    argv = machine.argv("printenv", "CUDA_VISIBLE_DEVICES", flags=(*QUICK, "--gpus", "auto"))
    done = machine.call("unshare", "-m", "sh", "-c", script, "sh", *argv)
    assert done.stdout.strip() == machine.uuids[0]
    assert "these GPUs are not claimed: GPUs cannot be claimed in" in done.stderr


@pytest.mark.engine
def test_a_box_that_runs_on_without_its_command_line_keeps_its_gpus(machine, docker_client, image):
    """Its label is all that is left of the run: nobody holds its claim any more."""
    labels = {"reprobox.run": "20260101T000000.000-dead", "reprobox.gpus": f"{machine.uuids[0]},{machine.uuids[1]}"}
    flags = ("--engine", "docker", "--image", str(image), "--gpus", "auto", "--dry-run", "--json", "--seed", "1")
    cuda = docker_client.containers.create(image, ["sleep", "60"], environment={"REPROBOX_SELFTEST": "off"})
    try:
        made = cuda.commit(repository="reprobox-test-cuda", tag=str(os.getpid()), changes="LABEL reprobox.variant=cuda")
        flags = tuple(made.id if flag == str(image) else flag for flag in flags)
        box = docker_client.containers.run(
            image, ["sleep", "60"], labels=labels, environment={"REPROBOX_SELFTEST": "off"}, detach=True
        )
        try:
            assert f'"{machine.uuids[2]}"' in machine.run("true", flags=flags).stdout
            sentence = machine.run("true", flags=(*flags[:5], "auto:7", *flags[6:]), check=False).stderr
            assert "run 20260101T000000.000-dead, whose box still runs" in sentence
        finally:
            box.remove(force=True)
        assert f'"{machine.uuids[0]}"' in machine.run("true", flags=flags).stdout
    finally:
        cuda.remove(force=True)
        docker_client.images.remove(made.id, force=True)


def crowd(machine, runs, seconds, flags):
    """Start so many runs at once, and return their processes; ``flags`` are of the run with a number."""
    command = ("python", str(machine.folder / "hold.py"), str(machine.folder / "held"), str(seconds))
    return [
        subprocess.Popen(
            machine.argv(*command, flags=(*QUICK, *flags(number))),
            cwd=machine.folder,
            env={**machine.environment, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=open(machine.folder / "said", "a"),
        )
        for number in range(runs)
    ]


def test_200_runs_at_once_never_share_a_gpu_though_a_quarter_is_killed(machine):
    dice = random.Random(20261121)
    waits = {number: dice.random() < 0.5 for number in range(RUNS)}
    counts = {number: dice.choice([1, 1, 1, 2, 4]) for number in range(RUNS)}

    def flags(number):
        return ("--gpus", f"auto:{counts[number]}", *(("--wait-gpus",) if waits[number] else ()))

    processes = crowd(machine, RUNS, 0.2, flags)
    for number in dice.sample(range(RUNS), KILLED):
        time.sleep(dice.uniform(0, 0.8))
        processes[number].kill()
    codes = [process.wait(timeout=300) for process in processes]
    said = (machine.folder / "said").read_text()
    assert not (machine.folder / "held" / "shared").exists()
    assert len(list((machine.folder / "held").glob("used *"))) == 8
    assert codes.count(0) >= (RUNS - KILLED) // 2
    assert set(codes) <= {0, 125, -signal.SIGKILL}
    assert all("GPUs free" in line or "waiting for GPUs" in line for line in said.splitlines() if "GPUs" in line)
    assert not [codes[n] for n in range(RUNS) if waits[n] and codes[n] not in (0, -signal.SIGKILL)], (
        "one that waits is served"
    )
    wait_until(lambda: claimed(machine) == [])


def test_the_same_crowd_without_a_choice_does_share(machine):
    """The negative twin: runs that name their GPU share it, and the same lock shows it."""
    processes = crowd(machine, 6, 3, lambda _number: ("--gpus", "0"))
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    assert (machine.folder / "held" / "shared").exists()
    assert re.search(r"GPU 0 is in use as well: run \S+ of ", (machine.folder / "said").read_text())
