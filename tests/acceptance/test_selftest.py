"""The self-test before a command, its certificates, and ``reprobox selftest``, on a real engine and on this machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.cli import BIN, Cli
from support.engine import boxes_left

ENGINES = [pytest.param("docker", marks=pytest.mark.engine), pytest.param("local", marks=pytest.mark.local)]
TESTED = r"reprobox: self-test 1[0-5] cases on cpu: same bits \([0-9.]+ s\)\n"
KNOWN = r"reprobox: self-test 1[0-5] cases on cpu: same bits \(certificate of [0-9]{4}-[0-9]{2}-[0-9]{2}\)\n"
FEW = "matmul,training step"
THREADED = f"{FEW},layer norm,linear before batch norm,lstm"
"""Of these one at least has other bits with three threads than with four: the step with AVX-512, the others with AVX2."""
PATIENCE = 60
PLANTED = """
def planted(bench):
    with open("/dev/urandom", "rb") as source:
        return [bench.values(100) + source.read(1)[0] * 1e-6]


CASES = (*CASES, Case(name="planted", run=planted, start=True))
"""


@pytest.fixture
def docker(docker):
    """The command line with the self-test, which is the subject here."""
    del docker.environment["REPROBOX_SELFTEST"]
    return docker


def fresh(request, engine, folder, cache):
    if engine == "docker":
        request.getfixturevalue("image")
    cli = Cli(folder, engine)
    cli.environment["XDG_CACHE_HOME"] = str(cache)
    del cli.environment["REPROBOX_SELFTEST"]
    return cli


def spoken(cli, *command, flags=(), check=True):
    """Run ``command`` and return its result, and the process's id, which its self-test's box is named after."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    argv = cli.argv(*command, flags=("--seed", "42", *flags))
    with subprocess.Popen(argv, cwd=cli.folder, env=cli.environment, text=True, **pipes) as process:
        out, err = process.communicate(timeout=300)
    assert not check or process.returncode == 0, err
    return subprocess.CompletedProcess(argv, process.returncode, out, err), process.pid


def boxes_for_tests(client, pid, since):
    """Return how many boxes for a self-test this process has made."""
    events = client.events(since=since, until=int(time.time()) + 1, decode=True, filters={"event": "create"})
    names = [event["Actor"]["Attributes"]["name"] for event in events]
    return sum(name.startswith(f"reprobox-selftest-{pid}-") for name in names)


@pytest.fixture(scope="module", params=ENGINES)
def proven(request, tmp_path_factory):
    """A project on a machine that has just been tested for the first time, and what that start said."""
    folder = tmp_path_factory.mktemp(f"{request.param}-proven")
    cli = fresh(request, request.param, folder, tmp_path_factory.mktemp("cache"))
    since = int(time.time())
    done, pid = spoken(cli, "true")
    begun = boxes_for_tests(request.getfixturevalue("docker_client"), pid, since) if request.param == "docker" else 1
    return cli, done, begun, cli.manifest()


def test_the_first_start_tests_and_says_so(proven):
    cli, done, begun, manifest = proven
    assert re.search(TESTED, done.stderr)
    assert begun == 1
    test = manifest["self_test"]
    assert (test["verdict"], test["tier"]) == ("passed", "start")
    assert test["seconds"] > 0
    run = cli.runs()[0]
    kept = json.loads((run / "selftest.json").read_text())
    assert len(kept["cases"]) == test["cases"]
    (cached,) = certificates(cli)
    assert json.loads(cached.read_text()) == kept


def certificates(cli):
    return sorted((Path(cli.environment["XDG_CACHE_HOME"]) / "reprobox" / "certificates").glob("*.json"))


def test_the_next_start_has_a_certificate_and_runs_no_case(proven, request):
    cli, _, _, first = proven
    since = int(time.time())
    done, pid = spoken(cli, "true")
    assert re.search(KNOWN, done.stderr)
    test = cli.manifest()["self_test"]
    assert (test["verdict"], test["seconds"], test["date"]) == ("certificate", None, first["self_test"]["date"])
    if cli.engine == "docker":
        assert boxes_for_tests(request.getfixturevalue("docker_client"), pid, since) == 0
    done, _ = spoken(cli, "true", flags=("--seed", "7"))
    assert re.search(KNOWN, done.stderr), "the seed is no part of what was proven"


def test_always_tests_again_and_off_says_nothing(proven):
    cli = proven[0]
    done, _ = spoken(cli, "true", flags=("--self-test", "always"))
    assert re.search(TESTED, done.stderr)
    assert cli.manifest()["self_test"]["verdict"] == "passed"
    done, _ = spoken(cli, "true", flags=("--self-test", "off"))
    assert "self-test" not in done.stderr
    assert cli.manifest()["self_test"]["verdict"] == "off"


