"""The image entered by a way that skips its entrypoint, as CI jobs do: the recipe holds, or what does not hold is said."""

from __future__ import annotations

import contextlib
import subprocess
import uuid

import pytest
from support.programs import DRAWS
from support.without_entrypoint import EMBEDDED, THREAD, TRACED, kept_alive

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def job(docker_client, image, tmp_path_factory):
    """A container as GitHub keeps it for a job: another entrypoint, and each step comes in by ``docker exec``."""
    folder = tmp_path_factory.mktemp("job")
    folder.chmod(0o755)
    (folder / "draw.py").write_text(DRAWS)
    with kept_alive(docker_client, image, folder) as step:
        yield step


@pytest.fixture(scope="module")
def wanted(docker_client, image):
    """What the entrypoint's way gives, by seed."""

    def through_the_entrypoint(seed):
        words = [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "-e",
            f"REPROBOX_SEED={seed}",
            "-e",
            "REPROBOX_SELFTEST=off",
        ]
        done = subprocess.run([*words, image, "python", "-c", DRAWS], capture_output=True, text=True, check=True)
        return done.stdout

    drawn = {seed: through_the_entrypoint(seed) for seed in (7, 8)}
    assert drawn[7] != drawn[8]
    return drawn


WAYS = {
    "a script": "python draw.py",
    "a script on stdin": "python - <draw.py",
    "stdin without a name": "python <draw.py",
    "-c": 'python -c "$(cat draw.py)"',
    "a module": "python -m draw",
    "options": "python -B -u -X utf8 draw.py",
    "the system's Python by its path": "/opt/venv/bin/python3 draw.py",
    "a first line": "cp draw.py /tmp/run; sed -i '1i #!/opt/venv/bin/python' /tmp/run; chmod +x /tmp/run; /tmp/run",
    "a virtual environment": "python -m venv --without-pip --system-site-packages /tmp/v$$ && PYTHONPATH=/opt/venv/lib/python3.11/site-packages /tmp/v$$/bin/python draw.py",
    "an inherited descriptor": "exec 5<draw.py; python -c 'import os; exec(os.fdopen(5).read())'",
    "the program by a descriptor": "exec 5<draw.py; python /dev/fd/5",
    "a child": 'python -c \'import subprocess; subprocess.run(["python", "draw.py"])\'',
    "a child without an environment": "python -c 'import subprocess, sys; subprocess.run([sys.executable, \"draw.py\"], env={})'",
    "a grandchild without an environment": "env -i $(command -v python) -c 'import subprocess, sys; subprocess.run([sys.executable, \"draw.py\"], env={})'",
    "numpy's threads set by the variables": 'python -c \'import os; assert os.environ["OMP_NUM_THREADS"] == "4"; exec(open("draw.py").read())\'',
}


@pytest.mark.parametrize("way", list(WAYS))
def test_python_is_seeded_however_it_is_started_in_a_job(job, wanted, way):
    assert job(f"bash -c {quoted(WAYS[way])}", "REPROBOX_SEED=7").stdout == wanted[7]


TWINS = pytest.mark.parametrize("way", ["a script", "a child without an environment"])


@TWINS
def test_another_seed_draws_other_numbers(job, wanted, way):
    assert job(f"bash -c {quoted(WAYS[way])}", "REPROBOX_SEED=8").stdout == wanted[8]


@TWINS
def test_with_the_profile_off_nothing_is_seeded_and_nothing_said(job, wanted, way):
    done = [job(f"bash -c {quoted(WAYS[way])}", "REPROBOX_SEED=7", "REPROBOX_PROFILE=off") for _ in range(2)]
    assert len({wanted[7], *(each.stdout for each in done)}) == 3
    assert {each.stderr for each in done} == {""}


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("user", ["0:0", "1000:1000", "4321:4321"])
def test_every_user_of_a_job_is_seeded(job, wanted, user):
    assert job("python draw.py", "REPROBOX_SEED=7", user=user).stdout == wanted[7]


def test_workers_that_are_spawned_or_served_by_a_fork_server_are_seeded(job):
    program = """
import multiprocessing, random
def draw(_):
    import os
    return random.random(), list({"a", "b", "c", "d"}), "_REPROBOX_SAY" in os.environ
if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(draw, [0]))
"""
    first = job("cat >/tmp/w.py; python /tmp/w.py", "REPROBOX_SEED=7", stdin=program).stdout
    assert len(first.splitlines()) == 2
    assert job("python /tmp/w.py", "REPROBOX_SEED=7").stdout == first
    assert job("python /tmp/w.py", "REPROBOX_SEED=8").stdout != first


REFUSED = {
    "a seed that is none": (("REPROBOX_SEED=abc",), "give a whole number from 0 to 4294967295"),
    "a word that is none": (("REPROBOX_SEED=1", "REPROBOX_PROFILE=strickt"), "did you mean strict?"),
    "a name that is none": (("REPROBOX_SEDE=1",), "did you mean REPROBOX_SEED?"),
    "a knob against the profile": (("REPROBOX_SEED=1", "NCCL_NVLS_ENABLE=1"), "NCCL_NVLS_ENABLE=1 breaks determinism"),
}


