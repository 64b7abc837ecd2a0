"""The image with no command line at all: ``docker run IMAGE …`` seeds, announces and behaves."""

from __future__ import annotations

import json

import pytest
from docker.errors import ContainerError
from support.programs import DRAWS, FLAGS

from reprobox.recipe import BOX_PROTOCOL

pytestmark = pytest.mark.engine


@pytest.fixture
def bare(docker_client, image):
    """``docker run --rm -e … IMAGE command``, returning (exit code, stdout, stderr).

    Without the self-test, which takes its seconds at every start of the image alone, unless it is asked for.
    """

    def run(*command, environment=None, selftest="off", **options):
        environment = {"REPROBOX_SELFTEST": selftest, **(environment or {})} if selftest else environment
        container = docker_client.containers.create(image, list(command), environment=environment, **options)
        try:
            container.start()
            code = container.wait()["StatusCode"]
            return (
                code,
                container.logs(stdout=True, stderr=False).decode(),
                container.logs(stdout=False, stderr=True).decode(),
            )
        finally:
            container.remove(force=True)

    return run


def test_it_seeds_with_no_command_line_at_all(bare):
    first = bare("python", "-c", DRAWS, environment={"REPROBOX_SEED": "7"})
    assert first[0] == 0
    assert bare("python", "-c", DRAWS, environment={"REPROBOX_SEED": "7"})[1] == first[1]
    assert bare("python", "-c", DRAWS, environment={"REPROBOX_SEED": "8"})[1] != first[1]
    off = {bare("python", "-c", DRAWS, environment={"REPROBOX_PROFILE": "off"})[1] for _ in range(3)}
    assert len(off | {first[1]}) == 4


def test_it_announces_one_line_and_a_drawn_seed_can_be_used_again(bare):
    code, out, err = bare("python", "-c", DRAWS, selftest=None)
    assert code == 0
    announced, proved = err.splitlines()
    assert announced.startswith("reprobox: seed ")
    assert proved.startswith("reprobox: self-test ")
    seed = err.split("seed ")[1].split()[0]
    assert "drawn" in err
    assert bare("python", "-c", DRAWS, environment={"REPROBOX_SEED": seed})[1] == out


def test_the_flags_are_in_force(bare):
    code, out, _ = bare("python", "-c", FLAGS, environment={"REPROBOX_SEED": "42"})
    assert code == 0
    flags = json.loads(out)
    assert (flags["deterministic"], flags["cudnn_deterministic"], flags["cudnn_benchmark"]) == (True, True, False)
    assert (flags["threads"], flags["cublas"], flags["initial_seed"]) == (4, ":4096:8", 42)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"REPROBOX_SEED": "abc"}, "give a whole number from 0 to 4294967295"),
        ({"REPROBOX_SEED": "1", "REPROBOX_PROFILE": "strickt"}, "did you mean strict?"),
        ({"REPROBOX_SEDE": "1"}, "did you mean REPROBOX_SEED?"),
        ({"REPROBOX_SEED": "1", "PYTHONHASHSEED": "random"}, "PYTHONHASHSEED=random breaks determinism"),
        ({"WORLD_SIZE": "2"}, "give every rank the same REPROBOX_SEED"),
    ],
)
def test_a_bad_value_stops_the_box_before_the_command(bare, environment, sentence):
    code, out, err = bare("echo", "ran", environment=environment)
    assert (code, out) == (125, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("command", "code"), [("/no/such", 127), ("nosuchcmd", 127), ("/etc", 126)])
def test_a_command_that_cannot_be_executed(bare, command, code):
    assert bare(command)[0] == code


def test_orphans_are_reaped_and_signals_arrive(docker_client, image):
    program = "(sleep 0.2 & ) ; sleep 0.6; ps_count=$(grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null | wc -l); echo zombies $ps_count"
    container = docker_client.containers.run(
        image, ["sh", "-c", program], environment={"REPROBOX_SEED": "1"}, detach=True
    )
    try:
        assert container.wait()["StatusCode"] == 0
        assert b"zombies 0" in container.logs()
    finally:
        container.remove(force=True)
    container = docker_client.containers.run(image, ["sleep", "60"], detach=True, environment={"REPROBOX_SEED": "1"})
    try:
        # The kernel drops a signal that comes before the first process of a container handles it.
        assert next(container.logs(stream=True))
        container.kill("SIGTERM")
        assert container.wait(timeout=20)["StatusCode"] == 143
    finally:
        container.remove(force=True)


def test_the_default_user_is_unprivileged_and_has_a_home(bare):
    program = "import getpass, os, pathlib; p = pathlib.Path.home() / 'x'; p.write_text(''); print(os.getuid(), getpass.getuser(), pathlib.Path.home())"
    assert bare("python", "-c", program, environment={"REPROBOX_SEED": "1"})[1] == "1000 box /home/box\n"


def test_a_user_the_image_does_not_know_gets_a_home_and_a_name(bare):
    program = "import getpass, os, pathlib; p = pathlib.Path.home() / 'x'; p.write_text(''); print(os.getuid(), getpass.getuser())"
    options = {"user": "4321:4321", "read_only": True, "tmpfs": {"/tmp": "exec"}, "cap_drop": ["ALL"]}
    assert bare("python", "-c", program, environment={"REPROBOX_SEED": "1"}, **options)[1] == "4321 user4321\n"


def test_locale_and_time_zone_are_fixed(bare):
    program = "import locale, time; print(locale.getpreferredencoding(), time.tzname[0])"
    assert bare("python", "-c", program, environment={"REPROBOX_SEED": "1"})[1] == "UTF-8 UTC\n"


@pytest.mark.parametrize("flag", ["-I", "-E", "-s"])
def test_the_hook_reaches_isolated_interpreters(bare, flag):
    program = "import random; print(random.random())"
    first = bare("python", flag, "-c", program, environment={"REPROBOX_SEED": "7"})[1]
    assert bare("python", flag, "-c", program, environment={"REPROBOX_SEED": "7"})[1] == first
    assert bare("python", flag, "-c", program, environment={"REPROBOX_PROFILE": "off"})[1] != first


def test_a_bare_interpreter_in_the_image_loads_nothing_but_the_hook(bare):
    program = "import sys; print(' '.join(sorted(sys.modules)))"
    off = bare("python", "-c", program, environment={"REPROBOX_PROFILE": "off"})[1].split()
    strict = bare("python", "-c", program, environment={"REPROBOX_SEED": "1"})[1].split()
    assert off == strict
    assert [name for name in strict if "reprobox" in name] == ["_reprobox_hook"]
    assert not {"json", "re", "random", "hashlib", "typing", "dataclasses", "importlib.util"} & set(strict)


def test_the_labels_say_what_it_is(docker_client, image):
    labels = docker_client.images.get(image).labels
    assert labels["reprobox.box-protocol"] == str(BOX_PROTOCOL)
    assert labels["reprobox.lock"].startswith("sha256:")
    assert "sha256:" in labels["reprobox.base"]
    assert labels["org.opencontainers.image.version"]


def test_docker_run_itself_passes_failures_on(docker_client, image):
    with pytest.raises(ContainerError) as caught:
        docker_client.containers.run(image, ["sh", "-c", "exit 72"], remove=True)
    assert caught.value.exit_status == 72
