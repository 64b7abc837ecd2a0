"""``reprobox run`` on Podman, with root and without: what Docker's runs keep, and what Podman does in its own way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pexpect
import pytest
from acceptance import test_cases as cases
from support.cli import BIN
from support.daemon import until

pytestmark = pytest.mark.podman

# What Podman does not tell has a test of its own, and without root it may not be bounded at all.
ROWS = [row for row in cases.ROWS if "docker" in row.engines and "--memory" not in row.flags]

SCENARIOS = {
    cases.test_10_what_is_printed_just_before_the_end_always_arrives: [{}],
    cases.test_14_a_slow_reader_loses_nothing: [{}],
    cases.test_15_a_reader_that_goes_away_ends_the_command: [{}],
    cases.test_17_a_hundred_mebibytes_go_in_and_come_out: [{}],
    cases.test_18_input_that_is_never_read_holds_nothing_up: [
        {"unread": "nothing comes"},
        {"unread": "more than a pipe holds"},
    ],
    cases.test_19_a_trap_decides_the_exit_code: [{"name": name} for name in ("INT", "TERM", "USR1")],
    cases.test_20_a_signal_nobody_traps_ends_the_command_at_once: [
        {"name": "TERM", "code": 143},
        {"name": "INT", "code": 130},
    ],
    cases.test_21_the_third_signal_kills_a_command_that_ignores_them: [{}],
    cases.test_22_a_signal_at_any_moment_of_the_start_is_143: [{}],
    cases.test_23_signals_that_mean_nothing_to_the_command_do_not_reach_it: [{}],
    cases.test_30_variables_arrive_as_they_are: [{}],
    cases.test_30_a_name_alone_that_is_unset_here_removes_the_images_variable: [{}],
    cases.test_32_a_missing_mount_source_is_125_and_is_not_created: [{"flags": ("-v", "./none:/data")}],
    cases.test_35_the_tail_belongs_to_the_command_with_and_without_the_dashes: [{}],
}


def named(scenario, values):
    words = scenario.__name__.removeprefix("test_").split("_")
    return " ".join([*words, *(str(value) for value in values.values())])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number} {row.name}")
def test_a_case_of_docker_run(podman, row):
    cases.test_a_case(podman, dataclasses.replace(row, said=row.said.replace("docker pull", "podman pull")))


@pytest.mark.parametrize(
    ("scenario", "values"),
    [pytest.param(s, values, id=named(s, values)) for s, every in SCENARIOS.items() for values in every],
)
def test_a_scenario_of_docker_run(podman, tmp_path, scenario, values):
    wanted = scenario.__code__.co_varnames[: scenario.__code__.co_argcount]
    given = {"cli": podman, "tmp_path": tmp_path, **values}
    scenario(**{name: given[name] for name in wanted})


def asks(expression):
    return "python", "-c", f"import json, os; print(json.dumps({expression}))"


def answer(podman, expression, flags=(), **options):
    return json.loads(podman.run(*asks(expression), flags=flags, **options).stdout)


def counting(last, code=7):
    """A command that prints the numbers up to ``last``, one every 50 ms."""
    return "sh", "-c", f"for i in $(seq {last}); do echo $i; sleep 0.05; done; exit {code}"


def numbers(last):
    return [str(number) for number in range(1, last + 1)]


def test_the_box_is_closed_down(podman):
    podman.write("closed.py", CLOSED)
    user = [podman.service.uid, podman.service.gid]
    assert json.loads(podman.run("python", "closed.py", flags=("--shm-size", "64m")).stdout) == {
        "caps": ["0" * 16] * 2,
        "no_new_privs": "1",
        "seccomp": "2",
        # In a read-only container Podman puts a tmpfs on /run and /var/tmp.
        "writable": ["/home/box", "/tmp", "/workspace", "/run", "/var/tmp"],
        "user": user,
        "cwd": "/workspace",
        "pid1": "tini",
        "shm": 64 << 20,
        "interfaces": ["lo"],
    }


CLOSED = r"""
import json, os, re, socket
status = open("/proc/self/status").read()
def writable(path):
    try:
        open(path + "/probe", "w").close(); os.unlink(path + "/probe"); return True
    except OSError:
        return False
