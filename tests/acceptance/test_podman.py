"""``reprobox run`` on Podman, with root and without: what Docker's runs keep, and what Podman does in its own way."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pexpect
import pytest
from acceptance import test_cases as cases
from support.podman import AS_USER

pytestmark = pytest.mark.podman


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


@AS_USER
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


def test_the_command_cannot_write_the_project_file(podman):
    path = podman.folder / "reprobox.toml"
    for act in (
        "echo x >> reprobox.toml",
        "rm -f reprobox.toml",
        "mv reprobox.toml away",
        "touch new; mv new reprobox.toml",
    ):
        assert podman.run("sh", "-c", act, check=False).returncode != 0
        assert path.read_text() == ""


def test_the_network_is_there_when_it_is_not_switched_off(podman):
    seen = podman.run("python", "-c", "import socket; print(len(socket.if_nameindex()))", flags=("--network", "bridge"))
    assert seen.stdout == "2\n"


@AS_USER
def test_input_that_ends_is_the_end_of_the_commands_input(podman):
    process = podman.start("sh", "-c", "echo ready; cat; echo end", flags=("-q", "-i"), stdin=subprocess.PIPE)
    assert process.communicate(b"abc\n", timeout=30) == (b"abc\nend\n", None)
    assert process.returncode == 0


@AS_USER
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


@AS_USER
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


@AS_USER
def test_a_detached_run_is_waited_for_and_its_output_kept(podman):
    run_id = podman.run(
        "sh", "-c", "echo out; echo err >&2; sleep 1; echo bye; exit 3", flags=("-q", "-d")
    ).stdout.strip()
    assert run_id == podman.runs()[-1].name
    assert podman.reprobox("runs", "wait", run_id, check=False).returncode == 3
    logs = podman.reprobox("runs", "logs", run_id)
    assert (logs.stdout, logs.stderr) == ("out\nbye\n", "err\n")


@AS_USER
def test_a_detached_run_is_stopped(podman):
    podman.run("sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.1; done", flags=("-q", "-d"))
    time.sleep(0.5)
    assert "exit code 42" in podman.reprobox("runs", "stop").stderr
    assert podman.manifest()["exit_code"] == 42


@AS_USER
def test_a_detached_run_is_attached_to(podman):
    podman.run("sh", "-c", "read line; echo got $line; exit 6", flags=("-q", "-d", "-i"))
    attached = podman.reprobox("runs", "attach", input="words\n", check=False)
    assert (attached.returncode, attached.stdout) == (6, "got words\n")


@AS_USER
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


@AS_USER
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


@AS_USER
def test_gpus_that_cannot_be_had_are_refused(podman):
    done = podman.run("true", flags=("--gpus", "0"), check=False)
    assert done.returncode == 125
    assert "--gpus none" in done.stderr


@AS_USER
def test_bytes_that_are_no_text_are_in_the_log_as_they_were(podman):
    process = podman.start("sh", "-c", r"echo ready; sleep 1; printf '\377\000o\n\376'")
    process.kill()
    assert podman.reprobox("runs", "wait").returncode == 0
    assert podman.reprobox("runs", "logs", text=False).stdout == b"ready\n\xff\x00o\n\xfe"
