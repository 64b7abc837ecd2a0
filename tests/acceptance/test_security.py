"""What a box cannot do, what cannot be asked for, and where a secret does not go."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.many import many

from reprobox.limits import default_processes

pytestmark = pytest.mark.engine

SEED = ("--seed", "42")
QUIET = ("-q", *SEED)

LOOK = r"""
import json, os, re, resource, stat
status = dict(line.rstrip().split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
mounts = {line.split()[1]: line.split()[2:4] for line in open("/proc/mounts")}
def writable(path):
    try:
        open(path + "/probe", "w").close(); os.unlink(path + "/probe"); return True
    except OSError:
        return False
def nodes():
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if (folder, name) not in (("/", "proc"), ("/", "sys"))]
        for name in names:
            path = os.path.join(folder, name)
            try:
                yield path, os.lstat(path).st_mode
            except OSError:
                pass
found = list(nodes())
pids = [p for p in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max") if os.path.exists(p)]
print(json.dumps({
    "user": [status["Uid"].split(), status["Gid"].split()],
    "capabilities": {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "root": "ro" in mounts["/"][1].split(","), "sys": "ro" in mounts["/sys"][1].split(","),
    "writable": [p for p in ("/", "/usr", "/etc", "/opt/venv", "/opt/reprobox", "/var", "/run", "/run/reprobox",
                             "/proc/sys/kernel", "/sys/fs/cgroup", "/workspace/.reprobox") if writable(p)],
    "own": [writable(p) for p in ("/tmp", os.environ["HOME"], "/workspace", "/run/reprobox/run")],
    "tmp": [mounts["/tmp"][0], *sorted({"nosuid", "nodev"} & {*mounts["/tmp"][1].split(",")})],
    "pids": open(pids[0]).read().strip(),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "sockets": [path for path, mode in found if stat.S_ISSOCK(mode)],
    "disks": [path for path, mode in found if stat.S_ISBLK(mode)],
    "engine": sorted(name for name in os.environ if name.startswith(("DOCKER", "CONTAINER"))),
    "pid1": open("/proc/1/comm").read().strip(), "cwd": os.getcwd(),
    "network": sorted(os.listdir("/sys/class/net")),
}))
"""


@pytest.mark.parametrize(("network", "interfaces"), [("none", ["lo"]), ("bridge", ["eth0", "lo"])])
def test_the_box_is_closed_down(docker, network, interfaces):
    flags = (*SEED, "--shm-size", "256m", "--network", network)
    seen = json.loads(docker.run("python", "-c", LOOK, flags=flags, environment={"DOCKER_CONFIG": "/c"}).stdout)
    assert seen == {
        "user": [[str(os.getuid())] * 4, [str(os.getgid())] * 4],
        "capabilities": dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16),
        "no_new_privs": "1",
        "seccomp": "2",
        "root": True,
        "sys": True,
        "writable": [],
        "own": [True] * 4,
        "tmp": ["tmpfs", "nodev", "nosuid"],
        "pids": str(default_processes()),
        "shm": 256 << 20,
        "sockets": [],
        "disks": [],
        "engine": [],
        "pid1": "tini",
        "cwd": "/workspace",
        "network": interfaces,
    }


# --- what cannot be asked for ---------------------------------------------------------------------------------------

TARGETS = (
    "/",
    "//etc",
    "/etc/passwd",
    "/m/../etc",
    "/proc",
    "/sys",
    "/dev/shm",
    "/usr",
    "/run",
    "/run/secrets",
    "/home",
)
TARGETS += ("/opt", "/opt/reprobox/x", "/opt/venv", "/var/run/docker.sock", "/workspace/../etc", "relative")
TARGETS += ("/workspace/x/../.reprobox/runs", "/workspace/link/x")
SOURCES = ("/run/docker.sock", "/run/../var/run/docker.sock", "/var/run", "/", "/var/lib", "/var/lib/docker")
SOURCES += ("/proc/self/root", "./to-the-socket", "./to-its-folder", "./to-its-folder/..")


def refusals(docker, kind, texts):
    """What comes of each text given to the option: exit code, stdout, runs, and the number of lines on stderr."""
    (docker.folder / "data").mkdir()
    (docker.folder / "link").symlink_to("/etc")
    (docker.folder / "to-the-socket").symlink_to("/var/run/docker.sock")
    (docker.folder / "to-its-folder").symlink_to("/var/run")

    ended = many(docker, [docker.argv("true", flags=[word.format(text) for word in kind])[1:] for text in texts])
    assert docker.runs() == []
    return {text: (code, out, err.count("\n")) for text, (code, out, err) in zip(texts, ended, strict=True)}


MOUNTS = [("-v", "./data:{}"), ("--mount", "type=bind,src=./data,dst={}"), ("--tmpfs", "{}")]


@pytest.mark.parametrize(("kind", "targets"), [(MOUNTS[0], TARGETS), *((k, TARGETS[::4]) for k in MOUNTS[1:])])
def test_a_mount_over_the_boxs_own_folders_is_refused(docker, kind, targets):
    assert refusals(docker, kind, targets) == dict.fromkeys(targets, (2, "", 1))


@pytest.mark.parametrize("kind", [("-v", "{}:/data"), ("--mount", "type=bind,src={},dst=/data")])
def test_a_mount_that_holds_the_engines_socket_is_refused(docker, kind):
    assert refusals(docker, kind, SOURCES) == dict.fromkeys(SOURCES, (2, "", 1))


def test_a_variable_has_a_variables_name(docker):
    names = ("", "=x", "A B", "1A", "A-B", "A\n", "Ä", "--privileged", "REPROBOX_SEED=1", "_REPROBOX_RECIPE=x")
    assert refusals(docker, ("-e", "{}"), names) == dict.fromkeys(names, (2, "", 1))


def test_an_image_has_a_references_grammar(docker):
    names = (
        "-rm",
        "--privileged",
        "A/B",
        "../x",
        "/x",
        "x//y",
        "x y",
        "x\ny",
        "x:",
        "x:-t",
        "x@foo",
        "x@sha256:123",
        "h:p/x",
    )
    assert refusals(docker, ("--image", "{}"), names) == dict.fromkeys(names, (125, "", 1))


REFUSED_VALUES = {
    "--name": ("--privileged", "-v", "a b", "a\nb", "a/b", "../a", ""),
    "--hostname": ("--privileged", "-v", "a b", "a\nb", "a/b", ""),
    "--label": ("--privileged", "--privileged=x", "a\n--privileged", "a=\n--privileged", "a b=c", ""),
    "-u": ("--privileged", "0:0:0", "0\n", "root x"),
    "--network": ("--privileged", "container:x", "a\nb", "a b"),
}


@pytest.mark.parametrize("option", list(REFUSED_VALUES))
def test_a_value_that_looks_like_an_option_is_refused_where_it_can_be_no_value(docker, option):
    texts = REFUSED_VALUES[option]
    seen = {
        text: (code in (2, 125), out, lines)
        for text, (code, out, lines) in refusals(docker, (option, "{}"), texts).items()
    }
    assert seen == dict.fromkeys(texts, (True, "", 1))


def test_a_value_that_looks_like_an_option_is_a_value(docker):
    (docker.folder / "--privileged").mkdir()
    given = {"A": "--privileged", "B": "-v /:/host", "C": "x\n--privileged\n", "D": "--secrets=A"}
    flags = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
    flags += ["-w", "--privileged", "--label", "a=--privileged", "--label", "b=-v /:/host"]
    with docker.running(*flags) as with_them:
        assert {f"{name}={value}" for name, value in given.items()} <= set(with_them["Config"]["Env"])
        assert with_them["Config"]["Labels"].items() >= {"a": "--privileged", "b": "-v /:/host"}.items()
    with docker.running() as without:
        pass
    assert comparable(with_them) == comparable(without)
    assert without["HostConfig"]["Privileged"] is False


def comparable(found):
    """A container's host configuration without what is another in every run: its own folders."""
    text = json.dumps(found["HostConfig"], sort_keys=True)
    return text.replace(found["Config"]["Labels"]["reprobox.run"], "RUN")


@pytest.mark.parametrize(
    "command", [("--privileged",), ("--chdir=/tmp", "pwd"), ("--secrets=A", "true"), ("--", "true")]
)
def test_a_command_that_looks_like_an_option_is_a_command(docker, command):
    done = docker.run(*command, flags=QUIET, check=False)
    assert (done.returncode, done.stdout) == (127, "")


# --- what the box can do to the records -----------------------------------------------------------------------------

RECEIPT = '{"schema": "reprobox.receipt/1", "start_ns": 1, "complete": true, '
PLANTED = {
    "a stage that leads elsewhere": "rm stage; ln -s /workspace/victim stage",
    "a stage that is a pipe": "rm stage; mkfifo stage",
    "a stage that is a folder": "rm stage; mkdir stage; touch stage/x",
    "a stage that lies": "echo refused > stage",
    "a receipt that leads elsewhere": "ln -s /workspace/victim receipt-1.json",
    "a receipt that leads to a file of the machine": "ln -s /etc/passwd receipt-1.json",
    "a receipt that is a pipe": "mkfifo receipt-1.json",
    "a receipt that is too deep": "head -c 200000 /dev/zero | tr '\\0' '[' > receipt-1.json",
    "a receipt that is too large": "truncate -s 1T receipt-1.json",
    "a receipt with a number that is too long": "(printf '['; head -c 9999 /dev/zero | tr '\\0' 9; echo ']') > receipt-1.json",
    "a receipt with a list as place": f"echo '{RECEIPT}\"events\": [{{\"kind\": \"flag\", \"flag\": [], \"after\": {{}}, \"file\": [], \"line\": []}}]}}' > receipt-1.json",
    "a receipt with a rank for a process": f"echo '{RECEIPT}\"children\": [{{\"pid\": 1, \"program\": {{}}}}], \"lineage\": 3, \"start_method\": []}}' > receipt-1.json",
    "a ledger that is a pipe": "rm -f ledger; mkfifo ledger",
    "a ledger that leads elsewhere": "rm -f ledger; ln -s /workspace/victim ledger",
    "a ledger of other digits": "printf 'hook \\302\\262\\nmain 1\\n\\377\\n' > ledger",
    "a manifest and a lock": "echo '{}' > manifest.json; echo 1 > lock; ln -s /workspace/victim stdout.log",
    "no rights": "chmod 000 .",
}  # fmt: skip


@pytest.mark.parametrize("what", list(PLANTED))
def test_nothing_the_box_leaves_in_its_folder_misleads_the_host(docker, what):
    victim = docker.write("victim", "keep me")
    script = f"cd /run/reprobox/run; {PLANTED[what]}; exit 7"
    # A terabyte read into memory must fail here, and not take the machine with it.
    argv = ["prlimit", f"--as={8 << 30}", *docker.argv("sh", "-c", script)]
    done = docker.call(*argv, check=False, timeout=60)
    assert "reprobox itself failed" not in done.stderr
    assert done.returncode == 7
    manifest = docker.manifest()
    recorded = [manifest[name] for name in ("outcome", "stage", "exit_code", "exit_code_of", "message")]
    assert recorded == ["exited", "exec", 7, "command", None]
    assert victim.read_text() == "keep me"
    (run,) = docker.runs()
    assert not (run / "box").exists()
    assert all(path.is_file() and not path.is_symlink() for path in run.iterdir()), "nothing but files is taken over"
    assert docker.reprobox("runs", "show", "--json").returncode == 0


def test_the_command_cannot_touch_the_records_of_runs(docker, tmp_path_factory):
    victim = tmp_path_factory.mktemp("victim")
    (victim / "box").mkdir()
    (victim / "box" / "data").write_text("keep me")
    attack = f"cd /workspace/.reprobox/runs && d=$(ls | tail -1) && mv $d gone && ln -s {victim} $d"
    done = docker.run("sh", "-c", attack, check=False)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    assert (victim / "box" / "data").read_text() == "keep me"
    assert not (victim / "manifest.json").exists()


def test_an_output_is_not_hashed_through_a_link_out_of_the_project(docker, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x").write_text("not the box's")
    script = f"ln -s {outside} folder; ln -s {outside}/x file; mkdir real; ln -s {outside}/x real/x; mkfifo pipe"
    names = ("folder/x", "file", "real", "pipe")
    docker.run("sh", "-c", script, flags=(*SEED, *(word for name in names for word in ("--output", name))))
    assert docker.manifest()["outputs"] == {"folder/x": None, "file": None, "real/x": None, "pipe": None}


# --- secrets --------------------------------------------------------------------------------------------------------

CANARY = "canary" + hashlib.sha256(os.urandom(8)).hexdigest()[:16]
SECRETS = {name: f"{CANARY}-{name}-end" for name in ("FROM_FILE", "FROM_HERE", "HF_TOKEN", "DB_PASSWORD")}
SECRETS["URL"] = f"https://user:{CANARY}-URL-end@host/x"
PLAIN = f"{CANARY}-plain-end"
KNOWS = r"""
import hashlib, os, sys, time
for name in sys.argv[1:]:
    path = f"/run/secrets/{name}"
    value, mode = os.environ[name].encode(), os.stat(path).st_mode & 0o7777
    same = open(path, "rb").read().removesuffix(b"\n") == value
    print(name, oct(mode), same, hashlib.sha256(value).hexdigest(), file=sys.stderr)
print("ready", flush=True)
time.sleep(60)
"""
WAITS = "import sys, time; print('ready', flush=True); time.sleep(float(sys.argv[1]))"


def secret_flags(docker):
    docker.environment["FROM_HERE"] = SECRETS["FROM_HERE"]
    file = docker.folder.parent / f"{docker.folder.name}-secret"
    file.write_text(SECRETS["FROM_FILE"] + "\n")
    env_file = docker.folder.parent / f"{docker.folder.name}-env"
    env_file.write_text(f"DB_PASSWORD={SECRETS['DB_PASSWORD']}\n")
    flags = ["--secret", f"FROM_FILE={file}", "--secret", "FROM_HERE", "--env-file", str(env_file)]
    return [
        *SEED,
        *flags,
        "-e",
        f"HF_TOKEN={SECRETS['HF_TOKEN']}",
        "-e",
        f"URL={SECRETS['URL']}",
        "-e",
        f"PLAIN={PLAIN}",
    ]


def canaries_in(chunks):
    """Names of the canaries in a stream of bytes."""
    wanted = {name.encode() for name in (*SECRETS, "plain")}
    found, kept = set(), b""
    for chunk in chunks:
        data = kept + chunk
        for name in wanted - found:
            if CANARY.encode() + b"-" + name + b"-end" in data:
                found.add(name)
        kept = data[-100:]
    return {name.decode() for name in found}


def output_of(cli, *argv):
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=cli.environment) as process:
        yield from iter(lambda: process.stdout.read(1 << 22), b"")
    assert process.returncode == 0, argv


def records_of(docker):
    for path in (docker.folder / ".reprobox").rglob("*"):
        if path.is_file():
            yield path.read_bytes() + b"\n"


def test_secrets_reach_the_command_and_nothing_else(docker, image):
    """The same search finds a variable that is no secret, wherever variables are written down."""
    flags = secret_flags(docker)
    run = docker.run("python", "-c", KNOWS, *SECRETS, flags=("-d", *flags)).stdout.strip()
    box = docker.inspected()["Id"]
    while "ready" not in docker.reprobox("runs", "logs", run).stdout:
        pass
    committed = docker.call("docker", "commit", box).stdout.strip()
    try:
        seen = {
            "the record": canaries_in(records_of(docker)),
            "inspect": canaries_in(output_of(docker, "docker", "inspect", box)),
            "ps": canaries_in(output_of(docker, "docker", "ps", "--no-trunc")),
            "logs": canaries_in(output_of(docker, "docker", "logs", box)),
            "history of the image": canaries_in(output_of(docker, "docker", "history", "--no-trunc", image)),
            "history of an image of the box": canaries_in(
                output_of(docker, "docker", "history", "--no-trunc", committed)
            ),
            "that image": canaries_in(output_of(docker, "docker", "save", committed)),
        }
    finally:
        docker.call("docker", "rmi", committed)
        docker.reprobox("runs", "stop", run, "-t", "1")
    nowhere = ("ps", "logs", "history of the image", "history of an image of the box")
    assert seen == {place: set() if place in nowhere else {"plain"} for place in seen}
    assert canaries_in(records_of(docker)) == {"plain"}
    lines = docker.reprobox("runs", "logs", run).stderr.splitlines()
    shown = {name: f"0o400 True {hashlib.sha256(value.encode()).hexdigest()}" for name, value in SECRETS.items()}
    assert dict(line.split(" ", 1) for line in lines if not line.startswith("reprobox: ")) == shown


def test_a_secret_on_the_command_line_is_not_recorded(docker):
    docker.run("true", SECRETS["HF_TOKEN"], f"--url={SECRETS['URL']}", flags=secret_flags(docker))
    assert canaries_in(records_of(docker)) == {"plain"}


@pytest.fixture(params=["XDG_RUNTIME_DIR", "no such folder"])
def handed_over(request, docker, tmp_path_factory):
    """The folder in which secrets are handed to boxes, as what there is of ours in it."""
    docker.environment.pop("XDG_RUNTIME_DIR", None)
    folder = next(path for path in (Path(f"/run/user/{os.getuid()}"), Path("/run")) if path.is_dir())
    if request.param == "XDG_RUNTIME_DIR":
        folder = tmp_path_factory.mktemp("runtime")
        docker.environment["XDG_RUNTIME_DIR"] = str(folder)
    return lambda: [path for run in docker.runs() for path in folder.glob(f"*{run.name}*")]


@pytest.mark.parametrize("end", ["by itself", "by a signal", "killed", "killed, and completed from another session"])
def test_no_file_of_a_secret_is_left(docker, handed_over, end):
    seconds = "60" if end == "by a signal" else "1"
    process = docker.start("python", "-c", WAITS, seconds, flags=secret_flags(docker))
    (folder,) = handed_over()
    modes = {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {0o700, 0o400}
    if end != "by itself":
        process.send_signal(signal.SIGTERM if end == "by a signal" else signal.SIGKILL)
    process.wait(timeout=30)
    if "killed" in end:
        assert handed_over() == [folder], "it is gone already, so this test is void"
        if "another" in end:
            docker.environment.pop("XDG_RUNTIME_DIR", None)
        assert docker.reprobox("runs", "wait").returncode == 0
    assert handed_over() == []
    assert canaries_in(records_of(docker)) == {"plain"}


def test_a_start_that_fails_leaves_no_file_of_a_secret(docker, handed_over):
    done = docker.run("true", flags=(*secret_flags(docker), "--network", "no-such-network"), check=False)
    assert done.returncode == 125
    assert handed_over() == []


# --- what a box has unasked ------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.parametrize("flags", [("--ipc", "host"), ("-v", "/dev/shm:/shared")], ids=["--ipc host", "a mount"])
def test_a_box_with_the_machines_shared_memory_does_not_see_the_secret_of_another_run(docker, flags):
    docker.environment.pop("XDG_RUNTIME_DIR", None)
    secret = {"TOKEN": "the-token-of-another-run"}
    docker.environment |= secret
    other = docker.start("sh", "-c", "echo ready; exec sleep 60", flags=("--seed", "1", "--secret", "TOKEN"))
    try:
        look = f"grep -rl {secret['TOKEN']} /dev/shm /shared 2>/dev/null; ls -d /dev/shm"
        assert docker.run("sh", "-c", look, flags=("--seed", "1", *flags)).stdout == "/dev/shm\n"
    finally:
        other.terminate()
        other.wait(timeout=30)


@pytest.mark.engine
def test_the_proxies_of_dockers_own_configuration_reach_a_box_only_when_asked_for(docker, tmp_path):
    proxy = "http://user:password@proxy.example:3128"
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": proxy}}}))
    docker.environment |= {"DOCKER_CONFIG": str(tmp_path / "docker")}
    look = ("sh", "-c", "env | grep -ic proxy || true")
    assert docker.run(*look).stdout == "0\n"
    given = "http://proxy.example:3128"
    asked = docker.run("sh", "-c", "echo $HTTP_PROXY", flags=("--seed", "1", "-e", f"HTTP_PROXY={given}"))
    assert asked.stdout == f"{given}\n"
    assert docker.manifest()["environment"] == {"HTTP_PROXY": given}
