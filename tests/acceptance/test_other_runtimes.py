"""The image where no command line of ours starts it: a Kubernetes pod, and Apptainer on a cluster."""

from __future__ import annotations

import contextlib
import json
import uuid

import pytest
from support.apptainer import Apptainer
from support.daemon import TAG

PROGRAM = "import random; print(random.random(), list({'a', 'b', 'c', 'd', 'e', 'f'}))"
QUIET = {"REPROBOX_SELFTEST": "off"}


@pytest.fixture(scope="module")
def drawn(podman_with_root):
    """What a program draws through the entrypoint, by seed."""

    def draw(seed):
        given = ["--env", f"REPROBOX_SEED={seed}", "--env", "REPROBOX_SELFTEST=off", "--network=none"]
        done = podman_with_root.podman(
            "run", "--rm", *given, TAG, "python", "-c", PROGRAM, capture_output=True, text=True
        )
        return done.stdout

    made = {seed: draw(seed) for seed in (7, 8)}
    assert made[7] != made[8]
    return made


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def pod(name, words, environment):
    """A pod as a job's template gives it: ``command:`` takes the place of the image's entrypoint."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "containers": [
                {
                    "name": "train",
                    "image": f"localhost/{TAG}",
                    "imagePullPolicy": "Never",
                    "env": [{"name": each, "value": value} for each, value in environment.items()],
                    **words,
                }
            ],
        },
    }


@pytest.fixture
def play(podman_with_root, tmp_path):
    """Have a pod's container run to its end; return its standard output."""

    def play(words, **environment):
        name = f"pod-{uuid.uuid4().hex[:12]}"
        (tmp_path / "pod.yaml").write_text(json.dumps(pod(name, words, environment)))  # JSON is YAML
        podman = podman_with_root.podman
        with contextlib.ExitStack() as stack:
            stack.callback(podman, "pod", "rm", "--force", "--time=0", name, check=False, capture_output=True)
            podman("play", "kube", str(tmp_path / "pod.yaml"), capture_output=True)
            podman("wait", f"{name}-train", capture_output=True)
            return podman("logs", f"{name}-train", capture_output=True, text=True).stdout

    return play


@pytest.mark.podman
@pytest.mark.parametrize(
    "words",
    [
        {"command": ["python", "-c", PROGRAM]},
        {"args": ["python", "-c", PROGRAM]},
        {"command": ["sh", "-c", f'exec python -c "{PROGRAM}"']},
    ],
    ids=["command", "args", "a shell"],
)
def test_a_pod_is_seeded_with_and_without_the_images_entrypoint(play, drawn, words):
    assert play(words, REPROBOX_SEED="7", **QUIET) == drawn[7]


@pytest.mark.podman
def test_a_pod_of_another_seed_or_of_none_draws_other_numbers(play, drawn):
    words = {"command": ["python", "-c", PROGRAM]}
    assert play(words, REPROBOX_SEED="8") == drawn[8]
    assert len({play(words), play(words), *drawn.values()}) == 4


# --- Apptainer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apptainer(podman_with_root, tmp_path_factory):
    archive = tmp_path_factory.mktemp("apptainer") / "image.tar"
    podman_with_root.podman("save", "--quiet", "--format=docker-archive", f"--output={archive}", TAG)
    with contextlib.closing(Apptainer(archive)) as apptainer:
        yield apptainer


@pytest.mark.newer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_apptainer_gives_an_ordinary_user_the_same_numbers_with_and_without_the_entrypoint(apptainer, drawn, verb):
    done = apptainer.call(verb, "python", "-c", PROGRAM, REPROBOX_SEED="7", **QUIET)
    assert done.stdout == drawn[7]
    assert done.stderr == ("reprobox: seed 7, profile strict, 4 threads on 2 cores\n" if verb == "run" else "")


@pytest.mark.newer
def test_apptainer_draws_other_numbers_with_another_seed_or_none(apptainer, drawn):
    program = ("exec", "python", "-c", PROGRAM)
    assert apptainer.call(*program, REPROBOX_SEED="8").stdout == drawn[8]
    assert len({apptainer.call(*program).stdout for _ in range(2)} | set(drawn.values())) == 4


@pytest.mark.newer
@pytest.mark.parametrize(("command", "code"), [(("sh", "-c", "exit 3"), 3), (("nosuchprogram",), 127)])
def test_the_exit_code_of_apptainer_run_is_the_commands(apptainer, command, code):
    assert apptainer.call("run", *command, REPROBOX_SEED="7", **QUIET).returncode == code