def test_profile_off_promises_nothing_and_tests_nothing(proven):
    cli = proven[0]
    done, _ = spoken(cli, "true", flags=("--profile", "off"))
    assert "self-test" not in done.stderr
    assert cli.manifest()["self_test"]["verdict"] == "off"


def torn(document):
    return json.dumps(document)[:-20]


def older(document):
    return json.dumps({**document, "schema": "reprobox.certificate/0"})


def forged(document):
    return json.dumps({**document, "fingerprint": {**document["fingerprint"], "threads": 5}})


@pytest.mark.parametrize("harm", [torn, older, forged])
def test_a_certificate_that_is_not_sound_is_made_again(proven, harm):
    cli = proven[0]
    (cached,) = certificates(cli)
    before = json.loads(cached.read_text())
    cached.write_text(harm(before))
    done, _ = spoken(cli, "true")
    assert re.search(TESTED, done.stderr)
    made = json.loads(cached.read_text())
    assert made["fingerprint"] == before["fingerprint"]
    assert [c["digest"] for c in made["cases"]] == [c["digest"] for c in before["cases"]], "the same bits again"


def test_a_callers_own_knob_is_theirs_and_tested_for_itself(proven):
    cli = proven[0]
    done, _ = spoken(
        cli, "true", flags=("-e", "MKL_NUM_THREADS=3", "-e", "MKL_VERBOSE=1", "-e", "NVIDIA_API_KEY=hidden")
    )
    assert re.search(TESTED, done.stderr)
    assert len(certificates(cli)) == 2
    assert not any("hidden" in path.read_text() for path in certificates(cli))
    (mine,) = [path for path in certificates(cli) if "MKL_VERBOSE" in path.read_text()]
    mine.unlink()


