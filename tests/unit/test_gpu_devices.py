"""How a Docker Engine is asked for GPUs, by what it says of itself; and its refusals in a sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import docker.types
import pytest

from reprobox.engines.base import BoxSpec
from reprobox.engines.devices import GpuWay, cdi_names, device_request, gpu_way, why_no_gpus
from reprobox.engines.docker import DockerEngine
from reprobox.errors import EngineError, GpuError

A, B = "GPU-8f3a1b2c-0000-4000-8000-000000000000", "GPU-9d4b1b2c-0000-4000-8000-000000000001"
MIG = "MIG-8f3a1b2c-0000-5000-8000-000000000000"
RUNC = {"runc": {"path": "runc"}}

# The shape that nvidia-ctk 1.17 gives its YAML, and 1.14 with --device-name-strategy=index; hooks and mounts cut down.
YAML = """\
---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - update-ldcache
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: %s
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: all
kind: nvidia.com/gpu
"""


def discovered(*names):
    return {
        "Runtimes": RUNC,
        "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
        "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in names],
    }


@pytest.fixture(autouse=True)
def no_hook_on_this_machine(monkeypatch):
    monkeypatch.setattr("reprobox.engines.devices.shutil.which", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("info", "local", "expected"),
    [
        ({"Runtimes": RUNC}, True, "nvidia"),  # Engine 20.10, which tells nothing: to be tried
        ({"Runtimes": RUNC, "CDISpecDirs": None}, True, "nvidia"),
        ({"Runtimes": RUNC, "CDISpecDirs": ["/nowhere"]}, True, "nvidia"),
        (discovered(f"nvidia.com/gpu={A}"), False, "cdi"),
        (discovered(f"nvidia.com/gpu={A}"), True, "cdi"),
        (discovered("nvidia.com/gpu=0"), False, "cdi"),
        (discovered("amd.com/gpu=0"), False, "nvidia"),
        (discovered(), True, "nvidia"),
        ({**discovered(f"nvidia.com/gpu={A}"), "Runtimes": {**RUNC, "nvidia": {}}}, False, "nvidia"),
        ({}, False, "nvidia"),
    ],
)
def test_gpus_go_as_cdi_devices_where_the_engine_has_some_and_nothing_speaks_for_the_hook(info, local, expected):
    assert gpu_way(info, local=local) == GpuWay(expected)


def test_the_hook_on_this_machine_speaks_for_a_local_engine_alone(monkeypatch):
    monkeypatch.setattr("reprobox.engines.devices.shutil.which", lambda name, path=None: path and f"/usr/bin/{name}")
    info = discovered(f"nvidia.com/gpu={A}")
    assert gpu_way(info, local=True) is GpuWay.NVIDIA
    assert gpu_way(info, local=False) is GpuWay.CDI


def test_an_older_engines_specifications_are_read_where_they_lie(tmp_path):
    (tmp_path / "nvidia.yaml").write_text(YAML % A)
    one_line = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": MIG, "containerEdits": {}}]}
    (tmp_path / "more.json").write_text(json.dumps(one_line))
    (tmp_path / "other.json").write_text(json.dumps({**one_line, "kind": "vendor.com/nic", "devices": [{"name": B}]}))
    (tmp_path / "notes.txt").write_text(YAML % B)
    info = {"Runtimes": RUNC, "CDISpecDirs": [str(tmp_path), str(tmp_path / "absent")]}
    assert cdi_names(info, local=True) == {"0", A, "all", MIG}
    assert cdi_names(info, local=False) == frozenset()


def test_the_request_for_the_hook_names_uuids_in_order_and_the_driver():
    assert device_request(GpuWay.NVIDIA, [B, A], {}, local=True) == {
        "Driver": "nvidia",
        "Count": 0,
        "DeviceIDs": [B, A],
        "Capabilities": [["gpu"]],
        "Options": {},
    }


def test_the_request_for_cdi_devices_names_them_in_full_and_in_order():
    info = discovered(*(f"nvidia.com/gpu={name}" for name in ("0", "1", A, B, MIG, "all")))
    assert device_request(GpuWay.CDI, [MIG, B], info, local=False) == {
        "Driver": "cdi",
        "Count": 0,
        "DeviceIDs": [f"nvidia.com/gpu={MIG}", f"nvidia.com/gpu={B}"],
        "Capabilities": [],
        "Options": {},
    }


def test_a_specification_by_index_alone_is_refused_with_what_to_type_and_no_index_is_guessed():
    info = discovered("nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all", f"nvidia.com/gpu={A}")
    with pytest.raises(GpuError, match=f"no CDI device nvidia.com/gpu={B}") as caught:
        device_request(GpuWay.CDI, [A, B], info, local=False)
    assert "nvidia-ctk cdi generate --device-name-strategy=uuid" in caught.value.remedy


@pytest.mark.parametrize(
    ("info", "driver"), [({"Runtimes": RUNC}, "nvidia"), (discovered(f"nvidia.com/gpu={A}"), "cdi")]
)
def test_a_box_is_created_with_the_request_that_its_engine_understands(info, driver):
    engine = DockerEngine()
    engine.__dict__ |= {"_described": info, "client": SimpleNamespace(api=SimpleNamespace(base_url="http://far:2375"))}
    spec = BoxSpec(run_id="r", name="n", command=("true",), directory="/", environment={}, gpus=(A,))
    (request,) = engine.host_options(spec)["device_requests"]
    assert isinstance(request, docker.types.DeviceRequest)
    assert request["Driver"] == driver
    none = BoxSpec(run_id="r", name="n", command=("true",), directory="/", environment={})
    assert "device_requests" not in engine.host_options(none)


# Engine 20.10.24 with runc 1.1.5 and Podman 4.3.1 (the first two and the last) said it to these tests; the others are
# NVIDIA/nvidia-docker#1203 and #1602, NVIDIA/nvidia-container-toolkit#1246, and moby's daemon/cdi.go.
REFUSALS = [
    ('could not select device driver "nvidia" with capabilities: [[gpu]]', "install nvidia-container-toolkit"),
    (
        "OCI runtime create failed: runc create failed: unable to start container process: error during container init: "
        "error running hook #0: error running hook: exit status 1, stdout: , stderr: "
        f"nvidia-container-cli: device error: {A}: unknown device: unknown",
        f"its GPUs: device error: {A}: unknown device; see",
    ),
    (
        "OCI runtime create failed: container_linux.go:380: starting container process caused: process_linux.go:545: "
        "container init caused: Running hook #0:: error running hook: exit status 1, stdout: , stderr: "
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object "
        "file: no such file or directory: unknown",
        "its GPUs: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such "
        "file or directory; see",
    ),
    (
        'OCI runtime create failed: container_linux.go:345: starting container process caused "process_linux.go:430: '
        r"container init caused \"process_linux.go:413: running prestart hook 0 caused \\\"error running hook: exit "
        "status 1, stdout: , stderr: nvidia-container-cli: initialization error: driver error: failed to process request"
        r'\\n\\\"\"": unknown',
        "its GPUs: initialization error: driver error: failed to process request; see",
    ),
    (
        f"CDI device injection failed: unresolvable CDI devices nvidia.com/gpu={A}",
        f"no CDI device nvidia.com/gpu={A}, so",
    ),
    (
        "OCI runtime create failed: runc create failed: unable to start container process: error during container init: "
        "error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy' "
        "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
        "its GPUs: initialization error: nvml error: driver not loaded; see",
    ),
    (
        f"preparing container 5040 for attach: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu={A}, "
        f"nvidia.com/gpu={B}",
        f"not all of the CDI devices nvidia.com/gpu={A}, nvidia.com/gpu={B}, so",
    ),
]


@pytest.mark.parametrize(("said", "expected"), REFUSALS)
def test_an_engines_refusal_of_gpus_is_a_sentence_and_a_remedy(said, expected):
    refusal = why_no_gpus(
        EngineError(f"the engine could not start the box: {said}", detail=f'500 Server Error ("{said}")')
    )
    assert refusal is not None
    assert expected in str(refusal)
    assert refusal.remedy is not None
    assert said in str(refusal.detail)


@pytest.mark.parametrize(
    "said",
    [
        "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:80 failed: port is already allocated",
        'OCI runtime create failed: exec: "/usr/bin/tini": stat /usr/bin/tini: no such file or directory: unknown',
        'error gathering device information while adding custom device "/dev/nvidia9": no such file or directory',
    ],
)
def test_another_refusal_is_left_as_it_is(said):
    assert why_no_gpus(EngineError(f"the engine could not start the box: {said}")) is None
