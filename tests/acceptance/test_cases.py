"""What a tool that runs a command in a container must keep, as the tests of other such tools have it, case by case."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import KW_ONLY, dataclass

import pytest
from support.cli import together
from support.engine import boxes_left, connected_client

MARKS = {"docker": pytest.mark.engine, "local": pytest.mark.local}
BOTH = ("docker", "local")
SEED = ("--seed", "42")
PROMPT_SECONDS = 10
"""A box takes one or two seconds to start and to go; what takes longer than this has waited for something."""

EAT = "held = []\nwhile True: held.append(b'x' * (1 << 20))"
CHILD_EATS = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {EAT!r}]).returncode)"
EVERY_BYTE = bytes(range(256)) + b"\xff\xfe\xc3(\xed\xa0\x80"
PRINT_EVERY_BYTE = f"import sys; sys.stdout.buffer.write({EVERY_BYTE!r})"
ORPHANS = """\
import os, time
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
for _ in range(5):
    os.wait()
time.sleep(0.5)
print([state for entry in os.listdir('/proc') if entry.isdigit()
       if (state := open(f'/proc/{entry}/stat').read().rpartition(') ')[2][0]) == 'Z'])
"""


@dataclass(frozen=True)
class Row:
    """One case: what is typed and given, and what must come of it.

    ``source`` is whose tests have the case; ``said`` is in reprobox's lines on stderr; ``whose`` exit code the manifest
    says it is, ``None`` where there is no run and so no manifest.
    """

    number: int
    source: str
    name: str
    command: tuple[str, ...]
    _: KW_ONLY
    flags: tuple[str, ...] = SEED
    stdin: bytes = b""
    code: int = 0
    stdout: bytes = b""
    stderr: str = ""
    said: str = ""
    whose: str | None = "command"
    outcome: str = "exited"
    engines: tuple[str, ...] = BOTH


def sh(script):
    return ("sh", "-c", script)


def py(program):
    return ("python", "-c", program)


REFUSED = {"whose": "reprobox", "outcome": "refused"}
USAGE = {"whose": None}
BOX = {"engines": ("docker",)}
SMALL = {"flags": (*SEED, "--memory", "64m"), **BOX}
ABSENT = ("--image", "absent:1", "--pull", "never")

ROWS = (
    Row(1, "moby", "true", ("true",), code=0),
    Row(1, "moby", "false", ("false",), code=1),
    Row(1, "podman", "exit 72", sh("exit 72"), code=72),
    Row(2, "docker/cli", "no such file", ("/no/such",), code=127, said="/no/such was not found", **REFUSED),
    Row(2, "moby", "no such command", ("nosuchcmd",), code=127, said="nosuchcmd was not found", **REFUSED),
    Row(3, "podman, moby", "a folder", ("/etc",), code=126, said="cannot be executed (Permission denied)", **REFUSED),
    Row(
        4, "moby", "an unknown flag", ("true",), flags=("--no-such",), code=2, said="no such option: --no-such", **USAGE
    ),
    Row(
        4, "moby", "a bad image", ("true",), flags=("--image", "x@foo"), code=125, said="'x@foo' is not", **USAGE, **BOX
    ),
    Row(4, "moby", "an absent image", ("true",), flags=ABSENT, code=125, said="docker pull absent:1", **USAGE, **BOX),
    Row(5, "measured", "its own 2", sh("exit 2"), code=2),
    Row(5, "measured", "its own 125", sh("exit 125"), code=125),
    Row(5, "measured", "its own 126", sh("exit 126"), code=126),
    Row(5, "measured", "its own 127", sh("exit 127"), code=127),
    Row(6, "bazel", "SEGV", sh("kill -SEGV $$"), code=139),
    Row(6, "measured", "ABRT", sh("kill -ABRT $$"), code=134),
    Row(7, "moby", "out of memory", py(EAT), code=137, said="out of memory", outcome="out-of-memory", **SMALL),
    Row(8, "measured", "a child out of memory", py(CHILD_EATS), stdout=b"-9\n", said="itself went on", **SMALL),
    Row(11, "bazel", "two streams", sh("echo o; echo e >&2"), stdout=b"o\n", stderr="e\n"),
    Row(12, "cibuildwheel", "every byte", py(PRINT_EVERY_BYTE), stdout=EVERY_BYTE),
    Row(16, "measured", "input with -i", ("wc", "-c"), flags=("-i",), stdin=b"abc", stdout=b"3\n"),
    Row(16, "measured", "no input without -i", ("wc", "-c"), stdin=b"abc", stdout=b"0\n"),
    Row(27, "tini", "orphans are reaped", py(ORPHANS), stdout=b"[]\n", **BOX),
    Row(28, "podman, moby", "a bad name", ("true",), flags=("--name", "-x"), code=2, said="'-x'", **USAGE, **BOX),
    Row(30, "podman", "an empty variable name", ("true",), flags=("-e", "=x"), code=2, said="not a variable", **USAGE),
    Row(33, "podman", "no such -w", ("true",), flags=("-w", "/no"), code=126, said="/no cannot be entered", **REFUSED),
)


@pytest.fixture
def cli(request, engine):
    return request.getfixturevalue(engine)


@pytest.fixture(autouse=True)
def _nothing_is_left(engine, cli):
    yield
    runs = sorted(cli.folder.rglob("manifest.json"))
    if engine == "docker":
        assert boxes_left(connected_client(), {manifest.parent.name for manifest in runs}) == []
    for manifest in runs:
        assert json.loads(manifest.read_text())["end"], "a run's record was not completed"
        assert not (manifest.parent / "box").exists()


def on(*engines):
    return pytest.mark.parametrize("engine", [pytest.param(e, marks=MARKS[e]) for e in engines])


@pytest.mark.parametrize(
    ("engine", "row"),
    [pytest.param(e, row, marks=MARKS[e], id=f"{row.number} {row.name}, {e}") for row in ROWS for e in row.engines],
)
def test_a_case(cli, row):
    done = cli.run(*row.command, flags=row.flags, input=row.stdin, check=False, text=False)
    lines = done.stderr.decode().splitlines(keepends=True)
    own = "".join(line for line in lines if line.startswith("reprobox: "))
    assert (done.returncode, done.stdout) == (row.code, row.stdout), own
    assert "".join(line for line in lines if not line.startswith("reprobox: ")) == row.stderr
    assert row.said in own
    if row.whose is None:
        assert cli.runs() == []
    else:
        manifest = cli.manifest()
        recorded = [manifest[name] for name in ("exit_code", "exit_code_of", "outcome", "stage")]
        stage = "exec" if row.whose == "command" else "exec-failed"
        assert recorded == [row.code, row.whose, row.outcome, stage]


@on(*BOTH)
def test_9_the_exit_code_of_the_command_is_the_runs(cli):
    """From tini, which tries all 256: those that mean something to a shell, a signal or reprobox, and a few others."""
    codes = (3, 64, 77, 100, 123, 124, *range(128, 138), 192, 200, 254, 255)
    ended = together(lambda code: cli.run(*sh(f"exit {code}"), flags=("-q", *SEED), check=False).returncode, codes)
    assert ended == list(codes)


@on(*BOTH)
def test_10_what_is_printed_just_before_the_end_always_arrives(cli):
    printed = together(lambda _: cli.run("seq", "-f", "line %g", "200", flags=("-q", *SEED)).stdout, range(12))
    assert set(printed) == {"".join(f"line {n}\n" for n in range(1, 201))}


@on(*BOTH)
def test_14_a_slow_reader_loses_nothing(cli):
    """From moby and docker/cli."""
    process = cli.start(*py("import sys\nprint('ready')\nfor n in range(1 << 18): print('%015d' % n)"))
    seen = hashlib.sha256()
    while data := process.stdout.read(1 << 17):
        time.sleep(0.02)
        seen.update(data)
    assert process.wait(timeout=30) == 0
    assert seen.digest() == hashlib.sha256(b"".join(b"%015d\n" % n for n in range(1 << 18))).digest()


@on(*BOTH)
def test_15_a_reader_that_goes_away_ends_the_command(cli):
    """docker leaves the container running."""
    process = cli.start(*sh("echo ready; while :; do echo line; sleep 0.05; done"))
    process.stdout.close()
    assert process.wait(timeout=30) == 143


@on(*BOTH)
def test_17_a_hundred_mebibytes_go_in_and_come_out(cli, tmp_path):
    given = tmp_path / "given"
    block = os.urandom(1 << 20)
    with given.open("wb") as file:
        file.writelines(n.to_bytes(4, "big") + block[4:] for n in range(100))
    with given.open("rb") as stdin, (tmp_path / "taken").open("wb") as stdout:
        done = subprocess.run(
            cli.argv("cat", flags=("-i", "--no-log", *SEED)),
            cwd=cli.folder,
            env=cli.environment,
            stdin=stdin,
            stdout=stdout,
        )
    assert done.returncode == 0
    digests = [hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in (given, tmp_path / "taken")]
    assert digests[0] == digests[1]


@on(*BOTH)
@pytest.mark.parametrize("unread", ["nothing comes", "more than a pipe holds"])
def test_18_input_that_is_never_read_holds_nothing_up(cli, unread):
    """From moby and cog."""
    process = cli.start(*sh("echo ready; exit 3"), flags=("-i", *SEED), stdin=subprocess.PIPE)
    began = time.monotonic()
    if unread == "more than a pipe holds":
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(bytes(1 << 24))
    assert process.wait(timeout=30) == 3
    assert time.monotonic() - began < PROMPT_SECONDS
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


@on(*BOTH)
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "ALRM", "RTMIN+3"])
def test_19_a_trap_decides_the_exit_code(cli, name):
    """From podman and docker/cli."""
    process = cli.start(*sh(f"trap 'exit 42' {name}; echo ready; while :; do sleep 0.1; done"))
    first, _, further = name.partition("+")
    process.send_signal(signal.Signals[f"SIG{first}"] + int(further or 0))
    assert process.wait(timeout=30) == 42


@on(*BOTH)
@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("INT", 130)])
def test_20_a_signal_nobody_traps_ends_the_command_at_once(cli, name, code):
    """Without an init the kernel keeps it from process 1, and the end takes as long as docker waits before it kills."""
    process = cli.start(*sh("echo ready; exec sleep 60"))
    began = time.monotonic()
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.wait(timeout=30) == code
    assert time.monotonic() - began < PROMPT_SECONDS


@on(*BOTH)
def test_21_the_third_signal_kills_a_command_that_ignores_them(cli):
    process = cli.start(*sh("trap '' TERM; echo ready; while :; do sleep 0.1; done"))
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert process.wait(timeout=30) == 137
    assert cli.manifest()["exit_code"] == 137


@on(*BOTH)
def test_22_a_signal_at_any_moment_of_the_start_is_143(cli):
    """docker leaves a container that was created and never started."""

    def end_after(seconds):
        process = subprocess.Popen(
            cli.argv("sleep", "60"), cwd=cli.folder, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == b""
        # Before Python has its handlers the signal itself ends it, which a shell also calls 143.
        return 128 - process.returncode if process.returncode < 0 else process.returncode

    assert together(end_after, [n / 5 for n in range(11)], at_once=2) == [143] * 11


@on(*BOTH)
def test_23_signals_that_mean_nothing_to_the_command_do_not_reach_it(cli):
    """From docker/cli."""
    names = ("CHLD", "PIPE", "WINCH", "CONT")
    traps = "".join(f"signal.signal(signal.SIG{name}, lambda *_: os._exit(9)); " for name in names)
    process = cli.start(*py(f"import os, signal, time; {traps}print('ready', flush=True); time.sleep(60)"))
    for name in names:
        process.send_signal(signal.Signals[f"SIG{name}"])
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@on("docker")
def test_28_a_name_that_is_taken_is_125(cli, tmp_path):
    name = f"reprobox-test-{tmp_path.name}"
    process = cli.start(*sh("echo ready; exec sleep 60"), flags=("--name", name))
    second = cli.run("true", flags=("--name", name), check=False)
    process.terminate()
    assert (second.returncode, second.stdout) == (125, "")
    assert f'"/{name}" is already in use' in second.stderr
    assert process.wait(timeout=30) == 143


@on("docker")
def test_29_a_start_that_fails_leaves_nothing(cli):
    """From podman."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli.run("true", flags=("-p", f"127.0.0.1:{port}:80"), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "address already in use" in done.stderr
    assert (cli.manifest()["outcome"], cli.manifest()["exit_code_of"]) == ("failed", "reprobox")


