"""``reprobox run -d`` and what ``reprobox runs`` does with a run: followed, stopped, attached to, and taken over."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.cli import BIN
from support.engine import boxes_left

from reprobox.runs.store import new_run_id

PATIENCE = 30
SEED = ("--seed", "42", "-d")
TRAPS = ("sh", "-c", "trap 'exit 42' TERM; while :; do echo ready; sleep 0.05; done")
IGNORES = ("sh", "-c", "trap '' TERM; while :; do echo ready; sleep 0.05; done")
TICKS = ("sh", "-c", "until test -e go; do echo tick; sleep 0.05; done; printf 'end\\376'; exit 3")
WAITS = ("sh", "-c", "printf 'ready\\377\\000\\n'; until test -e go; do sleep 0.05; done; printf 'end\\376'; exit 3")
WROTE = b"ready\xff\x00\nend\xfe"


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.engine), pytest.param("local", marks=pytest.mark.local)]
)
def cli(request):
    cli = request.getfixturevalue(request.param)
    yield cli
    nothing_is_left(cli, request.getfixturevalue("docker_client") if request.param == "docker" else None)


@pytest.fixture
def docker_cli(docker, docker_client):
    yield docker
    nothing_is_left(docker, docker_client)


def nothing_is_left(cli, client):
    (cli.folder / "go").touch()
    running = [run for run in cli.runs() if supervisor(run)]
    for run in running:
        runs(cli, "stop", run.name, "-t", "0")
    left = boxes_left(client, {run.name for run in cli.runs()}) if client else []
    for name in left:
        client.containers.get(name).remove(force=True)
    assert left == []
    for run in cli.runs():
        assert json.loads((run / "manifest.json").read_text())["end"], "a run's record was not completed"
        assert {path.name for path in run.iterdir()}.isdisjoint({"lock", "box"})


def runs(cli, *arguments, **options):
    return cli.reprobox("runs", *arguments, check=False, **options)


def detached(cli, *command, flags=SEED):
    """Start a run and return its folder."""
    done = cli.run(*command, flags=flags)
    assert re.fullmatch(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}-[0-9a-f]{4}\n", done.stdout)
    return cli.folder / ".reprobox" / "runs" / done.stdout.strip()


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def until_said(run, data):
    until(lambda: (run / "stdout.log").exists() and data in (run / "stdout.log").read_bytes())


def supervisor(run):
    """The process that minds the run, if one does."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((run / "lock").read_text().split()[0])
        if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
            return pid
    return None


def kill_the_supervisor(run):
    os.kill(supervisor(run), signal.SIGKILL)
    until(lambda: supervisor(run) is None)


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


def commands(stderr):
    """What of stderr is the command's own: the box says its seed there first."""
    return [line for line in stderr.splitlines() if not line.startswith("reprobox: ")]


def listed(cli, run):
    done = runs(cli, "list", "--json")
    assert done.returncode == 0, done.stderr
    return next(found for found in json.loads(done.stdout)["runs"] if found["id"] == run.name)


def follower(cli, *arguments, **options):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    return subprocess.Popen(
        [str(BIN / "reprobox"), "runs", *arguments], cwd=cli.folder, env=cli.environment, **{**pipes, **options}
    )


def attached(cli):
    """Attach to a run that says a line now and then, and return once one came."""
    process = follower(cli, "attach")
    assert process.stdout.readline()
    return process


def test_it_prints_the_id_and_returns_when_the_command_has_begun(cli):
    run = detached(cli, *WAITS)
    assert listed(cli, run)["outcome"] == "running"
    assert supervisor(run)
    (cli.folder / "go").touch()
    done = runs(cli, "wait", run.name)
    assert (done.returncode, done.stdout) == (3, "")
    found = listed(cli, run)
    assert (found["outcome"], found["exit_code"], found["exit_code_of"]) == ("exited", 3, "command")
    assert runs(cli, "logs", text=False).stdout == WROTE
    assert runs(cli, "wait").returncode == 3, "again, when it has ended"


