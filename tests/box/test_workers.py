"""Forks and workers: each has a stream of its own that is the same every run and follows from its parent's."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.local

FORKS = """\
import os, random, sys
import numpy

def draw(who):
    print(who, random.random(), numpy.random.rand(), flush=True)

def fork(body):
    if os.fork() == 0:
        body()
        os._exit(0)
    os.wait()

if "seeded" in sys.argv:
    random.seed(7), numpy.random.seed(7)
draw("parent")
if "forks" in sys.argv:
    fork(lambda: draw("child"))
    fork(lambda: (draw("child"), fork(lambda: draw("grandchild"))))
draw("parent")
"""


def draws(local, *arguments, seed="42"):
    local.write("forks.py", FORKS)
    return local.run("python", "forks.py", *arguments, flags=("--seed", seed)).stdout.splitlines()


def test_a_forked_childs_stream_is_its_own_and_the_same_every_run(local):
    first = draws(local, "forks")
    assert draws(local, "forks") == first
    assert len(first) == len(set(first)) == 5
    for generator in list(zip(*(line.split() for line in first), strict=True))[1:]:
        assert len(set(generator)) == len(generator)
    assert not set(draws(local, "forks", seed="43")) & set(first)
    without = {local.run("python", "forks.py", "forks", recipe=False).stdout for _ in range(3)}
    assert len(without) == 3


def test_forking_leaves_the_parents_stream_alone(local):
    parents = [line for line in draws(local, "forks") if line.startswith("parent")]
    assert parents == draws(local)


def test_a_program_that_seeded_itself_has_children_that_follow_from_its_own_seed(local):
    first = draws(local, "forks", "seeded")
    assert draws(local, "forks", "seeded", seed="43") == first
    assert draws(local, "forks") != first


def test_a_module_first_imported_in_a_child_is_seeded_as_the_childs(local):
    program = """
import multiprocessing, sys

def late(queue):
    import random, numpy
    queue.put((random.random(), numpy.random.rand()))

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        for _ in range(2):
            queue = context.SimpleQueue()
            worker = context.Process(target=late, args=(queue,))
            worker.start()
            print(queue.get())
            worker.join()
    import random, numpy
    print((random.random(), numpy.random.rand()))
"""
    local.write("late.py", program)
    first = local.run("python", "late.py").stdout
    assert local.run("python", "late.py").stdout == first
    lines = [eval(line) for line in first.splitlines()]
    assert [len({line[i] for line in lines[:2]}) for i in (0, 1)] == [2, 2], "two forked workers"
    for i in (0, 1):
        drawn = [line[i] for line in lines]
        assert len(set(drawn[2:4])) == len(set(drawn[4:6])) == 2
        assert drawn[6] not in drawn[:6]
    assert not set(local.run("python", "late.py", flags=("--seed", "43")).stdout.splitlines()) & set(first.splitlines())


def test_a_worker_that_is_killed_leaves_its_receipt_with_the_start_method(local):
    program = """
import multiprocessing, time

def endless(started):
    import random
    random.seed(5)
    started.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    worker = context.Process(target=endless, args=(started,))
    worker.start()
    started.wait(30)
    worker.kill()
    worker.join()
"""
    local.write("killed.py", program)
    done = local.run("python", "killed.py")
    assert "spawn" in local.manifest()["receipt"]["start_methods"]
    assert "1 process reseeded by killed.py:6 (random, 5); nothing escaped" in done.stderr


def test_the_workers_exit_code_and_exception_are_the_programs_own(local):
    program = """
import multiprocessing, sys

if __name__ == "__main__":
    for target, arguments in ((sys.exit, (3,)), (int, ("x",)), (int, ("1",))):
        worker = multiprocessing.Process(target=target, args=arguments)
        worker.start()
        worker.join()
        print(worker.exitcode)
"""
    local.write("codes.py", program)
    done = local.run("python", "codes.py")
    assert done.stdout == "3\n1\n0\n"
    assert "ValueError: invalid literal for int()" in done.stderr
