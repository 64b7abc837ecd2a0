"""Every way a Python process starts, in the real image and on this machine: the same bits twice, and what slips through is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from support.cli import Cli
from support.engine import built_image, connected_client, ran
from support.reach import (
    BOTH,
    CHILD,
    ENTROPY_LINES,
    ENTROPY_ROW,
    GROUP_ROW,
    KERNEL_ROW,
    LOADER_ROW,
    METHODS,
    PROCESS_ROWS,
    REACH,
    ROWS,
    UNSEEDED_LINES,
    UNSEEDED_ROW,
    Reach,
    placed,
)

MARKS = {"docker": pytest.mark.engine, "local": pytest.mark.local}


def on(*engines):
    return pytest.mark.parametrize("engine", [pytest.param(e, marks=MARKS[e]) for e in engines])


def rows(table):
    cases = [(engine, row) for row in table for engine in row.engines]
    return pytest.mark.parametrize(
        ("engine", "row"), [pytest.param(e, row, marks=MARKS[e], id=f"{row.name}, {e}") for e, row in cases]
    )


@pytest.fixture(scope="session")
def reach(tmp_path_factory):
    return Reach(tmp_path_factory)


@pytest.fixture(autouse=True)
def _box(engine):
    """The image, for a case that runs in it."""
    if engine == "docker":
        built_image(connected_client())


@pytest.fixture
def cli(tmp_path, engine):
    return Cli(tmp_path, engine)


# --- the same bits --------------------------------------------------------------------------------------------------

SEEDED_BY_ITSELF = "0.07630828937395717"
"""What ``GROUP_ROW`` draws after numpy.random.seed(7), under any seed of ours."""


@rows(ROWS)
def test_two_runs_of_a_row_give_the_same_bits_and_a_run_with_another_seed_or_without_the_recipe_does_not(
    reach, engine, row
):
    outcome = reach.outcome(row, engine)
    assert outcome.first
    assert outcome.again == outcome.first
    assert numbers(outcome.first)
    for twin in (outcome.other_seed, outcome.without):
        drawn = zip(numbers(outcome.first), numbers(twin), strict=True)
        assert {a for a, b in drawn if a == b} <= {SEEDED_BY_ITSELF}, "drawn outside the recipe"


def numbers(text):
    """Return every number that was drawn, and every hash: of a line that differs, one may still be the same."""
    return re.findall(r"\d+\.\d+|-?\d{9,}", text)


@rows(REACH)
def test_no_process_of_a_row_escapes(reach, engine, row):
    outcome = reach.outcome(row, engine)
    assert outcome.receipt["escaped"] == []
    assert outcome.receipt["processes"] >= 1
    whole = "hash-seed" not in outcome.receipt["events"]
    assert outcome.line.endswith("; nothing escaped") == whole


@on(*BOTH)
def test_a_notebook_draws_the_same_however_often_its_client_asks_for_the_kernel(reach, engine):
    impatient = replace(KERNEL_ROW, name="an impatient client", command=(*KERNEL_ROW.command[:-1], "3"))
    assert reach.outcome(impatient, engine).first == reach.outcome(KERNEL_ROW, engine).first


# --- ranks ----------------------------------------------------------------------------------------------------------


LAUNCHERS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JAX_PROCESS_ID", "PMI_RANK")


@on(*BOTH)
def test_each_launchers_rank_moves_the_generators_by_the_rank_and_leaves_the_hash_seed(cli):
    cli.write("draws.py", "import random, numpy; print(random.random(), numpy.random.rand(), hash('reprobox'))")
    script = "python draws.py; for name in {}; do env $name=3 python draws.py; done".format(" ".join(LAUNCHERS))

    def draws(*flags):
        lines = [line.split() for line in cli.run("sh", "-c", script, flags=flags).stdout.splitlines()]
        return [line[:2] for line in lines], {line[2] for line in lines}

    (base, *moved), hashes = draws("--seed", "42")
    (base_of_45, *_), _ = draws("--seed", "45")
    assert base_of_45 != base
    assert moved == [base_of_45] * len(LAUNCHERS)
    assert len(hashes) == 1
    assert draws("--seed", "42", "--rank-seeds", "same")[0] == [base] * (len(LAUNCHERS) + 1)


@on(*BOTH)
def test_a_rank_learned_from_its_process_group_moves_the_generators_that_the_program_has_not_seeded(reach, engine):
    outcome = reach.outcome(GROUP_ROW, engine)
    zero, one = (line.split()[2:] for line in outcome.first.splitlines()[:2])
    zero_next = outcome.other_seed.splitlines()[0].split()[2:]
    assert one[:2] == zero_next, "rank 1 under seed 42 draws what rank 0 draws under seed 43"
    assert one[:2] != zero
    assert one[2] == SEEDED_BY_ITSELF


@on("docker")
def test_the_same_seed_on_every_rank_is_kept_through_the_process_group(cli):
    cli.write("group.py", GROUP_ROW.files["group.py"])
    lines = cli.run("python", "group.py", flags=("--seed", "42", "--rank-seeds", "same")).stdout.splitlines()
    zero, one = (line.split()[2:] for line in lines[:2])
    assert zero == one[:2]
    assert lines[2] == "temporary names 2"


@on(*BOTH)
def test_temporary_names_of_two_ranks_differ(reach, engine):
    assert reach.outcome(GROUP_ROW, engine).first.splitlines()[-1] == "temporary names 2"


SPLITS = """\
import torch
from torch.utils.data import DataLoader, RandomSampler, random_split
data = list(range(10))
random_split(data, [5, 5])  # line 4
RandomSampler(data)
DataLoader(data, shuffle=True)
random_split(data, [5, 5], generator=torch.Generator().manual_seed(1))  # line 7
RandomSampler(data, generator=torch.Generator().manual_seed(1))
"""


@on(*BOTH)
def test_a_split_that_ranks_would_disagree_on_is_reported_under_offset_alone(cli):
    cli.write("splits.py", SPLITS)
    ranks = ("torchrun", "--nproc-per-node", "2", "splits.py")
    done = cli.run(*ranks)
    seen = cli.manifest()["receipt"]["events"]["split"]
    assert {(e["what"], e["file"], e["line"]) for e in seen} == {
        ("random_split", "splits.py", 4),
        ("RandomSampler", "splits.py", 5),
        ("RandomSampler", "splits.py", 6),
    }
    assert {e["processes"] for e in seen} == {2}
    assert "3 splits that ranks would disagree on: random_split at splits.py:4 and 2 more" in done.stderr
    for twin in (
        ("-e", "WORLD_SIZE=2", "-e", "RANK=0", "--rank-seeds", "same"),
        ("-e", "WORLD_SIZE=1", "-e", "RANK=0"),
    ):
        cli.run("python", "splits.py", flags=("--seed", "42", *twin))
        assert "split" not in cli.manifest()["receipt"]["events"]


# --- workers and forks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@on(*BOTH)
def test_every_worker_process_has_a_stream_of_its_own(reach, engine, method):
    drawn = [line.split()[1:] for line in reach.outcome(PROCESS_ROWS[method], engine).first.splitlines()]
    for generator in zip(*drawn, strict=True):
        assert len(set(generator)) == len(generator) >= 7


@pytest.mark.parametrize("method", METHODS)
@on(*BOTH)
def test_draws_inside_tasks_of_a_pool_with_several_workers_are_reported(reach, engine, method):
    outcome = reach.outcome(PROCESS_ROWS[method], engine)
    assert {e["pool"] for e in outcome.receipt["events"]["pool-draw"]} == {
        "multiprocessing.Pool",
        "ProcessPoolExecutor",
    }
    lines = {e["pool"]: (e["file"], e["line"], e["workers"]) for e in outcome.receipt["events"]["pool"]}
    assert lines == {"multiprocessing.Pool": ("p.py", 29, 2), "ProcessPoolExecutor": ("p.py", 32, 2)}
    assert "draws inside tasks of the multiprocessing.Pool of 2 at p.py:29 may move between workers" in outcome.line


QUIET_POOLS = """\
import concurrent.futures, multiprocessing, random
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        pool.map(abs, range(4))
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(4)))
    with multiprocessing.Pool(1) as pool:
        pool.map(random.uniform.__self__.getrandbits, [8, 8])