shm = os.statvfs("/dev/shm")
print(json.dumps({
    "caps": [re.search(r + r":\s*(\w+)", status)[1] for r in ("CapEff", "CapBnd")],
    "no_new_privs": re.search(r"NoNewPrivs:\s*(\d)", status)[1], "seccomp": re.search(r"Seccomp:\s*(\d)", status)[1],
    "writable": [p for p in ("/", "/usr", "/etc", "/opt/venv", "/opt/reprobox", "/var", "/home/box", "/tmp", "/workspace",
                             "/run", "/var/tmp") if writable(p)],
    "user": [os.getuid(), os.getgid()], "cwd": os.getcwd(), "pid1": open("/proc/1/comm").read().strip(),
    "shm": shm.f_blocks * shm.f_frsize, "interfaces": [name for _, name in socket.if_nameindex()],
}))
"""


def test_files_belong_to_the_caller_and_the_caller_has_a_name(podman):
    podman.run("python", "-c", "import getpass, pathlib; pathlib.Path('made').write_text(getpass.getuser())")
    made = podman.folder / "made"
    assert (made.stat().st_uid, made.stat().st_gid) == (podman.service.uid, podman.service.gid)
    assert made.read_text() == ("reprobox-test" if podman.service.rootless else "root")


def test_a_program_is_seeded_as_on_docker(podman, docker):
    program = ("python", "-c", "import random; print(random.random(), {*'abcdef'})")
    assert podman.run(*program).stdout == docker.run(*program, flags=("--seed", "42")).stdout
    assert podman.run(*program, flags=("--seed", "43")).stdout != podman.run(*program).stdout


def test_a_box_has_the_environment_that_docker_gives_it(podman, docker):
    """Nothing of the service's own, whose variables are another person's or another shell's."""
    ours, theirs = (
        json.loads(cli.run(*asks("dict(os.environ)"), flags=("--seed", "42")).stdout) for cli in (podman, docker)
    )
    user = "reprobox-test" if podman.service.rootless else "root"
    assert ours.pop("HOSTNAME") != theirs.pop("HOSTNAME")
    assert ours == {**theirs, "USER": user, "LOGNAME": user}


def test_variables_that_podman_sets_can_be_given(podman):
    flags = ("-e", "TERM=mine", "-e", "container=mine")
    assert answer(podman, "[os.environ['TERM'], os.environ['container']]", flags) == ["mine", "mine"]


def test_secrets_are_files_that_the_boxs_user_alone_can_read(podman):
    value = "canary-of-podman"
    expression = (
        "[os.environ['TOKEN'], open('/run/secrets/TOKEN').read(), os.stat('/run/secrets/TOKEN').st_mode & 0o777]"
    )
    podman.environment["TOKEN"] = value
    assert answer(podman, expression, ("--secret", "TOKEN")) == [value, value, 0o400]
    assert value not in podman.reprobox("runs", "show", "--json").stdout
    assert list(podman.service.runtime.glob("reprobox-*")) == []


def test_folders_in_memory_have_the_owner_mode_and_size_that_they_have_on_docker(podman, docker):
    """The mode is that of the image's folder of that name where runc has its way, on either engine."""
    paths = "('/home/box', '/tmp', '/scratch')"
    facts = (
        f"{{p: [oct(os.stat(p).st_mode), os.stat(p).st_uid == os.getuid(), os.statvfs(p).f_blocks] for p in {paths}}}"
    )
    flags = ("--seed", "42", "--tmpfs", "/scratch:size=1m,mode=1777")
    ours, theirs = (json.loads(cli.run(*asks(facts), flags=flags).stdout) for cli in (podman, docker))
    if podman.service.rootless:  # then root is not the box's user, and root is who owns these
        for path in ("/tmp", "/scratch"):
            assert theirs[path][1] is True
            theirs[path][1] = False
    assert ours == theirs
    assert ours["/home/box"][1] is True


