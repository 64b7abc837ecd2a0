"""What every engine promises, asked of the fake, of this machine, of Docker and of Podman alike."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from support.daemon import TAG
from support.engine import finish

from reprobox.engines import GPUS_LABEL, RUN_LABEL, BoxSpec, EngineName, Exit, GpuBox, Mount, open_engine
from reprobox.engines.fake import FakeEngine, Script
from reprobox.errors import EngineError

ENGINES = [
    "fake",
    pytest.param("local", marks=pytest.mark.local),
    pytest.param("docker", marks=pytest.mark.engine),
    pytest.param("podman_with_root", marks=pytest.mark.podman),
    pytest.param("podman_without_root", marks=pytest.mark.podman),
]


@pytest.fixture(params=ENGINES)
def make(request, tmp_path, monkeypatch):
    """Returns a function that makes a box for a shell command; the fake is told what the command would do."""
    kind, image, folder = request.param, None, tmp_path
    if kind == "docker":
        image = request.getfixturevalue("image")
    elif kind.startswith("podman"):
        service = request.getfixturevalue(kind)
        monkeypatch.setenv("CONTAINER_HOST", service.address)
        kind, image, folder = "podman", TAG, service.folder()
    contained = image is not None
    run_dir = folder / "run"
    run_dir.mkdir()
    run_dir.chmod(0o777)

    def box(command, script, gpus=None):
        run_id = f"contract-{time.time_ns()}"
        spec = BoxSpec(
            run_id=run_id,
            name=f"reprobox-contract-{time.time_ns()}",
            image=image,
            command=tuple(command),
            directory="/",
            environment={
                "REPROBOX_SEED": "1",
                "REPROBOX_QUIET": "on",
                "REPROBOX_RUN_DIR": "/run/reprobox/run" if contained else str(run_dir),
                "PATH": None if contained else "/usr/bin:/bin",
            },
            mounts=(Mount(source=str(run_dir), target="/run/reprobox/run"),),
            tmpfs={"/tmp": "rw,exec,mode=1777"},
            labels={RUN_LABEL: run_id, **({GPUS_LABEL: gpus} if gpus else {})},
        )
        box.engine = FakeEngine(script=script) if kind == "fake" else open_engine(EngineName(kind))
        box.run_id = run_id
        return box.engine.create(spec)

    return box


def test_the_exit_code_is_the_commands(make):
    ended, _, _ = finish(make(["/bin/sh", "-c", "exit 72"], Script(exit=Exit(code=72))))
    assert ended == Exit(code=72)


def test_streams_stay_apart(make):
    script = Script(output=[("stdout", b"o\n"), ("stderr", b"e\n")])
    assert finish(make(["/bin/sh", "-c", "echo o; echo e >&2"], script))[1:] == (b"o\n", b"e\n")


def test_every_byte_value_survives(make):
    everything = bytes(range(256))
    octal = "".join(f"\\{i:03o}" for i in range(256))
    script = Script(output=[("stdout", everything)])
    assert finish(make(["/bin/sh", "-c", f"printf '{octal}'"], script))[1] == everything


def test_two_hundred_lines_and_an_instant_exit_are_complete(make):
    lines = b"".join(b"line %d\n" % i for i in range(200))
    script = Script(output=[("stdout", lines)])
    for _ in range(5):
        assert (
            finish(make(["/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done"], script))[1]
            == lines
        )


def test_a_signal_reaches_the_command(make):
    box = make(
        ["/bin/sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done"],
        Script(output=[("stdout", b"ready\n")], exit=Exit(code=42)),
    )

    def write(_stream, data):
        if b"ready" in data:
            threading.Thread(target=box.signal, args=(signal.SIGTERM,)).start()

    with box:
        box.attach()
        box.start()
        box.stream(write, print)
        assert box.wait().code == 42


def test_an_untrapped_signal_is_128_and_its_number(make):
    ended, _, _ = finish(make(["/bin/sh", "-c", "kill -SEGV $$"], Script(exit=Exit(code=139))))
    assert ended.code == 139


def test_a_signal_after_the_end_is_no_error(make):
    box = make(["/bin/true"], Script())
    with box:
        box.attach()
        box.start()
        box.stream(lambda _stream, _data: None, print)
        box.wait()
        box.signal(signal.SIGTERM)


def gpu_boxes(make):
    """Boxes of the run made last that have GPUs; other sessions may have theirs on the same engine."""
    return [found for found in make.engine.gpu_boxes() if found.run_id == make.run_id]


def test_a_box_with_gpus_is_listed_until_it_ends(make):
    box = make(["/bin/sh", "-c", "exec sleep 60"], Script(), gpus="GPU-b,GPU-a")
    listed = make.engine.name != "local"

    def expected(state):
        return [GpuBox(run_id=make.run_id, gpus=("GPU-b", "GPU-a"), state=state)] if listed else []

    with box:
        assert gpu_boxes(make) == expected("created")
        box.attach()
        box.start()
        assert gpu_boxes(make) == expected("running")
        box.signal(signal.SIGKILL)
        box.wait()
        assert gpu_boxes(make) == []
    assert gpu_boxes(make) == []


def test_a_box_without_gpus_is_not_listed(make):
    box = make(["/bin/sleep", "60"], Script())
    with box:
        box.attach()
        box.start()
        assert gpu_boxes(make) == []
        box.signal(signal.SIGKILL)
        box.wait()


@pytest.mark.engine
def test_a_box_that_nobody_started_is_listed_for_a_while_only(docker_client, image, monkeypatch):
    engine = open_engine(EngineName.DOCKER)
    spec = BoxSpec(
        run_id="unstarted",
        name=f"reprobox-unstarted-{time.time_ns()}",
        image=image,
        command=("sleep", "60"),
        directory="/",
        environment={},
        labels={RUN_LABEL: "unstarted", GPUS_LABEL: "GPU-c"},
    )

    def listed():
        return [found.state for found in engine.gpu_boxes() if found.gpus == ("GPU-c",)]

    with engine.create(spec) as box:
        assert listed() == ["created"]
        monkeypatch.setattr("reprobox.engines.docker.NEVER_STARTED_SECONDS", -1)
        assert listed() == []
        box.attach()
        box.start()
        assert listed() == ["running"]
        docker_client.api.pause(box.id)
        assert listed() == ["paused"]
        docker_client.api.unpause(box.id)


@pytest.mark.engine
def test_a_box_is_gone_after_the_block_however_far_it_came(docker_client, image):
    engine = open_engine(EngineName.DOCKER)

    def names():
        return [
            c.name
            for c in docker_client.containers.list(all=True, ignore_removed=True)
            if c.name.startswith("reprobox-gone-")
        ]

    for step in range(3):
        spec = BoxSpec(
            run_id="gone",
            name=f"reprobox-gone-{step}",
            image=image,
            command=("sleep", "60"),
            directory="/",
            environment={"REPROBOX_SEED": "1"},
        )
        with pytest.raises(ZeroDivisionError), engine.create(spec) as box:
            assert names()
            if step > 0:
                box.attach()
            if step > 1:
                box.start()
            raise ZeroDivisionError
        assert names() == []


@pytest.mark.engine
def test_a_name_that_is_taken_is_an_error_and_leaves_the_other_alone(docker_client, image):
    engine = open_engine(EngineName.DOCKER)
    spec = BoxSpec(run_id="n", name="reprobox-taken", image=image, command=("true",), directory="/", environment={})
    with engine.create(spec):
        with pytest.raises(EngineError, match="already in use"):
            engine.create(spec)
        assert docker_client.containers.get("reprobox-taken")