@pytest.mark.parametrize("python", ["python", "python -I", "python -S"])
@pytest.mark.parametrize("case", list(REFUSED))
def test_a_bad_value_stops_python_before_the_program(job, case, python):
    variables, sentence = REFUSED[case]
    done = job(f"{python} -c 'print(1)'", *variables, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


# --- said once -------------------------------------------------------------------------------------------------------

UNSEEDED = "reprobox: nothing is seeded; set REPROBOX_SEED"
TREE = """
import subprocess, sys
{first}
children = [subprocess.Popen([sys.executable, "-c", "import torch"]) for _ in range(2)]
sys.exit(any([child.wait() for child in children]))
"""


@pytest.mark.parametrize("first", ["", "import torch"], ids=["its children alone", "its first process too"])
@pytest.mark.parametrize(
    ("variables", "sentence"), [((), UNSEEDED), (("REPROBOX_SEED=7",), "reprobox: seed 7, profile strict, 4 threads")]
)
def test_a_tree_of_processes_that_imports_torch_says_once_what_is_in_force(job, variables, sentence, first):
    done = job("python -", *variables, stdin=TREE.format(first=first))
    assert done.stderr.count(sentence) == done.stderr.count("\n") == 1
    assert job("ls -A /tmp").stdout.count(".reprobox-said") == 0


@pytest.mark.parametrize(
    ("program", "variables"),
    [
        ("import random", ()),
        ("import random", ("REPROBOX_SEED=7",)),
        ("import torch", ("REPROBOX_PROFILE=off",)),
        ("import torch", ("REPROBOX_QUIET=on",)),
        ("import torch", ("REPROBOX_SEED=7", "REPROBOX_QUIET=on")),
    ],
)
def test_nothing_is_said_without_torch_or_where_it_is_silenced(job, program, variables):
    assert job(f"python -c '{program}'", *variables).stderr == ""


def test_a_knob_of_the_callers_stays_and_is_said(job):
    program = 'import os, torch; print(os.environ["OMP_NUM_THREADS"])'
    done = job(f"python -c {quoted(program)}", "REPROBOX_SEED=7", "OMP_NUM_THREADS=2")
    assert done.stdout == "2\n"
    assert "reprobox: OMP_NUM_THREADS=2 is yours and stays; the recipe would set 4\n" in done.stderr


def test_what_the_way_in_leaves_is_named_as_ours(job):
    program = "import os, sys, torch; print(sorted(n for n in os.environ if n.startswith('_REPROBOX')), 'reprobox' in sys.modules)"
    assert job(f'python -c "{program}"', "REPROBOX_SEED=7").stdout == "['_REPROBOX_RECIPE', '_REPROBOX_SAY'] False\n"
    assert job(f'python -c "{program}"').stdout == "['_REPROBOX_SAY'] False\n"


def test_a_package_of_the_programs_that_is_called_reprobox_is_the_programs(job):
    made = "mkdir -p /tmp/own/reprobox; echo 'print(1, end=str())' >/tmp/own/reprobox/__init__.py"
    done = job(
        f"{made}; python -c 'import random, reprobox; print(reprobox.__file__)'",
        "REPROBOX_SEED=7",
        "PYTHONPATH=/tmp/own",
    )
    assert done.stdout == "1/tmp/own/reprobox/__init__.py\n"


# --- where the interpreter cannot be started again ------------------------------------------------------------------

DRAW = "import random, torch; print(random.random())"
GAPS = {
    "-E": (f"python -E -c {quoted(DRAW)}", "python -E and -I read no PYTHONHASHSEED"),
    "-I": (f"python -I -c {quoted(DRAW)}", "python -E and -I read no PYTHONHASHSEED"),
    "a debugger": (f"python -c {quoted(TRACED)} {quoted(DRAW)}", "a debugger holds Python"),
    "threads": (THREAD.format(program=quoted(DRAW)), "Python runs in one of several threads"),
    "another program": (EMBEDDED.format(program=quoted(DRAW)), "Python is part of another program"),
}


@pytest.mark.parametrize("case", list(GAPS))
def test_where_python_cannot_be_started_again_generators_are_seeded_and_the_gap_is_said(job, case):
    command, why = GAPS[case]
    done = job(command, "REPROBOX_SEED=7")
    assert done.stdout == job(f"python -c {quoted(DRAW)}", "REPROBOX_SEED=7").stdout
    assert f"reprobox: sets of strings have a free order in this process: {why}" in done.stderr


def test_python_is_started_once_more_and_only_where_its_hash_seed_is_another(job):
    count = "import os; os.write(2, b'x')"  # the user's own sitecustomize runs once in each interpreter
    made = f"mkdir -p /tmp/count; echo {quoted(count)} >/tmp/count/sitecustomize.py"
    for seed in (0, 7):
        done = job(f"{made}; python -c 'print(1)'", f"REPROBOX_SEED={seed}", "PYTHONPATH=/tmp/count")
        assert (done.stdout, done.stderr) == ("1\n", "x")
    children = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getppid())']); import os; print(os.getpid())"
    above, own = job(f'exec python -c "{children}"', "REPROBOX_SEED=7").stdout.split()
    assert above == own


# --- other ways in ---------------------------------------------------------------------------------------------------


def test_another_entrypoint_of_docker_run_is_seeded(image, wanted):
    words = ["docker", "run", "--rm", "--network=none", "-e", "REPROBOX_SEED=7", "--entrypoint", "python", image]
    done = subprocess.run([*words, "-c", DRAWS], capture_output=True, text=True, check=True)
    assert done.stdout == wanted[7]


def test_a_seed_that_is_given_to_docker_exec_counts_where_another_was_given_at_the_start(image, wanted):
    name = f"reprobox-test-{uuid.uuid4().hex[:12]}"
    begun = ["docker", "run", "-d", "--rm", "--network=none", "--name", name, "-e", "REPROBOX_SEED=8"]
    subprocess.run([*begun, "-e", "REPROBOX_SELFTEST=off", image, "sleep", "60"], check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["docker", "rm", "-f", name], capture_output=True)
        inside = ["docker", "exec"]

        def draws(*flags):
            words = [*inside, *flags, name, "python", "-c", DRAWS]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        assert draws() == wanted[8]
        assert draws("-u", "0") == wanted[8]
        assert draws("-e", "REPROBOX_SEED=7") == wanted[7]
