"""``reprobox gpus`` as a person and a script use it, on machines made by a stand-in for the driver's library."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import time

import pytest
from support import nvml
from support.gpus_table import ME, NOT_LOADED, states, told, with_uuids_of_its_own

PATIENCE = 30


# Seen once


def test_eight_idle_gpus_are_all_free(gpus_cli):
    text = gpus_cli.reprobox("gpus").stdout
    assert text.startswith("Driver 550.54.15   CUDA 12.4\n")
    assert states(text) == ["free"] * 8
    assert "No process runs on them." in text
    document = told(gpus_cli)
    assert [gpu["free"] for gpu in document["gpus"]] == [True] * 8
    assert (document["driver"], document["cuda"], document["missing"]) == ("550.54.15", "12.4", None)
    assert [gpu["index"] for gpu in document["gpus"]] == list(range(8))


def test_a_divided_a_busy_and_a_lost_gpu_say_what_they_are(gpus_cli, driver, sleeper):
    nvml.sliced(driver.gpus[0], "1g.10gb", "3g.40gb")
    nvml.busy(driver.gpus[1], sleeper)
    nvml.lost(driver.gpus[2])
    driver.write()
    text = gpus_cli.reprobox("gpus").stdout
    divided, first, second, busy, unusable, *others = states(text)
    assert (divided, first, second) == ("divided: 2 MIG instances", "free", "free")
    assert busy == f"busy: sleep ({ME})"
    assert unusable.startswith("unusable: the GPU has fallen off")
    assert others == ["free"] * 5
    assert [i["uuid"] for i in told(gpus_cli)["gpus"][0]["mig_instances"] if i["uuid"] in text] == [
        instance.uuid for instance in driver.gpus[0].mig
    ]
    assert text.rstrip().splitlines()[-1].split() == ["1", str(sleeper), "C", ME, "sleep", "600", "8192MiB", "-"]


def test_the_document_has_what_auto_goes_by(gpus_cli, driver, sleeper):
    nvml.busy(driver.gpus[1], sleeper)
    driver.write()
    idle, busy, *_ = told(gpus_cli)["gpus"]
    assert (idle["free"], idle["occupied_by"]) == (True, None)
    assert (busy["free"], busy["occupied_by"]) == (False, f"sleep 600 (pid {sleeper}, {ME})")
    assert busy["processes"] == [
        {"pid": sleeper, "kind": "compute", "user": ME, "command": "sleep 600", "memory_bytes": 8 << 30, "run": None}
    ]
    assert idle["links"][busy["uuid"]] == "NV4"


def test_what_an_old_driver_does_not_know_is_not_supported_and_no_error(gpus_cli, tmp_path):
    old = with_uuids_of_its_own(nvml.StandIn(tmp_path / "old", without=nvml.ANCIENT_DRIVER))
    old.gpus = old.gpus[:1]
    old.gpus[0].power = None
    gpus_cli.environment |= old.environment()
    text = gpus_cli.reprobox("gpus").stdout
    assert states(text) == ["free"]
    assert " N/A/700W " in text
    (gpu,) = told(gpus_cli)["gpus"]
    assert (gpu["power_watts"], gpu["mig"], gpu["fan_percent"]) == (None, None, None)
    assert gpu["power_limit_watts"] == 700


def test_without_a_driver_a_sentence_says_so_and_a_script_gets_a_document(gpus_cli, driver):
    driver.fail["nvmlInit_v2"] = NOT_LOADED
    driver.write()
    done = gpus_cli.reprobox("gpus", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "reprobox: no GPUs: the NVIDIA driver is not loaded; install the NVIDIA driver, or run with --gpus none\n"
    )
    document = told(gpus_cli)
    assert document["gpus"] == []
    assert document["missing"] == "the NVIDIA driver is not loaded"
    assert document["remedy"].startswith("install")
    assert gpus_cli.reprobox("gpus", "--watch", check=False).returncode == 125


def test_a_scheduler_allocation_is_marked_and_explained(gpus_cli):
    text = gpus_cli.reprobox("gpus", environment={"CUDA_VISIBLE_DEVICES": "5,1"}).stdout
    allotted = [at for at, state in enumerate(states(text)) if "not allotted" not in state]
    assert allotted == [1, 5]
    assert "0 is GPU 5, 1 is GPU 1." in text
    gpus = told(gpus_cli, environment={"CUDA_VISIBLE_DEVICES": "5,1"})["gpus"]
    assert [gpu["index"] for gpu in gpus if gpu["allotted"]] == [1, 5]
    assert all(gpu["allotted"] for gpu in told(gpus_cli)["gpus"])


def test_the_topology_is_shown_where_it_is_asked_for(gpus_cli):
    matrix = gpus_cli.reprobox("gpus", "--topology").stdout.splitlines()[-11:-2]
    assert matrix[1].split() == ["0", "X", "NV4", "NV4", "NV4", "SYS", "SYS", "SYS", "SYS"]
    assert "NV4" not in gpus_cli.reprobox("gpus").stdout


def test_a_process_cannot_draw_on_the_table(gpus_cli, driver):
    with subprocess.Popen(["[red]sleep\x1b[2J", "600"], executable="/bin/sleep") as process:
        nvml.busy(driver.gpus[1], process.pid)
        driver.write()
        text = gpus_cli.reprobox("gpus").stdout
        process.kill()
    assert "\x1b" not in text
    assert f"busy: [red]sleep\N{REPLACEMENT CHARACTER}[2J ({ME})" in text


@pytest.mark.parametrize("arguments", [("more",), ("--engine", "moby"), ("--wach",)])
def test_wrong_usage_is_2(gpus_cli, arguments):
    done = gpus_cli.reprobox("gpus", *arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")


# Who has them


@contextlib.contextmanager
def a_run(gpus_cli, *flags):
    """A run on this machine that waits; gives its id and the pid of its command."""
    process = gpus_cli.start("sh", "-c", "echo ready; echo $$; exec sleep 600", flags=("--seed", "42", *flags))
    try:
        yield gpus_cli.runs()[-1].name, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)
        process.stdout.close()


@pytest.mark.local
def test_a_live_run_is_shown_with_its_id_and_gone_with_its_end(gpus_cli, driver):
    with a_run(gpus_cli, "--gpus", "auto:2") as (run, pid):
        nvml.busy(driver.gpus[6], pid)
        driver.write()
        gpus = told(gpus_cli)["gpus"]
        text = gpus_cli.reprobox("gpus").stdout
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
    assert [gpu["claims"] for gpu in told(gpus_cli)["gpus"]] == [[]] * 8


@pytest.mark.local
def test_what_is_shown_as_free_is_what_the_next_run_gets(gpus_cli, driver, sleeper):
    for i in (0, 2, 3, 4, 6, 7):
        nvml.busy(driver.gpus[i], sleeper)
    driver.write()
    with a_run(gpus_cli, "--gpus", "auto") as (first, _):
        (free,) = [gpu["uuid"] for gpu in told(gpus_cli)["gpus"] if gpu["free"]]
        with a_run(gpus_cli, "--gpus", "auto") as (second, _):
            gpus = told(gpus_cli)["gpus"]
            assert [gpu["uuid"] for gpu in gpus if [c["run"] for c in gpu["claims"]] == [second]] == [free]
            assert not any(gpu["free"] for gpu in gpus)
            refused = gpus_cli.run("true", flags=("--gpus", "auto"), check=False)
            assert refused.returncode == 125
            assert f"run {first} of {ME}" in refused.stderr


@pytest.mark.engine
def test_a_process_in_a_box_belongs_to_its_run_and_one_beside_it_to_none(
    gpus_cli, driver, docker_client, image, sleeper
):
    run = f"20261121T000000.000-{secrets.token_hex(2)}"
    box = docker_client.containers.create(
        image, ["600"], entrypoint="sleep", labels={"reprobox.run": run, "reprobox.gpus": driver.gpus[3].uuid}
    )
    try:
        box.start()
        box.reload()
        nvml.busy(driver.gpus[3], box.attrs["State"]["Pid"], sleeper)
        driver.write()
        del gpus_cli.environment["DOCKER_HOST"]
        gpu = told(gpus_cli)["gpus"][3]
        absent = told(gpus_cli, environment={"DOCKER_HOST": "unix:///nowhere.sock"})["gpus"][3]
    finally:
        box.remove(force=True)
    assert [process["run"] for process in gpu["processes"]] == [run, None]
    assert [(claim["run"], claim["source"]) for claim in gpu["claims"]] == [(run, "box")]
    assert gpu["occupied_by"] == f"run {run}, whose box still runs"
    assert [process["run"] for process in absent["processes"]] == [None, None]


def test_an_absent_engine_is_passed_over_unless_it_was_named(gpus_cli):
    assert gpus_cli.reprobox("gpus").stderr == ""
    named = gpus_cli.reprobox("gpus", "--engine", "docker")
    assert states(named.stdout) == ["free"] * 8
    assert named.stderr.startswith("reprobox: boxes are not shown: no container engine answers at unix://")
    assert gpus_cli.reprobox("gpus", "--engine", "local").stderr == ""


def test_an_engine_that_hangs_does_not_hold_up_the_table(gpus_cli):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{gpus_cli.folder}/no.sock")
        deaf.listen()
        began = time.monotonic()
        done = gpus_cli.reprobox("gpus")
    assert time.monotonic() - began < 15, "an engine is waited for 20 seconds otherwise"
    assert states(done.stdout) == ["free"] * 8
    assert "the container engine does not answer" in done.stderr
