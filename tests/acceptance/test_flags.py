"""Every option of ``reprobox run``, one row each, seen from inside the box where it can be; and those of Docker it refuses."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import tarfile
import time
import urllib.request
from dataclasses import dataclass, field

import pytest
from support.many import many
from support.registry import running_registry

from reprobox.cli.flags import FLAGS

pytestmark = pytest.mark.engine

SEED = ("--seed", "42")
TESTED = {"--exclusive", "--wait-gpus", "--gpus-ignore-allocation", "--require-signed", "--signature"}
"""The options that have a test of their own: below the table, in ``test_gpu_claims.py`` or in ``test_signatures.py``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An option as it is typed, and what the command then prints; ``{folder}`` is the project."""

    flags: tuple[str, ...]
    command: tuple[str, ...] = ("true",)
    stdout: str = ""
    without: str | None = None
    stdin: str = ""
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def option(self):
        return self.flags[0]


def row(*flags, sees, shows, **more):
    """``sees`` is a shell script, ``shows`` what it prints."""
    return Row(flags=flags, command=("sh", "-c", sees), stdout=f"{shows}\n", **more)


def py(*flags, sees, shows, **more):
    """``sees`` is a Python expression."""
    program = f"import os, random, resource, socket; print({sees})"
    return Row(flags=flags, command=("python", "-c", program), stdout=f"{shows}\n", **more)


def cgroup(controller, old, new):
    return f"cat /sys/fs/cgroup/{new} 2>/dev/null || cat /sys/fs/cgroup/{controller}/{old}"


MEMORY = cgroup("memory", "memory.limit_in_bytes", "memory.max")
PIDS = cgroup("pids", "pids.max", "pids.max")
CPU = f"q=$({cgroup('cpu', 'cpu.cfs_quota_us', 'cpu.max')}); echo ${{q% *}}"
MOUNTS = "grep ' {} ' /proc/mounts | cut -d' ' -f3,4"
LIMIT = "resource.getrlimit(resource.RLIMIT_NOFILE)"

ROWS = (
    # The recipe
    py("--seed", "7", sees="os.environ['PYTHONHASHSEED'], random.random()", shows="7 0.32383276483316237"),
    py("--profile", "off", sees="os.environ.get('CUBLAS_WORKSPACE_CONFIG')", shows="None"),
    py("--threads", "2", sees="os.environ['OMP_NUM_THREADS']", shows="2"),
    py("--rank-seeds", "same", *SEED, "-e", "RANK=3", sees="random.random()", shows="0.6394267984578837"),
    py("--no-fill", sees="'fill=off' in os.environ['_REPROBOX_RECIPE']", shows="True"),
    py("--portable", sees="os.environ['ATEN_CPU_CAPABILITY']", shows="avx2"),
    py("--force-seed", *SEED, sees="random.seed(1) or random.random() != 0.13436424411240122", shows="True"),
    # The box
    py("--gpus", "none", sees="repr(os.environ['CUDA_VISIBLE_DEVICES'])", shows="''"),
    py("--engine", "docker", sees="open('/proc/1/comm').read().strip()", shows="tini"),
    row("--secret", "KEY_=k", files={"k": "v\n"}, sees="echo $KEY_; stat -c %a /run/secrets/KEY_", shows="v\n400"),
    row("--writable", "-u", "0", "--cap-add", "DAC_OVERRIDE", sees="touch /usr/x && echo yes", shows="yes"),
    row("-v", "./data:/data:ro", files={"data/x": "y"}, sees="cat /data/x; touch /data/z || echo no", shows="yno"),
    row("-e", "A=b c", sees='echo "$A"', shows="b c"),
    row("--env-file", "{folder}/e", files={"e": "# no\nA=b  c\n"}, sees='echo "$A"', shows="b  c"),
    row("-w", "/tmp", sees="pwd", shows="/tmp"),
    py("--shm-size", "96m", sees="os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize", shows=96 << 20),
    py("--network", "none", sees="[name for _, name in socket.if_nameindex()]", shows="['lo']"),
    # As in docker run
    row("--mount", "type=bind,src=./data,dst=/data", files={"data/x": "y"}, sees="cat /data/x; echo", shows="y"),
    row(
        "--mount",
        "type=volume,src={volume},dst=/data,ro",
        sees=MOUNTS.format("/data") + "|grep -o ,ro || echo ro",
        shows="ro",
    ),
    row(
        "--mount",
        "type=tmpfs,dst=/data,tmpfs-size=1m",
        sees="df -k --output=size /data | tail -1 | tr -d ' '",
        shows="1024",
    ),
    row("--tmpfs", "/s:size=64k", sees=MOUNTS.format("/s"), shows="tmpfs rw,nosuid,nodev,noexec,relatime,size=64k"),
    row("-u", "1234:5678", "-w", "/tmp", sees="id -u; id -g", shows="1234\n5678"),
    row("-m", "256m", sees=MEMORY, shows=256 << 20),
    row("--cpus", "0.5", sees=CPU, shows="50000"),
    py("--cpuset-cpus", "0", sees="os.sched_getaffinity(0)", shows="{0}"),
    row("--pids-limit", "77", sees=PIDS, shows="77"),
    py("--ulimit", "nofile=1024:2048", sees=LIMIT, shows="(1024, 2048)"),
    row("--ipc", "none", sees="grep -c ' /dev/shm ' /proc/mounts || true", shows="0"),
    row("--hostname", "a.box", sees="cat /proc/sys/kernel/hostname", shows="a.box"),
    py("--add-host", "there:10.9.8.7", sees="socket.gethostbyname('there')", shows="10.9.8.7"),
    row("--device", "/dev/fuse:/dev/x:r", sees="stat -c '%F %t:%T' /dev/x", shows="character special file a:e5"),
    row("--group-add", "4321", sees="id -G | tr ' ' '\\n' | grep 4321", shows="4321"),
    row("--cap-add", "NET_RAW", "-u", "0", sees="grep CapEff /proc/self/status", shows="CapEff:\t0000000000002000"),
    row("--cap-drop", "ALL", "-u", "0", sees="grep CapBnd /proc/self/status", shows="CapBnd:\t0000000000000000"),
    row("--platform", "linux/amd64", sees="uname -m", shows="x86_64"),
    # This run
    row("-i", stdin="given\n", sees="cat", shows="given"),
    row("--rm", sees="echo yes", shows="yes"),
    row("--init", sees="cat /proc/1/comm", shows="tini"),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.flags[:2]))
def test_an_option_seen_from_the_box(docker, docker_client, row):
    for name, text in row.files.items():
        docker.write(name, text)
    with contextlib.ExitStack() as stack:
        volume = f"reprobox-test-{os.getpid()}"
        if any("{volume}" in flag for flag in row.flags):
            stack.callback(lambda: docker_client.volumes.get(volume).remove(force=True))
        flags = [flag.format(folder=docker.folder, volume=volume) for flag in row.flags]
        flags += () if "--seed" in flags else SEED
        done = docker.run(*row.command, flags=flags, input=row.stdin, check=False)
    assert (done.returncode, done.stdout) == (0, row.stdout), done.stderr


def about(*options):
    TESTED.update(options)
    return lambda test: test


@about("--name", "--label", "--stop-timeout")
def test_name_labels_and_stop_timeout_are_the_containers(docker):
    name = f"reprobox-test-{os.getpid()}"
    with docker.running("--name", name, "-l", "team=a=b", "--label", "bare", "--stop-timeout", "3") as found:
        assert found["Name"] == f"/{name}"
        assert found["Config"]["Labels"].items() >= {"team": "a=b", "bare": ""}.items()
        assert found["Config"]["StopTimeout"] == 3


@about("--self-test")
@pytest.mark.parametrize(("when", "verdict"), [("off", "off"), ("always", "passed")])
def test_the_self_test_is_made_as_it_is_asked_for_and_recorded(docker, when, verdict):
    assert docker.run("echo", "ran", flags=("--self-test", when)).stdout == "ran\n"
    assert docker.manifest()["self_test"]["verdict"] == verdict


@about("--publish")
def test_a_published_port_answers_on_this_machine(docker):
    docker.write("index.html", "from the box")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = "echo ready; exec python -m http.server 8000"
    process = docker.start("sh", "-c", program, flags=("-p", f"127.0.0.1:{port}:8000"))
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html") as answer:
                assert answer.read() == b"from the box"
                return
            time.sleep(0.1)
        pytest.fail("the port never answered")
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 143


@about("--cache")
def test_a_named_cache_stays_from_one_run_to_the_next(docker, tmp_path_factory):
    docker.environment["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    flags = (*SEED, "--cache", "team")
    keep = 'mkdir -p "$HF_HOME" "$TORCH_HOME"; echo kept >> "$HF_HOME/model"; cat "$HF_HOME/model"'
    assert docker.run("sh", "-c", keep, flags=flags).stdout == "kept\n"
    assert docker.run("sh", "-c", keep, flags=flags).stdout == "kept\nkept\n"
    assert any("/named/team/" in folder for folder in docker.manifest()["caches"])
    other = docker.run("sh", "-c", 'cat "$HF_HOME/model"', flags=(*SEED, "--cache", "other"), check=False)
    assert other.returncode == 1
    assert docker.run("sh", "-c", 'echo "${HF_HOME-unset}"').stdout == "unset\n"


@about("--input", "--output")
def test_hashes_of_inputs_before_and_of_outputs_after_are_recorded(docker):
    docker.write("in.txt", "before\n")
    docker.write("folder/a", "a\n")
    flags = (*SEED, "--input", "in.txt", "--input", "folder", "--output", "out", "--output", "never")
    docker.run("sh", "-c", "echo changed > in.txt; mkdir out; echo result > out/x", flags=flags)
    manifest = docker.manifest()
    assert manifest["inputs"] == {"in.txt": sha256("before\n"), "folder/a": sha256("a\n")}
    assert manifest["outputs"] == {"out/x": sha256("result\n"), "never": None}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@about("--log")
def test_output_is_kept_beside_the_record_or_not(docker):
    docker.run("echo", "kept")
    assert docker.reprobox("runs", "logs").stdout == "kept\n"
    docker.run("echo", "gone", flags=("--no-log",))
    assert not list(docker.runs()[-1].glob("*.log"))
    assert docker.reprobox("runs", "logs", check=False).returncode == 125


@about("--detach")
def test_a_detached_run_prints_its_id_and_goes_on(docker):
    waits = "echo begun; until [ -e go ]; do sleep 0.1; done; exit 7"
    run = docker.run("sh", "-c", waits, flags=("-d", *SEED)).stdout.strip()
    assert run == docker.runs()[-1].name
    assert len(docker.boxes()) == 1
    docker.write("go", "")
    assert docker.reprobox("runs", "wait", run, check=False).returncode == 7
    assert docker.reprobox("runs", "logs", run).stdout == "begun\n"
    assert docker.boxes() == []


@about("--dry-run", "--json")
def test_a_dry_run_prints_the_plan_and_leaves_nothing(docker):
    plan = json.loads(docker.run("rm", "-rf", "x", flags=("--seed", "5", "--dry-run", "--json")).stdout)
    assert plan["schema"] == "reprobox.plan/1"
    assert (plan["recipe"]["seed"], plan["command"]) == (5, ["rm", "-rf", "x"])
    assert plan["environment_knobs"]["PYTHONHASHSEED"] == "5"
    shown = docker.run("rm", "-rf", "x", flags=("--seed", "5", "--dry-run")).stdout
    assert all(knob["name"] in shown for knob in plan["knobs"])
    assert "rm -rf x" in shown
    assert docker.runs() == []
    assert docker.run("true", flags=("--json",), check=False).returncode == 2


@about("--quiet")
def test_quiet_says_nothing(docker):
    assert docker.run("sh", "-c", "echo e >&2", flags=("-q",)).stderr == "e\n"
    assert docker.run("true", flags=()).stderr


@about("--tty")
def test_a_terminal_needs_a_terminal(docker):
    done = docker.run("true", flags=("-t",), check=False, input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input is none" in done.stderr


@about("--image", "--pull")
def test_an_image_is_pulled_when_it_is_missing_always_or_never(docker, docker_client, tmp_path_factory):
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(running_registry(tmp_path_factory.mktemp("registry")))
        name, old, new = f"{registry.address}/team/box:1", "reprobox-test-box:old", "reprobox-test-box:new"
        for tag in (old, new):
            changes = ["LABEL reprobox.box-protocol=1", f"LABEL tag={tag}"]
            docker_client.api.import_image_from_data(empty_archive(), *tag.split(":"), changes=changes)
        for tag in (old, new, name):
            stack.callback(docker_client.images.remove, tag)

        def push(tag):
            docker_client.images.get(tag).tag(name)
            assert "digest: sha256" in str(docker_client.api.push(name))

        def chosen(*flags):
            done = docker.run("true", flags=("--image", name, "--dry-run", "--json", *flags), check=False)
            image = json.loads(done.stdout)["image"]["image_id"] if done.stdout else None
            return image and docker_client.images.get(image).labels["tag"], done.returncode, done.stderr

        push(old)
        docker_client.images.remove(name)
        image, code, stderr = chosen("--pull", "never")
        assert (image, code) == (None, 125)
        assert f"docker pull {name}" in stderr
        assert chosen()[0] == old, "missing is the default"
        push(new)
        docker_client.images.get(old).tag(name)
        assert [chosen("--pull", when)[0] for when in ("never", "missing", "always", "never")] == [old, old, new, new]
        registry.stop()
        assert chosen("--pull", "missing")[0] == new
        image, code, stderr = chosen("--pull", "always")
        assert (image, code) == (None, 125), "an older image is never taken quietly for the newest"
        assert "connection refused" in stderr


def empty_archive():
    archive = io.BytesIO()
    tarfile.open(fileobj=archive, mode="w").close()
    return archive.getvalue()


def test_every_option_has_a_row():
    longs = {
        name: next(n for n in flag.names if n.startswith("--")).partition("/")[0]
        for flag in FLAGS
        for name in flag.names
    }
    aliases = {part: longs[name] for name in longs for part in name.split("/")}
    assert {aliases[row.option] for row in ROWS} | TESTED == set(longs.values())


REFUSALS = {
    ("--privileged",): "it would give the box the whole machine",
    ("--entrypoint", "sh"): "reprobox's own entrypoint applies the recipe",
    ("--pid", "host"): "it would show the box the machine's own",
    ("--pid=host",): "it would show the box the machine's own",
    ("--security-opt", "seccomp=unconfined"): "a box always has no-new-privileges",
    ("--userns=host",): "the user is set by number",
    ("--restart", "always"): "a run is one run of its command",
    ("--volumes-from", "x"): "what a run sees is written down mount by mount",
    ("--dns", "1.1.1.1"): "the engine's own resolver is used",
    ("--health-cmd", "x"): "its exit code is its health",
    ("-P",): "only ports that are named are published",
    ("--cap-add", "SYS_ADMIN"): "would give the box the whole machine",
    ("--device", "/dev/mem"): "the box could read or write the machine itself",
    ("--label", "reprobox.run=x"): "labels that begin with reprobox. are its own",
}


def test_a_flag_of_docker_that_a_box_cannot_have_is_refused_with_the_reason(docker):
    ended = many(docker, [docker.argv("true", flags=flags)[1:] for flags in REFUSALS])
    for (flags, reason), (code, stdout, stderr) in zip(REFUSALS.items(), ended, strict=True):
        assert (code, stdout) == (2, ""), (flags, stderr)
        (line,) = stderr.splitlines()
        assert reason in line, flags
        assert "; " in line, f"it says what to do instead of {flags}"
    assert docker.runs() == []