@pytest.mark.engine
def test_a_command_cannot_reach_the_certificates(docker, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    docker.environment["XDG_CACHE_HOME"] = str(cache)
    program = f"test ! -e {cache}/reprobox/certificates && ! grep certificates /proc/self/mountinfo && env"
    done, _ = spoken(docker, "sh", "-c", program)
    assert certificates(docker)
    assert "XDG_CACHE_HOME" not in done.stdout


# --- a self-test that fails -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(docker_client, image, tmp_path_factory):
    """Our image with one more case in it, whose result is another each time."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "case").write_text(PLANTED)
    cases = "/opt/reprobox/lib/reprobox/box/selftest/cases/table.py"
    (folder / "Dockerfile").write_text(
        f"FROM {image}\nUSER root\nCOPY case /tmp/case\nRUN cat /tmp/case >> {cases}; rm -r {cases.rpartition('/')[0]}/__pycache__\n"
    )
    built, _ = docker_client.images.build(path=str(folder), rm=True)
    yield built.id
    docker_client.images.remove(built.id, force=True)


@pytest.mark.engine
@pytest.mark.parametrize("flags", [(), ("-d",)], ids=["", "detached"])
def test_a_self_test_that_fails_keeps_the_command_from_starting(docker, docker_client, planted, tmp_path, flags):
    docker.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done, _ = spoken(docker, "touch", "started", flags=("--image", planted, *flags), check=False)
    assert done.returncode == 125
    assert "planted[float32] cpu: " in done.stderr
    assert "--self-test off" in done.stderr
    assert not (docker.folder / "started").exists()
    manifest = docker.manifest()
    assert (manifest["outcome"], manifest["stage"], manifest["exit_code"]) == ("refused", "selftest-failed", 125)
    assert manifest["self_test"]["verdict"] == "failed"
    assert "planted[float32] cpu" in manifest["self_test"]["failures"][0]
    assert manifest["end"]
    assert boxes_left(docker_client, {run.name for run in docker.runs()}) == []
    assert not certificates(docker)


@pytest.mark.engine
def test_without_the_test_or_the_promise_the_same_image_runs_the_command(docker, planted, tmp_path):
    docker.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    spoken(docker, "touch", "off", flags=("--image", planted, "--self-test", "off"))
    done, _ = spoken(docker, "touch", "fast", flags=("--image", planted, "--profile", "fast"))
    assert "self-test" in done.stderr
    assert (docker.folder / "off").exists()
    assert (docker.folder / "fast").exists()


@pytest.mark.engine
def test_the_bare_image_tests_itself(docker, image, planted):
    def bare(*words):
        return docker.call("docker", "run", "--rm", *words, check=False)

    program = ("python", "-c", "print('ran')")
    done = bare(image, *program)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert re.search(r"self-test 1[0-5] cases on cpu: same bits\n", done.stderr)
    done = bare("-e", "REPROBOX_SELFTEST=off", image, *program)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "self-test" not in done.stderr
    done = bare(planted, *program)
    assert (done.returncode, done.stdout) == (125, "")
    assert "planted[float32] cpu" in done.stderr
    assert bare("-e", "REPROBOX_SELFTEST=off", planted, *program).stdout == "ran\n"


# --- signals and detached runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("command", ["run", "selftest"])
def test_a_signal_ends_the_self_test_and_leaves_nothing(request, tmp_path, engine, command):
    cli = fresh(request, engine, tmp_path, tmp_path / "cache")
    argv = cli.argv("touch", "started") if command == "run" else [str(BIN / "reprobox"), "selftest", "--engine", engine]
    process = subprocess.Popen(argv, cwd=cli.folder, env=cli.environment, stderr=subprocess.PIPE, text=True)
    with process:
        begun = time.monotonic()
        while not children(process.pid, engine, cli):
            assert time.monotonic() < begun + PATIENCE
            time.sleep(0.1)
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 143, process.stderr.read()
        assert time.monotonic() - sent < 12
    assert not children(process.pid, engine, cli)
    assert not (cli.folder / "started").exists()
    if command == "run":
        manifest = cli.manifest()
        assert (manifest["outcome"], manifest["exit_code"]) == ("interrupted", 143)
        assert manifest["end"]


@pytest.mark.engine
def test_the_box_of_a_self_test_that_was_killed_goes_with_the_next_run(request, tmp_path):
    cli = fresh(request, "docker", tmp_path, tmp_path / "cache")
    argv = [str(BIN / "reprobox"), "selftest", "--engine", "docker"]
    with subprocess.Popen(argv, cwd=cli.folder, env=cli.environment, stderr=subprocess.DEVNULL) as process:
        begun = time.monotonic()
        while not children(process.pid, "docker", cli):
            assert time.monotonic() < begun + PATIENCE
            time.sleep(0.1)
        process.kill()
    assert children(process.pid, "docker", cli)
    cli.run("true", flags=("--seed", "1", "--self-test", "off"))
    assert not children(process.pid, "docker", cli)


def children(pid, engine, cli):
    """Return what the self-test of process ``pid`` runs in."""
    if engine == "docker":
        return cli.call("docker", "ps", "-aq", "--filter", f"name=reprobox-selftest-{pid}-").stdout.split()
    return subprocess.run(["pgrep", "-f", "selftest/launch.py.*--tier", "-P", str(pid)], stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detached_run_is_tested_before_it_is_left(request, tmp_path, engine):
    cli = fresh(request, engine, tmp_path, tmp_path / "cache")
    done, _ = spoken(cli, "sh", "-c", "exit 3", flags=("-d",))
    assert re.search(TESTED, done.stderr)
    assert cli.reprobox("runs", "wait", done.stdout.strip(), check=False).returncode == 3
    assert cli.manifest()["self_test"]["verdict"] == "passed"


# --- reprobox selftest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_certificates_are_saved_and_compared(request, tmp_path, engine):
    cli = fresh(request, engine, tmp_path, tmp_path / "cache")

    def tested(*flags, check=True):
        return cli.reprobox("selftest", "--engine", engine, "--repeat", "2", "--cases", THREADED, *flags, check=check)

    document = json.loads(tested("--json", "--save", "four.json").stdout)
    assert document["passed"]
    assert {case["verdict"] for case in document["cases"]} == {"same"}
    assert len({case["name"] for case in document["cases"]}) == len(THREADED.split(","))
    assert json.loads((tmp_path / "four.json").read_text())["cases"] == document["cases"]
    assert not certificates(cli), "a few cases are no proof for a later start"
    again = tested("--against", "four.json")
    assert f"{len(document['cases'])} agree" in again.stdout
    other = tested("--against", "four.json", "--threads", "3", "--json", check=False)
    assert other.returncode == 1
    comparison = json.loads(other.stdout)["comparison"]
    assert "differ" in {case["agreement"] for case in comparison["cases"]}
    assert comparison["fingerprint_differences"]["threads"] == [3, 4]
    assert comparison["fingerprint_differences"]["box.threads"] == [3, 4]


@pytest.mark.engine
def test_compiled_code_workers_and_the_all_reduce_give_the_same_bits_in_the_box(docker):
    names = "compiled block,data loader,all-reduce"
    done = docker.reprobox("selftest", "--engine", "docker", "--repeat", "2", "--json", "--cases", names)
    found = {case["name"]: case["verdict"] for case in json.loads(done.stdout)["cases"]}
    assert found == dict.fromkeys(names.split(","), "same")


@pytest.mark.local
def test_a_test_that_fails_saves_nothing_and_says_so(local, tmp_path):
    local.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done = local.reprobox(
        "selftest", "--engine", "local", "--cases", "gather,gathre", "--save", "none.json", check=False
    )
    assert done.returncode == 1
    assert "self-test: there is no case 'gathre'" in done.stderr
    assert "nothing is written to none.json" in done.stderr
    assert not (tmp_path / "none.json").exists()