def test_a_command_that_ends_at_once_has_begun_as_well(cli):
    for _ in range(3):
        run = detached(cli, "sh", "-c", "exit 5")
        assert runs(cli, "wait", run.name).returncode == 5


def test_what_the_command_says_is_not_said_by_run(cli):
    done = cli.run("sh", "-c", "echo out; sleep 0.3; echo err >&2", flags=SEED)
    assert len(done.stdout.splitlines()) == 1
    assert all(line.startswith("reprobox: ") for line in done.stderr.splitlines())
    runs(cli, "wait")
    logs = runs(cli, "logs")
    assert (logs.stdout, commands(logs.stderr)) == ("out\n", ["err"])


def test_a_working_directory_that_is_not_there_is_126_and_no_id(cli):
    done = cli.run("true", flags=(*SEED, "-w", "/no/such"), check=False)
    assert (done.returncode, done.stdout) == (126, "")
    assert "/no/such cannot be entered" in done.stderr


def test_a_command_that_cannot_be_executed_is_said_at_once_and_has_no_id(cli):
    (cli.folder / "script").write_text("#!/no/such\n")
    (cli.folder / "script").chmod(0o755)
    (cli.folder / "data").touch()
    for command, code in (("nosuch", 127), ("/no/such", 127), ("./script", 127), ("./data", 126)):
        done = cli.run(command, flags=SEED, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert runs(cli, "wait").returncode == code


@pytest.mark.engine
def test_an_image_that_is_not_there_is_125_and_no_id(docker_cli):
    done = docker_cli.run("true", flags=(*SEED, "--image", "no-such-image:1", "--pull", "never"), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "no-such-image:1" in done.stderr


def test_its_output_can_be_followed_as_it_comes_and_to_its_end(cli):
    run = detached(cli, "sh", "-c", "for i in 1 2 3; do echo line $i; echo e$i >&2; sleep 0.7; done; exit 4")
    process = follower(cli, "logs", "-f")
    assert process.stdout.readline() == b"line 1\n"
    assert manifest(run)["end"] is None, "it came when the run had ended"
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, commands(err.decode()), process.returncode) == (b"line 2\nline 3\n", ["e1", "e2", "e3"], 0)
    assert manifest(run)["exit_code"] == 4
    again = runs(cli, "logs", "-f")
    assert (again.stdout, commands(again.stderr)) == ("line 1\nline 2\nline 3\n", ["e1", "e2", "e3"])


def test_following_ends_when_nobody_reads(cli):
    run = detached(cli, *TICKS)
    done = cli.call("sh", "-c", f"'{BIN}/reprobox' runs logs -f | head -n 1", timeout=10)
    assert done.stdout == "tick\n"
    assert manifest(run)["end"] is None


def test_wait_can_print_the_record(cli):
    run = detached(cli, "sh", "-c", "sleep 0.3; exit 6")
    done = runs(cli, "wait", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout) == manifest(run)


def test_stop_sends_term_and_the_command_decides(cli):
    run = detached(cli, *TRAPS)
    until_said(run, b"ready")
    done = runs(cli, "stop")
    assert (done.returncode, done.stdout) == (0, "")
    assert "exit code 42" in done.stderr
    assert manifest(run)["exit_code"] == 42
    assert "ended already" in runs(cli, "stop").stderr


def test_stop_kills_what_ignores_it_when_its_time_is_over(cli):
    run = detached(cli, *IGNORES)
    until_said(run, b"ready")
    begun = time.monotonic()
    runs(cli, "stop", "-t", "1")
    assert 1 <= time.monotonic() - begun < 7
    assert manifest(run)["exit_code"] == 137


@pytest.mark.engine
def test_the_boxs_own_stop_timeout_is_honoured(docker_cli):
    run = detached(docker_cli, *IGNORES, flags=(*SEED, "--stop-timeout", "1"))
    until_said(run, b"ready")
    begun = time.monotonic()
    runs(docker_cli, "stop")
    assert 1 <= time.monotonic() - begun < 7
    assert manifest(run)["exit_code"] == 137


@pytest.mark.engine
def test_attach_shows_what_comes_and_ends_with_the_commands_code(docker_cli):
    run = detached(docker_cli, *TICKS)
    process = attached(docker_cli)
    (docker_cli.folder / "go").touch()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert re.fullmatch(rb"(tick\n)*end\xfe", out)
    assert re.fullmatch(rb"(tick\n)+end\xfe", (run / "stdout.log").read_bytes())


@pytest.mark.engine
def test_attach_gives_input_where_there_was_i(docker_cli):
    detached(docker_cli, "sh", "-c", "read x; echo got $x; exit 4", flags=(*SEED, "-i"))
    done = runs(docker_cli, "attach", input="hello\n")
    assert (done.stdout, done.returncode) == ("got hello\n", 4)


@pytest.mark.engine
def test_signals_reach_the_command_through_attach(docker_cli):
    detached(docker_cli, *TRAPS)
    process = attached(docker_cli)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 42


@pytest.mark.engine
def test_attach_to_a_run_that_is_lost_is_a_failure(docker_cli, docker_client):
    run = detached(docker_cli, *TRAPS)
    until_said(run, b"ready")
    kill_the_supervisor(run)
    process = attached(docker_cli)
    for name in boxes_left(docker_client, {run.name}):
        docker_client.containers.get(name).remove(force=True)
    _, err = process.communicate(timeout=PATIENCE)
    assert b"left to itself" not in err
    assert b"--no-log" not in err
    assert err.startswith(b"reprobox: ")
    # As far as it was looked at before it was gone: killed by its removal, or lost.
    assert process.returncode in (137, 125)
    assert manifest(run)["end"], err


@pytest.mark.local
def test_a_run_on_this_machine_itself_cannot_be_attached_to(local):
    detached(local, *WAITS)
    done = runs(local, "attach")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    nothing_is_left(local, None)


def test_a_running_run_is_removed_by_force_alone(cli):
    run = detached(cli, *TRAPS)
    until_said(run, b"ready")
    refused = runs(cli, "rm", "last")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert run.exists()
    assert runs(cli, "rm", "-f", "last").returncode == 0
    assert not run.exists()


def test_without_a_log_there_is_an_end_and_no_output(cli):
    detached(cli, "sh", "-c", "echo x; sleep 0.3; exit 4", flags=(*SEED, "--no-log"))
    assert runs(cli, "wait").returncode == 4
    done = runs(cli, "logs")
    assert (done.returncode, done.stdout) == (125, "")
    assert "was not kept" in done.stderr


@pytest.mark.engine
@pytest.mark.parametrize("ended", [False, True], ids=["while it runs", "when it has ended"])
def test_a_run_whose_supervisor_was_killed_is_completed_by_wait(docker_cli, docker_client, ended):
    run = detached(docker_cli, *WAITS)
    until_said(run, b"ready")
    kill_the_supervisor(run)
    assert listed(docker_cli, run)["outcome"] == "running"
    assert runs(docker_cli, "logs", text=False).stdout == b"ready\xff\x00\n"
    process = None if ended else follower(docker_cli, "wait")
    time.sleep(0 if ended else 1.5)
    (docker_cli.folder / "go").touch()
    if ended:
        (name,) = boxes_left(docker_client, {run.name})
        until(lambda: docker_client.containers.get(name).status == "exited")
        process = follower(docker_cli, "wait")
    assert process.wait(PATIENCE) == 3
    found = manifest(run)
    assert (found["outcome"], found["exit_code"], found["stage"]) == ("exited", 3, "exec")
    assert (run / "stdout.log").read_bytes() == WROTE
    assert found["streams"]["stdout_bytes"] == len(WROTE)
    assert boxes_left(docker_client, {run.name}) == []
    assert not (run / "lock").exists()


@pytest.mark.engine
@pytest.mark.parametrize("detach", [True, False], ids=["-d", "in the foreground"])
def test_not_one_byte_is_lost_or_doubled_where_the_supervisor_is_killed_in_mid_stream(docker_cli, detach):
    # Docker's log loses the end of a line of 16 KiB and more, so there are shorter ones here.
    data = "bytes((i * 7 + j * j) % 256 for j in range(4000)) + b'\\n'"
    program = (
        "import sys, time\nfor i in range(300):\n"
        f"    sys.stdout.buffer.write({data}); sys.stdout.flush(); time.sleep(0.005)"
    )
    command = ("python", "-c", program)
    if detach:
        run = detached(docker_cli, *command)
    else:
        subprocess.Popen(
            docker_cli.argv(*command),
            cwd=docker_cli.folder,
            env=docker_cli.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(docker_cli.runs)
        (run,) = docker_cli.runs()
    until(lambda: (run / "stdout.log").exists() and (run / "stdout.log").stat().st_size > 200_000)
    kill_the_supervisor(run)
    assert (run / "stdout.log").stat().st_size < 1_200_300
    assert runs(docker_cli, "wait").returncode == 0
    expected = b"".join(bytes((i * 7 + j * j) % 256 for j in range(4000)) + b"\n" for i in range(300))
    assert (run / "stdout.log").read_bytes() == expected


@pytest.mark.engine
def test_two_that_wait_at_once_both_get_the_code(docker_cli):
    run = detached(docker_cli, *WAITS)
    until_said(run, b"ready")
    kill_the_supervisor(run)
    waiting = [follower(docker_cli, "wait") for _ in range(3)]
    time.sleep(1)
    (docker_cli.folder / "go").touch()
    assert [process.wait(PATIENCE) for process in waiting] == [3, 3, 3]
    assert (run / "stdout.log").read_bytes() == WROTE


@pytest.mark.engine
def test_a_run_whose_box_is_gone_as_well_is_lost(docker_cli, docker_client):
    run = detached(docker_cli, *WAITS)
    kill_the_supervisor(run)
    for name in boxes_left(docker_client, {run.name}):
        docker_client.containers.get(name).remove(force=True)
    assert listed(docker_cli, run)["outcome"] == "lost"
    assert runs(docker_cli, "wait").returncode == 125
    assert runs(docker_cli, "stop").returncode == 0


@pytest.mark.local
def test_a_command_that_removes_its_record_keeps_its_exit_code(local):
    done = local.run("sh", "-c", "rm -rf .reprobox; exit 7", check=False)
    assert done.returncode == 7
    assert "cannot be written (No such file or directory)" in done.stderr


@pytest.mark.local
def test_on_this_machine_itself_a_run_whose_supervisor_was_killed_is_lost(local):
    run = detached(local, "sh", "-c", "echo $$ > pid; echo ready; exec sleep 20")
    until_said(run, b"ready")
    kill_the_supervisor(run)
    try:
        assert listed(local, run)["outcome"] == "lost"
        assert runs(local, "wait").returncode == 125
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((local.folder / "pid").read_text()), signal.SIGKILL)


@pytest.mark.engine
def test_a_box_that_was_made_and_never_started_is_removed_and_told(docker_cli, docker_client, image):
    docker_cli.run("true")
    whole = manifest(docker_cli.runs()[0])
    run_id = new_run_id()
    run = docker_cli.runs()[0].with_name(run_id)
    (run / "box" / "out").mkdir(parents=True)
    (run / "lock").write_text("999999999\n")
    made = {"id": run_id, "outcome": "created", "start": None, "end": None, "stage": None, "exit_code": None}
    (run / "manifest.json").write_text(json.dumps({**whole, **made}))
    docker_client.containers.create(image, name=f"reprobox-{run_id}", labels={"reprobox.run": run_id})
    found = listed(docker_cli, run)
    assert (found["outcome"], found["exit_code"], found["exit_code_of"]) == ("failed", 125, "reprobox")
    assert boxes_left(docker_client, {run_id}) == []
    assert runs(docker_cli, "list").stdout.count(run_id) == 1
