"""GPUs on their way through a real engine: which arrive, in which order, and what is said when none do."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from support import nvml
from support.cli import Cli
from support.daemon import Daemon
from support.gpus_engine import CUDA_TAG, StandInHook, environment_of

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="a daemon of the tests' own needs root"),
]

VISIBLE = (
    "python",
    "-c",
    "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(('CUDA_', 'NVIDIA_'))}))",
)


@pytest.fixture(scope="module")
def cuda_image(small_image):
    return small_image.labelled("reprobox.variant", "cuda")


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    return StandInHook(tmp_path_factory.mktemp("hook"))


@pytest.fixture(scope="module")
def daemon_with_hook(cuda_image, hook):
    with Daemon(variables=hook.variables) as daemon:
        daemon.start().load(cuda_image, CUDA_TAG)
        yield daemon


@pytest.fixture(scope="module")
def daemon_without_hook(cuda_image):
    with Daemon() as daemon:
        daemon.start().load(cuda_image, CUDA_TAG)
        yield daemon


@pytest.fixture
def driver(tmp_path):
    """Eight GPUs, of which the last two are sliced."""
    gpus = nvml.eight_gpus()
    for gpu in gpus[6:]:
        nvml.sliced(gpu, "1g.10gb", "2g.20gb")
    return nvml.StandIn(tmp_path / "driver", gpus)


@pytest.fixture
def cli(tmp_path, daemon_with_hook, hook, driver):
    yield from on(daemon_with_hook, tmp_path, driver)
    hook.mend()
    hook.calls()


@pytest.fixture
def cli_without_hook(tmp_path, daemon_without_hook, driver):
    yield from on(daemon_without_hook, tmp_path, driver)


def on(daemon, tmp_path, driver):
    project = tmp_path / "project"
    project.mkdir()
    cli = Cli(project, "docker")
    cli.environment |= {**daemon.environment, **driver.environment()}
    for name in ("DOCKER_CONTEXT", "CUDA_VISIBLE_DEVICES"):
        cli.environment.pop(name, None)
    yield cli
    left = daemon.containers()
    daemon.remove_containers()
    assert left == []


def with_gpus(gpus, *more):
    flags = ("--seed", "42", "--network", "none", "--image", CUDA_TAG)
    return (*flags, "--gpus", gpus, *more)


def test_the_gpus_asked_for_arrive_at_nvidias_hook_in_the_order_asked_for(cli, hook, driver):
    asked = [driver.gpus[3].uuid, driver.gpus[0].uuid]
    inside = json.loads(cli.run(*VISIBLE, flags=with_gpus(",".join(asked))).stdout)
    (call,) = hook.calls()
    assert call["arguments"] == ["prestart"]
    assert environment_of(call)["NVIDIA_VISIBLE_DEVICES"] == ",".join(asked)
    assert inside["CUDA_VISIBLE_DEVICES"] == inside["NVIDIA_VISIBLE_DEVICES"] == ",".join(asked)
    assert inside["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_other_order_is_another_order(cli, hook, driver):
    asked = [driver.gpus[0].uuid, driver.gpus[3].uuid]
    inside = json.loads(cli.run(*VISIBLE, flags=with_gpus("0,3")).stdout)
    assert (
        inside["CUDA_VISIBLE_DEVICES"] == environment_of(hook.calls()[0])["NVIDIA_VISIBLE_DEVICES"] == ",".join(asked)
    )


def test_a_mig_instance_arrives_by_its_own_uuid(cli, hook, driver):
    instance = driver.gpus[6].mig[1].uuid
    inside = json.loads(cli.run(*VISIBLE, flags=with_gpus(instance)).stdout)
    assert inside["CUDA_VISIBLE_DEVICES"] == environment_of(hook.calls()[0])["NVIDIA_VISIBLE_DEVICES"] == instance


def test_a_run_without_gpus_asks_the_engine_for_none(cli, hook):
    inside = json.loads(cli.run(*VISIBLE, flags=with_gpus("none")).stdout)
    assert hook.calls() == []
    assert inside == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "", **inside}
    assert "NVIDIA_VISIBLE_DEVICES" not in inside
    assert cli.manifest()["gpus"]["devices"] == []


def test_the_record_says_which_gpus_and_through_what(cli, driver):
    cli.run("true", flags=with_gpus("5"))
    manifest = cli.manifest()
    assert [gpu["uuid"] for gpu in manifest["gpus"]["devices"]] == [driver.gpus[5].uuid]
    assert manifest["engine"]["gpus"] == "nvidia"


def test_a_hook_that_fails_is_one_sentence_and_leaves_nothing(cli, hook, driver):
    hook.fail(f"nvidia-container-cli: device error: {driver.gpus[1].uuid}: unknown device\n")
    done = cli.run("echo", "never", flags=with_gpus("1"), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    said = done.stderr.splitlines()[-1]
    assert f"could not give the box its GPUs: device error: {driver.gpus[1].uuid}: unknown device; see whether" in said
    assert "Traceback" not in done.stderr
    assert "OCI" not in done.stderr
    assert cli.manifest()["outcome"] == "failed"
    assert not (cli.runs()[-1] / "box").exists()


def test_a_hook_that_is_mended_lets_the_same_command_run(cli, hook):
    hook.fail("nvidia-container-cli: initialization error: nvml error: driver not loaded\n")
    assert cli.run("echo", "seen", flags=with_gpus("1"), check=False).returncode == 125
    hook.mend()
    assert cli.run("echo", "seen", flags=with_gpus("1")).stdout == "seen\n"


def test_without_the_hook_a_box_is_refused_with_what_to_install(cli_without_hook):
    done = cli_without_hook.run("echo", "never", flags=with_gpus("0"), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    said = done.stderr.splitlines()[-1]
    assert "neither NVIDIA's runtime hook nor NVIDIA's CDI devices" in said
    assert "install nvidia-container-toolkit" in said
    assert "nvidia-ctk cdi generate" in said


def test_without_the_hook_a_box_without_gpus_runs(cli_without_hook):
    assert cli_without_hook.run("echo", "seen", flags=with_gpus("none")).stdout == "seen\n"


def test_a_running_box_is_labelled_with_its_gpus(cli, daemon_with_hook, driver):
    asked = f"{driver.gpus[2].uuid},{driver.gpus[1].uuid}"
    process = cli.start("sh", "-c", "echo ready; exec sleep 60", flags=with_gpus(asked))
    try:
        with contextlib.closing(daemon_with_hook.client()) as client:
            (box,) = client.containers.list()
            assert box.labels["reprobox.gpus"] == asked
    finally:
        process.terminate()
        process.wait(timeout=30)