@on(*BOTH)
def test_30_variables_arrive_as_they_are(cli):
    """From podman, moby and cibuildwheel; a single one may have 128 KiB, name and NUL included."""
    long = "x" * ((127 << 10) - 8)
    given = {"LINES_": "one\ntwo\n", "EQUALS": "a=b==c", "QUOTES": "' \" $HOME \\n", "EMPTY": "", "UNICODE": "ü\u2028…"}
    given |= {f"LONG_{n}": str(n) + long for n in range(4)}
    cli.environment |= {"FROM_HERE": "yes", "TZ": "UTC"}
    cli.environment.pop("UNSET_HERE", None)
    flags = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
    flags += ["-e", "FROM_HERE", "-e", "UNSET_HERE", "-e", "PYTHONHASHSEED_"]
    program = "import hashlib, json, os; print(json.dumps({k: hashlib.sha256(v.encode()).hexdigest() for k, v in os.environ.items()}))"
    seen = json.loads(cli.run(*py(program), flags=(*SEED, *flags)).stdout)
    for name, value in {**given, "FROM_HERE": "yes"}.items():
        assert seen[name] == hashlib.sha256(value.encode()).hexdigest(), name
    assert "UNSET_HERE" not in seen


@on("docker")
def test_30_a_name_alone_that_is_unset_here_removes_the_images_variable(cli):
    cli.environment.pop("TZ", None)
    asks = py("import os; print('TZ' in os.environ)")
    assert cli.run(*asks).stdout == "True\n", "the image has no TZ, so this test is void"
    assert cli.run(*asks, flags=(*SEED, "-e", "TZ")).stdout == "False\n"


