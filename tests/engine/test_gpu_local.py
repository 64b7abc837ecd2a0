"""GPUs on this machine itself: by UUID in the environment, for children too; and what a command holds open for its run."""

from __future__ import annotations

import fcntl
import json
import os
import time

import pytest
from support import nvml

from reprobox.engines import BoxSpec, EngineName, open_engine

pytestmark = pytest.mark.local

OF_A_CHILD = """
import json, os, subprocess, sys
said = {name: value for name, value in os.environ.items() if name.startswith("CUDA_")}
if len(sys.argv) < 2:
    said["child"] = json.loads(subprocess.check_output([sys.executable, __file__, "child"]))
print(json.dumps(said))
"""


@pytest.fixture
def local_with_gpus(local, tmp_path):
    local.environment |= nvml.StandIn(tmp_path / "driver").environment()
    local.environment.pop("CUDA_VISIBLE_DEVICES", None)
    local.environment.pop("CUDA_DEVICE_ORDER", None)
    return local


def seen_by(cli, gpus):
    program = cli.write("look.py", OF_A_CHILD)
    return json.loads(cli.run("python", program.name, flags=("--seed", "42", *gpus)).stdout)


def test_a_command_and_its_children_see_the_gpus_asked_for_by_uuid_in_that_order(local_with_gpus):
    eight = [gpu.uuid for gpu in nvml.eight_gpus()]
    expected = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": f"{eight[3]},{eight[0]}"}
    assert seen_by(local_with_gpus, ("--gpus", "3,0")) == {**expected, "child": expected}


def test_a_command_that_was_to_have_none_sees_none_and_so_do_its_children(local_with_gpus):
    expected = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ""}
    assert seen_by(local_with_gpus, ("--gpus", "none")) == {**expected, "child": expected}


def running(tmp_path, *, keep_open, terminal):
    spec = BoxSpec(
        run_id="kept",
        name="reprobox-kept",
        command=("/bin/sh", "-c", f"touch {tmp_path}/started; exec sleep 60"),
        directory="/",
        environment={"REPROBOX_SEED": "1", "REPROBOX_QUIET": "on", "REPROBOX_RUN_DIR": str(tmp_path)},
        terminal=terminal,
        keep_open=keep_open,
    )
    return open_engine(EngineName.LOCAL).create(spec)


def is_locked(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_a_lock_handed_to_the_command_is_held_until_it_ends_and_no_other_is(tmp_path, kept, terminal):
    path = tmp_path / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with running(tmp_path, keep_open=(descriptor,) if kept else (), terminal=terminal) as box:
        box.attach()
        box.start()
        os.close(descriptor)  # as the end of the process that started it would
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert is_locked(path) == kept
    assert not is_locked(path)
