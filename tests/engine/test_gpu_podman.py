"""GPUs on their way into Podman's boxes as CDI devices, with root and without."""

from __future__ import annotations

import json
import time

import pytest
from support import nvml
from support.daemon import TAG
from support.engine import finish
from support.gpus_engine import CUDA_TAG, StandInCdi
from support.podman import AS_ROOT, require_podman

from reprobox.engines import GPUS_LABEL, RUN_LABEL, BoxOptions, BoxSpec, EngineName, GpuBox, Mount, open_engine
from reprobox.engines.base import Device, Port, Ulimit
from reprobox.errors import EngineError, GpuError

pytestmark = pytest.mark.podman


@pytest.fixture(scope="module")
def cdi():
    require_podman()
    with StandInCdi() as cdi:
        yield cdi


@pytest.fixture
def engine(podman_service, monkeypatch):
    monkeypatch.setenv("CONTAINER_HOST", podman_service.address)
    return open_engine(EngineName.PODMAN)


LOOK = """
import json, os
devices = {}
for name in os.listdir("/dev"):
    if name.startswith("reprobox-"):
        status = os.stat(f"/dev/{name}")
        devices[f"/dev/{name}"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        with open(f"/dev/{name}", "r+b", buffering=0) as file:
            file.write(b"written")
print(json.dumps({
    "devices": devices,
    "environment": dict(os.environ),
    "mounted": os.path.exists("/opt/of-the-specification"),
}))
"""


def box_of(service, *command, gpus=(), **more):
    moment = time.time_ns()
    labels = {RUN_LABEL: f"gpus-{moment}", **({GPUS_LABEL: ",".join(gpus)} if gpus else {})}
    given = {
        "run_id": f"gpus-{moment}",
        "name": f"reprobox-gpus-{moment}",
        "image": TAG,
        "command": command,
        "directory": "/",
        "environment": {
            "REPROBOX_SEED": "1",
            "REPROBOX_QUIET": "on",
            "REPROBOX_RUN_DIR": "/tmp",
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        },
        "user": f"{service.uid}:{service.gid}",
        "tmpfs": {"/tmp": "rw,exec,mode=1777"},
        "network": "none",
        "gpus": gpus,
        "labels": labels,
    }
    return BoxSpec(**{**given, **more})


def look(engine, service, gpus):
    ended, stdout, stderr = finish(engine.create(box_of(service, "python", "-c", LOOK, gpus=gpus)))
    assert ended.code == 0, stderr
    return json.loads(stdout)


def test_the_gpus_asked_for_are_in_the_box_and_can_be_used_and_no_other_is(engine, podman_service, cdi):
    asked = (cdi.gpus[1], cdi.mig)
    seen = look(engine, podman_service, asked)
    assert seen["devices"] == {cdi.node(uuid): [1, 3] for uuid in asked}
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(asked)
    assert seen["environment"]["OF_THE_SPECIFICATION"] == cdi.mark
    assert seen["mounted"]


def inspected(engine, spec):
    """Return what Podman says of a box, without what every box has of its own."""
    with engine.create(spec) as box:
        api = engine.client.api
        answer = api.get(f"{api.base_url}/v4.0.0/libpod/containers/{box.id}/json")
        answer.raise_for_status()
        return settled(json.loads(answer.text.replace(box.id, "ID").replace(box.id[:12], "ID")))


def settled(value):
    if isinstance(value, dict):
        return {name: settled(inner) for name, inner in value.items() if name not in OF_EVERY_BOX}
    if isinstance(value, list):
        return sorted((settled(inner) for inner in value), key=json.dumps)
    return value


OF_EVERY_BOX = {
    "Created",
    "CreateCommand",
    "StartedAt",
    "FinishedAt",
    "SandboxKey",
    "ConmonPidFile",
    "PidFile",
    "GraphDriver",
}


def test_a_box_with_gpus_differs_from_one_without_in_its_devices_alone(engine, podman_service, cdi):
    folder = podman_service.folder()
    options = BoxOptions(
        memory_bytes=None if podman_service.rootless else 256 << 20,
        cpus=None if podman_service.rootless else 1.5,
        cpuset=None if podman_service.rootless else "0",
        pids_limit=500,
        ulimits=(Ulimit(name="nofile", soft=512, hard=1024),),
        devices=(Device(source="/dev/full", target="/dev/filled", permissions="r"),),
        groups=("27",),
        ports=(
            Port(box_port=80, host_port=18080, host_address="127.0.0.1"),
            Port(box_port=53, protocol="udp", host_port=15353),
        ),
        hostname="named",
        hosts={"elsewhere": "10.1.2.3"},
        ipc="private",
        cap_add=("SYS_NICE",),
        labels={"of": "mine"},
        stop_timeout=3,
    )
    specs = [
        box_of(
            podman_service,
            "echo",
            "a b",
            gpus=gpus,
            labels={RUN_LABEL: "same"},
            name="reprobox-same",
            run_id="same",
            environment={"EMPTY": "", "EQUAL": "a=b", "PATH": None, "REPROBOX_SEED": "1"},
            mounts=(
                Mount(source=str(folder), target="/workspace"),
                Mount(source=str(folder), target="/elsewhere", read_only=True),
                Mount(source="volume-of-the-test", target="/volume", kind="volume"),
            ),
            tmpfs={
                "/tmp": "rw,exec,nosuid,nodev,mode=1777",
                "/home/box": f"rw,mode=0700,uid={podman_service.uid},gid=0",
            },
            shm_bytes=32 << 20,
            network="bridge",
            stdin=True,
            options=options,
        )
        for gpus in ((), cdi.gpus)
    ]
    without, with_gpus = (inspected(engine, spec) for spec in specs)
    assert with_gpus == without
    assert {"/workspace", "/elsewhere", "/volume"} <= {mount["Destination"] for mount in with_gpus["Mounts"]}
    assert len(with_gpus["HostConfig"]["PortBindings"]) == 2