@on("docker")
def test_31_a_user_without_a_passwd_entry_has_a_home_and_a_name(cli):
    """From podman."""
    cli.folder.chmod(0o755)
    program = (
        "import getpass, os, pathlib; home = pathlib.Path.home(); (home / 'x').write_text('');"
        "print(os.getuid(), os.environ['HOME'] == str(home), bool(getpass.getuser()), os.access('/tmp', os.W_OK))"
    )
    assert cli.run(*py(program), flags=(*SEED, "-u", "12345")).stdout == "12345 True True True\n"


@on("docker")
@pytest.mark.parametrize("flags", [("-v", "./none:/data"), ("--mount", "type=bind,src=./none,dst=/data")])
def test_32_a_missing_mount_source_is_125_and_is_not_created(cli, flags):
    done = cli.run("true", flags=flags, check=False)
    assert done.returncode == 125
    assert f"{cli.folder}/none does not exist" in done.stderr
    assert not (cli.folder / "none").exists()


@on(*BOTH)
def test_35_the_tail_belongs_to_the_command_with_and_without_the_dashes(cli):
    cli.write("t.py", "import sys, random; print(sys.argv[1:], random.random())")
    argv = cli.argv("python", "t.py", "--seed", "9", "--", "-q", flags=("--seed", "1"))
    expected = cli.call(*argv).stdout
    assert expected.startswith("['--seed', '9', '--', '-q']")
    argv.remove("--")
    assert cli.call(*argv).stdout == expected