def test_mounts_and_the_working_directory(podman):
    podman.write("sub/x", "from the host")
    data = podman.folder / "sub"
    flags = ("-v", f"{data}:/data:ro", "-w", "/data")
    assert podman.run("cat", "x", flags=flags).stdout == "from the host"
    refused = podman.run("touch", "/data/y", flags=flags, check=False)
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    assert podman.run("sh", "-c", "pwd", cwd=data).stdout == "/workspace/sub\n"


def test_the_command_cannot_touch_the_records_of_runs(podman):
    done = podman.run("sh", "-c", "touch .reprobox/runs/x", check=False)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_the_network_is_there_when_it_is_not_switched_off(podman):
    seen = podman.run("python", "-c", "import socket; print(len(socket.if_nameindex()))", flags=("--network", "bridge"))
    assert seen.stdout == "2\n"


def test_input_that_ends_is_the_end_of_the_commands_input(podman):
    process = podman.start("sh", "-c", "echo ready; cat; echo end", flags=("-q", "-i"), stdin=subprocess.PIPE)
    assert process.communicate(b"abc\n", timeout=30) == (b"abc\nend\n", None)
    assert process.returncode == 0


def test_a_terminal_is_a_terminal(podman):
    argv = podman.argv(
        "sh", "-c", "test -t 0 && echo $TERM; read line; echo got $line; exit 5", flags=("-q", "-i", "-t")
    )
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(podman.folder), env=podman.environment, timeout=30, echo=False)
    child.expect("xterm")
    child.sendline("words")
    child.expect("got words")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 5


def test_the_size_of_the_terminal_reaches_the_box(podman):
    program = "import os, time\nfor _ in range(100): print(*os.get_terminal_size(), flush=True); time.sleep(0.1)"
    argv = podman.argv("python", "-c", program, flags=("-q", "-i", "-t"))
    options = {"cwd": str(podman.folder), "env": podman.environment, "dimensions": (33, 101), "timeout": 30}
    child = pexpect.spawn(argv[0], argv[1:], **options)
    child.expect("101 33")
    child.setwinsize(44, 122)
    child.expect("122 44")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_a_detached_run_is_waited_for_and_its_output_kept(podman):
    run_id = podman.run(
        "sh", "-c", "echo out; echo err >&2; sleep 1; echo bye; exit 3", flags=("-q", "-d")
    ).stdout.strip()
    assert run_id == podman.runs()[-1].name
    assert podman.reprobox("runs", "wait", run_id, check=False).returncode == 3
    logs = podman.reprobox("runs", "logs", run_id)
    assert (logs.stdout, logs.stderr) == ("out\nbye\n", "err\n")


def test_a_detached_run_is_stopped(podman):
    podman.run("sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.1; done", flags=("-q", "-d"))
    time.sleep(0.5)
    assert "exit code 42" in podman.reprobox("runs", "stop").stderr
    assert podman.manifest()["exit_code"] == 42


def test_a_detached_run_is_attached_to(podman):
    podman.run("sh", "-c", "read line; echo got $line; exit 6", flags=("-q", "-d", "-i"))
    attached = podman.reprobox("runs", "attach", input="words\n", check=False)
    assert (attached.returncode, attached.stdout) == (6, "got words\n")


def test_a_run_goes_on_without_its_command_line_and_can_be_waited_for(podman):
    command = ("sh", "-c", f"echo ready; {counting(40)[2]}")
    podman.start(*command).kill()
    assert podman.service.containers() != []
    waited = podman.reprobox("runs", "wait", check=False)
    assert waited.returncode == 7, waited.stderr
    assert podman.manifest()["exit_code_of"] == "command"
    assert podman.reprobox("runs", "logs").stdout.splitlines() == ["ready", *numbers(40)]