"""


@on(*BOTH)
def test_pools_whose_tasks_draw_nothing_or_that_have_one_worker_are_not_reported(cli):
    cli.write("quiet.py", QUIET_POOLS)
    assert "may move between workers" not in cli.run("python", "quiet.py").stderr


@pytest.mark.parametrize("method", METHODS)
@on(*BOTH)
def test_the_start_method_is_recorded(reach, engine, method):
    assert method in reach.outcome(PROCESS_ROWS[method], engine).receipt["start_methods"]


@on(*BOTH)
def test_loader_workers_draw_differently_per_worker_and_per_epoch(reach, engine):
    lines = [line.split() for line in reach.outcome(LOADER_ROW, engine).first.splitlines()]
    assert len(lines) == 16, "four loaders, two epochs, two workers"
    assert {line[4] for line in lines} == {"0", "1"}
    for loader in {tuple(line[:2]) for line in lines}:
        draws = [line[5:] for line in lines if tuple(line[:2]) == loader]
        for generator in zip(*draws, strict=True):
            assert len(set(generator)) == 4, loader


@on(*BOTH)
def test_the_start_methods_of_a_loaders_workers_are_recorded(reach, engine):
    assert set(METHODS) <= set(reach.outcome(LOADER_ROW, engine).receipt["start_methods"])


# --- unseeded generators, and entropy meant to be -------------------------------------------------------------------


@on(*BOTH)
def test_two_unseeded_generators_differ_and_each_is_listed_with_its_line(reach, engine):
    outcome = reach.outcome(UNSEEDED_ROW, engine)
    lines = outcome.first.splitlines()
    assert len(set(lines)) == len(lines) == len(UNSEEDED_LINES)
    seen = outcome.receipt["events"]["unseeded"]
    assert {(e["file"], e["line"]) for e in seen} == {("u.py", line) for line in UNSEEDED_LINES}
    assert f"{len(UNSEEDED_LINES)} unseeded generators: " in outcome.line


@on(*BOTH)
def test_real_entropy_stays_random_and_its_use_by_user_code_is_listed(reach, engine):
    outcome = reach.outcome(ENTROPY_ROW, engine)
    assert not set(outcome.first.splitlines()) & set(outcome.again.splitlines())
    seen = outcome.receipt["events"]["entropy"]
    assert {(e["file"], e["line"]) for e in seen} == {("e.py", line) for line in ENTROPY_LINES}, "and not tempfile's"
    assert outcome.receipt["events"].keys() == {"entropy"}


# --- known gaps: reported -------------------------------------------------------------------------------------------

RANDOM = "import random; print(random.random())"
ESCAPES = {
    "-S": ("python", "-S", "-c", RANDOM),
    "-I": ("python", "-I", "-c", RANDOM),
    "-E": ("python", "-E", "-c", RANDOM),
    "a child with -S": ("python", "-c", CHILD.format(options=["-S"], program=RANDOM, more="")),
    "a child in isolation": ("python", "-c", CHILD.format(options=["-I"], program=RANDOM, more="")),
    "a child with an empty environment": ("python", "-c", CHILD.format(options=[], program=RANDOM, more=", env={}")),
}


@on("local")
@pytest.mark.parametrize("how", list(ESCAPES))
def test_an_interpreter_of_this_machine_that_nothing_can_reach_is_reported_as_escaped(cli, how):
    done = cli.run(*ESCAPES[how])
    (escaped,) = cli.manifest()["receipt"]["escaped"]
    assert "python" in escaped["program"]
    assert f"; 1 process escaped ({escaped['program']})" in done.stderr
    assert cli.run(*ESCAPES[how]).stdout != done.stdout, "it is seeded after all, and the report is wrong"


@on("local")
@pytest.mark.parametrize("flag", ["-I", "-S"])
def test_a_foreign_interpreter_that_nothing_can_reach_is_reported_as_escaped(cli, flag):
    python = placed("BASE_PYTHON", "local")
    done = cli.run(python, flag, "-c", RANDOM)
    assert f"; 1 process escaped ({python} {flag} -c)" in done.stderr
    assert "nothing escaped" in cli.run(python, "-c", RANDOM).stderr


@on("docker")
@pytest.mark.parametrize("name", ["-I", "-E", "-I -S", "a child in isolation"])
def test_a_process_without_the_hash_seed_is_reported(reach, engine, name):
    row = next(row for row in REACH if row.name == name)
    outcome = reach.outcome(row, engine)
    assert sum(e["processes"] for e in outcome.receipt["events"]["hash-seed"]) == 1
    assert outcome.line.endswith("1 process without the hash seed"), "and not that nothing escaped"


@on("docker")
@pytest.mark.parametrize("name", ["python", "a child with an empty environment"])
def test_a_process_that_has_the_hash_seed_is_not_reported(reach, engine, name):
    outcome = reach.outcome(next(row for row in REACH if row.name == name), engine)
    assert outcome.receipt["events"].keys() <= {"entropy"}


@on("docker")
def test_a_child_with_an_empty_environment_is_seeded_in_the_image_alone(engine):
    program = CHILD.format(options=[], program=RANDOM, more=", env={}")
    client = connected_client()

    def run(**variables):
        return ran(client, built_image(client), ["python", "-c", program], environment=variables).decode()

    first = run(REPROBOX_SEED="42")
    assert re.fullmatch(r"0\.\d+\n", first)
    assert run(REPROBOX_SEED="42") == first
    assert run(REPROBOX_SEED="43") != first
    assert run(REPROBOX_PROFILE="off") != first