def test_podman_before_5_4_ignores_a_request_for_cdi_devices_and_a_newer_one_heeds_it(
    engine, podman_service, cdi, monkeypatch
):
    heeds = engine._takes_cdi_requests
    monkeypatch.setattr(type(engine), "_takes_cdi_requests", True)
    asked = cdi.gpus[:1]
    assert look(engine, podman_service, asked)["devices"] == ({cdi.node(asked[0]): [1, 3]} if heeds else {})


@AS_ROOT
def test_a_gpu_that_no_specification_names_is_refused_with_what_to_type(engine, podman_service, cdi):
    absent = cdi.gpus[0][:-1] + "9"
    with pytest.raises(GpuError, match=f"has no CDI device nvidia.com/gpu={absent}, so") as caught:
        finish(engine.create(box_of(podman_service, "true", gpus=(absent,))))
    with pytest.raises(GpuError, match=f"has not all of the CDI devices .*{absent}"):
        finish(engine.create(box_of(podman_service, "true", gpus=(cdi.gpus[0], absent))))
    assert "nvidia-ctk cdi generate --device-name-strategy=uuid" in caught.value.remedy


@AS_ROOT
def test_what_podman_refuses_of_a_box_with_gpus_is_an_error_and_leaves_nothing(engine, podman_service, cdi):
    with pytest.raises(EngineError, match=r"could not create the box: .*no such file or directory"):
        engine.create(box_of(podman_service, "true", gpus=cdi.gpus, mounts=(Mount(source="/not/there", target="/x"),)))
    assert podman_service.containers() == []


@AS_ROOT
def test_boxes_with_gpus_are_listed_while_they_live(engine, podman_service, cdi):
    spec = box_of(podman_service, "sleep", "60", gpus=cdi.gpus)
    with engine.create(spec) as box:
        assert engine.gpu_boxes() == (GpuBox(run_id=spec.run_id, gpus=cdi.gpus, state="created"),)
        box.attach()
        box.start()
        assert engine.gpu_boxes() == (GpuBox(run_id=spec.run_id, gpus=cdi.gpus, state="running"),)
    assert engine.gpu_boxes() == ()


@pytest.fixture
def podman_with_gpus(podman, cdi, tmp_path):
    """The command line on Podman, on a machine whose driver has the GPUs that the specification describes."""
    service = podman.service
    if service.podman("image", "exists", CUDA_TAG, check=False).returncode:
        service.load(service.image.labelled("reprobox.variant", "cuda"), CUDA_TAG)
    gpus = [nvml.StandInGpu(uuid=uuid, bus=bus) for uuid, bus in zip(cdi.gpus, nvml.BUSES, strict=False)]
    gpus.append(nvml.sliced(nvml.StandInGpu(uuid=f"GPU-{cdi.mark}-9", bus=nvml.BUSES[2]), "1g.10gb"))
    gpus[2].mig[0].uuid = cdi.mig
    driver = nvml.StandIn(service.folder(), gpus)
    podman.environment |= driver.environment()
    podman.environment.pop("CUDA_VISIBLE_DEVICES", None)
    return podman


def test_the_command_line_brings_gpus_into_podmans_boxes(podman_with_gpus, cdi):
    for asked, uuids in {"1,0": cdi.gpus[::-1], cdi.mig: (cdi.mig,)}.items():
        flags = ("--image", CUDA_TAG, "--gpus", asked)
        seen = json.loads(podman_with_gpus.run("python", "-c", LOOK, flags=flags).stdout)
        assert seen["devices"] == {cdi.node(uuid): [1, 3] for uuid in uuids}
        assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(uuids)
        assert seen["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    manifest = podman_with_gpus.manifest()
    assert [gpu["uuid"] for gpu in manifest["gpus"]["devices"]] == [cdi.mig]
    assert manifest["engine"]["gpus"] == "cdi"


@AS_ROOT
def test_a_gpu_that_the_driver_has_and_no_specification_is_refused_in_one_sentence(podman_with_gpus, cdi):
    cdi.path.rename(cdi.path.with_suffix(".away"))
    try:
        flags = ("--image", CUDA_TAG, "--gpus", "0")
        done = podman_with_gpus.run("echo", "never", flags=flags, check=False)
    finally:
        cdi.path.with_suffix(".away").rename(cdi.path)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"has no CDI device nvidia.com/gpu={cdi.gpus[0]}" in done.stderr.splitlines()[-1]
    assert "nvidia-ctk cdi generate" in done.stderr.splitlines()[-1]