def test_a_service_that_restarts_loses_nothing(podman):
    process = podman.start("sh", "-c", f"echo ready; {counting(80)[2]}", stderr=subprocess.PIPE)
    podman.service.stop()
    time.sleep(0.5)
    podman.service.start()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.decode().splitlines()) == (7, numbers(80)), err
    assert podman.reprobox("runs", "logs").stdout.splitlines() == ["ready", *numbers(80)]


def test_a_name_that_is_taken_is_125(podman):
    process = podman.start("sh", "-c", "echo ready; exec sleep 60", flags=("--name", "taken"))
    second = podman.run("true", flags=("--name", "taken"), check=False)
    process.terminate()
    assert (second.returncode, second.stdout) == (125, "")
    assert '"taken" is already in use' in second.stderr
    assert process.wait(timeout=30) == 143


def test_a_start_that_fails_leaves_nothing(podman):
    done = podman.run("true", flags=("--ulimit", f"nofile={1 << 40}"), check=False)
    if podman.service.rootless:
        assert done.returncode == 0, "without root Podman lowers a limit to what the user may have"
        return
    assert (done.returncode, done.stdout) == (125, "")
    assert "rlimit" in done.stderr
    assert (podman.manifest()["outcome"], podman.manifest()["exit_code_of"]) == ("failed", "reprobox")


def test_a_limit_of_memory_holds_or_is_refused(podman):
    flags = ("--memory", "64m")
    if podman.service.rootless and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        refused = podman.run("true", flags=flags, check=False)
        assert refused.returncode == 125
        assert "ignores --memory" in refused.stderr
        return
    done = podman.run("python", "-c", cases.EAT, flags=flags, check=False)
    assert done.returncode == 137  # Podman does not say why
    assert podman.manifest()["exit_code"] == 137


def test_gpus_are_refused(podman):
    done = podman.run("true", flags=("--gpus", "0"), check=False)
    assert done.returncode == 125
    assert "--gpus none" in done.stderr


def test_bytes_that_are_no_text_are_in_the_log_as_they_were(podman):
    process = podman.start("sh", "-c", r"echo ready; sleep 1; printf '\377\000o\n\376'")
    process.kill()
    assert podman.reprobox("runs", "wait").returncode == 0
    assert podman.reprobox("runs", "logs", text=False).stdout == b"ready\n\xff\x00o\n\xfe"


def unchosen(argv):
    """``argv`` without the engine that it names."""
    at = argv.index("--engine")
    return [*argv[:at], *argv[at + 2 :]]


@pytest.fixture
def without_docker(podman):
    """What a command line begins with that is to find nothing at Docker's socket; and nobody names another."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        podman.environment.pop(name, None)
    podman.environment["DOCKER_CONFIG"] = str(podman.folder)
    docker_socket = os.path.realpath("/var/run/docker.sock")
    if not os.path.exists(docker_socket):
        return []
    return ["unshare", "-m", "--", "sh", "-c", f'mount --bind /dev/null {docker_socket} && exec "$@"', "sh"]


def test_where_no_docker_answers_podman_is_used_and_that_is_said(podman, without_docker):
    done = podman.call(*without_docker, *unchosen(podman.argv("echo", "out")))
    assert done.stdout == "out\n"
    assert "no Docker answers; using Podman" in done.stderr
    assert podman.manifest()["engine"]["name"] == "podman"


@pytest.mark.parametrize("named", ["DOCKER_HOST", "DOCKER_CONTEXT", "context"])
def test_a_docker_that_was_named_is_never_replaced(podman, without_docker, named):
    if named == "DOCKER_HOST":
        podman.environment[named] = f"unix://{podman.folder}/dead.sock"
    elif named == "DOCKER_CONTEXT":
        podman.environment[named] = "dead"
    else:
        podman.write("config.json", '{"currentContext": "dead"}')
    done = podman.call(*without_docker, *unchosen(podman.argv("true")), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "dead" in done.stderr
    assert podman.runs() == []


def test_a_podman_that_was_named_and_does_not_answer_is_125_and_one_line(podman):
    address = f"unix://{podman.folder}/dead.sock"
    done = podman.run("true", environment={"CONTAINER_HOST": address}, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "--engine docker" in line


# The command line as it is, with a Podman service of its own that does not wait for a minute.
IMPATIENT = "import sys; import reprobox.engines.podman as podman; podman.SERVICE_IDLE_SECONDS = 2; from reprobox.cli import main; sys.exit(main())"


@pytest.fixture
def no_service(podman):
    """The environment of somebody who has the program and nothing that listens."""
    if podman.service.uid == 0 and Path("/run/podman/podman.sock").exists():
        pytest.skip("this machine's own Podman listens, and would be used")
    del podman.environment["CONTAINER_HOST"]
    yield podman
    assert until(lambda: own_services(podman) == [], seconds=30), "its own service has not ended"


def impatient(podman, argv):
    """``argv`` with a Podman service of its own that ends soon."""
    at = argv.index(str(BIN / "reprobox"))
    return [*argv[:at], str(BIN / "python"), "-c", IMPATIENT, *argv[at + 1 :]]


def own_services(podman):
    """Processes that are a service which the command line started."""
    words = f"unix://{podman.service.runtime}/reprobox-podman-{podman.service.uid}.sock".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and words in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_where_nothing_listens_a_service_is_started_used_again_and_ends_by_itself(no_service):
    services = []
    for _ in range(2):
        done = no_service.call(*impatient(no_service, no_service.argv("echo", "out")))
        assert done.stdout == "out\n"
        services.append(own_services(no_service))
    assert services[0] == services[1] != []
    assert until(lambda: own_services(no_service) == [], seconds=30)


def test_a_run_outlives_the_patience_of_its_own_service(no_service):
    done = no_service.call(
        *impatient(no_service, no_service.argv("sh", "-c", "sleep 5; echo late; exit 3")), check=False
    )
    assert (done.returncode, done.stdout) == (3, "late\n")


def test_a_detached_run_outlives_its_own_service(no_service):
    no_service.call(*impatient(no_service, no_service.argv("sh", "-c", "sleep 5; echo late; exit 4", flags=("-d",))))
    argv = [*no_service.service.as_user, str(BIN / "reprobox"), "runs", "wait"]
    assert no_service.call(*impatient(no_service, argv), check=False).returncode == 4
    assert no_service.reprobox("runs", "logs").stdout == "late\n"


def test_two_that_start_at_once_share_one_service(no_service):
    argv = impatient(no_service, no_service.argv("echo", "out"))
    options = {
        "cwd": no_service.folder,
        "env": no_service.environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    both = [subprocess.Popen(argv, **options) for _ in range(2)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert [(out, code) for out, _, code in ended] == [(b"out\n", 0)] * 2, ended


def test_a_service_that_does_not_start_is_125_and_one_line(no_service):
    broken = no_service.write("bin/podman", "#!/bin/sh\nexit 1\n", executable=True)
    done = no_service.run(
        "true", environment={"PATH": f"{broken.parent}:{no_service.environment['PATH']}"}, check=False
    )
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert "Podman's API does not start" in line


def test_no_podman_at_all_is_125_and_one_line(podman, without_docker):
    del podman.environment["CONTAINER_HOST"]
    podman.environment["PATH"] = str(BIN)
    argv = podman.argv("true")
    if argv[0] == "setpriv":
        argv[0] = shutil.which("setpriv")
    done = podman.call(*argv, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert "there is no Podman on this machine" in line
