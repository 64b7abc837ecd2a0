"""The receipt: what a program did to its recipe, each with the line that did it, and nothing that did not happen."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.local


def receipts(local):
    return [json.loads(path.read_text()) for path in sorted(local.runs()[-1].glob("receipt-*.json"))]


def only_receipt(local):
    (receipt,) = receipts(local)
    return receipt


def last_line(done):
    return next(line for line in done.stderr.splitlines()[::-1] if line.startswith("reprobox: receipt: "))


EVERYTHING = """\
import random, sys
import numpy as np, torch
random.seed(1)  # line 3
np.random.seed(seed=2)
torch.manual_seed(1337)  # line 5
torch.cuda.manual_seed_all(3)
torch.use_deterministic_algorithms(False)  # line 7
torch.use_deterministic_algorithms(False)
torch.backends.cudnn.benchmark = True  # line 9
torch.backends.cudnn.deterministic = False
torch.utils.deterministic.fill_uninitialized_memory = False  # line 11
torch.set_num_threads(3)
torch.set_float32_matmul_precision("high")  # line 13
np.random.default_rng()
np.random.RandomState()  # line 15
np.random.SeedSequence()
random.Random()  # line 17
torch.Generator().seed()
random.seed()  # line 19
np.random.seed()
torch.seed()  # line 21
torch.cuda.seed_all()
# what is reproducible already is not listed
random.Random(5), np.random.default_rng(5), np.random.RandomState(5), torch.Generator().manual_seed(5)
random.random(), np.random.rand(), torch.rand(1)
torch.backends.cudnn.deterministic = False
with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
    pass
"""


@pytest.mark.torch
def test_a_program_that_reseeds_and_turns_flags_back_gets_a_receipt_with_exactly_those_lines(local):
    local.write("train.py", EVERYTHING)
    done = local.run("python", "train.py")
    receipt = only_receipt(local)
    what = {"reseed": "generator", "unseeded": "generator", "flag": "flag"}
    # Turning a flag back imports parts of torch that make generators of their own; those are listed as a library's.
    listed = [e for e in receipt["events"] if e.get("origin") != "library"]
    events = {(e["kind"], e[what.get(e["kind"], "kind")], e.get("file"), e.get("line")) for e in listed}
    assert events == {
        (kind, name, "train.py", line)
        for kind, name, line in (
            ("reseed", "random", 3),
            ("reseed", "numpy", 4),
            ("reseed", "torch", 5),
            ("reseed", "torch", 6),
            ("flag", "deterministic_algorithms", 7),
            ("flag", "cudnn.benchmark", 9),
            ("flag", "cudnn.deterministic", 10),
            ("flag", "fill_uninitialized_memory", 11),
            ("flag", "num_threads", 12),
            ("flag", "float32_matmul_precision", 13),
            # The same switch by its older name.
            ("flag", "cuda.matmul.allow_tf32", 13),
            ("unseeded", "numpy.random", 14),
            ("unseeded", "numpy.random", 15),
            ("unseeded", "numpy.random", 16),
            ("unseeded", "random.Random", 17),
            ("unseeded", "torch.Generator.seed()", 18),
            ("unseeded", "random (reset without a seed)", 19),
            ("unseeded", "numpy (reset without a seed)", 20),
            ("unseeded", "torch.seed()", 21),
            ("unseeded", "torch.cuda.seed()", 22),
        )
    }
    assert (receipt["flags"]["start"]["num_threads"], receipt["flags"]["exit"]["num_threads"]) == (4, 3)
    assert {e["value"] for e in receipt["events"] if e["kind"] == "reseed"} == {"1", "2", "1337", "3"}
    line = last_line(done)
    assert "1 process reseeded by train.py:3 (random, 1) and 3 more; " in line
    assert "unseeded generators: numpy.random at train.py:14 and " in line
    assert line.endswith("; nothing escaped")


@pytest.mark.torch
def test_a_program_that_changes_nothing_gets_an_empty_receipt(local):
    done = local.run("python", "-c", "import random, numpy, torch; random.random(), numpy.random.rand(), torch.rand(1)")
    receipt = only_receipt(local)
    assert receipt["events"] == []
    assert receipt["schema"] == "reprobox.receipt/1"
    assert {s["generator"]: s["seed"] for s in receipt["seeds"]} == {"random": 42, "numpy": 42, "torch": 42}
    assert receipt["hash"]["in_force"] is True
    assert receipt["threads"] == 4
    assert receipt["complete"] is True
    assert receipt["flags"]["start"] == receipt["flags"]["exit"]
    assert last_line(done) == "reprobox: receipt: 1 process seeded, nothing changed; nothing escaped"


NONDETERMINISTIC = """\
import torch
def scatter():
    return torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))  # line 3
scatter()
scatter()
"""


@pytest.mark.torch
def test_an_op_that_warned_is_listed_with_its_line(local):
    local.write("op.py", NONDETERMINISTIC)
    done = local.run("python", "op.py", flags=("--seed", "42", "--profile", "warn"))
    (event,) = only_receipt(local)["events"]
    assert (event["kind"], event["op"], event["file"], event["line"]) == ("nondeterministic", "put_", "op.py", 3)
    assert "1 op without a deterministic kernel: put_ at op.py:3; nothing escaped" in last_line(done)


@pytest.mark.torch
def test_an_op_refused_under_strict_is_named_with_its_line_and_a_remedy(local):
    local.write("op.py", NONDETERMINISTIC)
    done = local.run("python", "op.py", check=False)
    assert done.returncode == 1
    assert "RuntimeError: put_ does not have a deterministic implementation" in done.stderr
    said = next(line for line in done.stderr.splitlines() if line.startswith("reprobox: put_"))
    assert said.startswith("reprobox: put_ at op.py:3 has no deterministic implementation here")
    assert "--profile warn" in said
    (event,) = only_receipt(local)["events"]
    assert (event["kind"], event["op"], event["file"], event["line"]) == ("nondeterministic", "put_", "op.py", 3)


@pytest.mark.torch
def test_another_error_of_the_program_gets_no_line_of_ours(local):
    done = local.run("python", "-c", "import torch; raise RuntimeError('mine')", check=False)
    assert [x for x in done.stderr.splitlines() if x.startswith("reprobox: ")][-1] == last_line(done)
    assert only_receipt(local)["events"] == []


HARD_CODED = """\
import random
import numpy as np, torch
random.seed(1337); np.random.seed(1337); torch.manual_seed(1337)
print(random.random(), np.random.rand(), torch.rand(1).item())
random.seed(1338)
print(random.random())
"""


@pytest.mark.torch
def test_force_seed_folds_a_hard_coded_seed_into_the_recipes_and_says_so(local):
    local.write("train.py", HARD_CODED)

    def draws(*flags):
        done = local.run("python", "train.py", flags=flags)
        return done.stdout.split(), last_line(done)

    first, line = draws("--seed", "42", "--force-seed")
    assert "reseeded by train.py:3 (random, 1337 folded into " in line
    assert draws("--seed", "42", "--force-seed")[0] == first
    assert not set(draws("--seed", "43", "--force-seed")[0]) & set(first)
    assert len(set(first)) == 4, "another seed of the program's is another stream"
    own, line = draws("--seed", "42")
    assert draws("--seed", "43")[0] == own, "without the flag the program's own seed wins"
    assert "reseeded by train.py:3 (random, 1337) and " in line
    assert not set(own) & set(first)


@pytest.mark.torch
def test_the_generators_states_at_the_end_are_the_same_in_two_runs_and_differ_after_one_draw_more(local):
    program = """
import random, sys, numpy, torch
for name, draw in (("random", random.random), ("numpy", numpy.random.rand), ("torch", lambda: torch.rand(1))):
    draw(), name in sys.argv and draw()
"""

    def digests(*more):
        local.run("python", "-c", program, *more)
        return local.manifest()["receipt"]["generators"]

    first = digests()
    assert first.keys() == {"random", "numpy", "torch"}
    assert digests() == first
    assert all(len(digest) == 64 for digest in first.values())
    more = digests("random", "numpy", "torch")
    assert all(more[name] != first[name] for name in first)


def test_each_process_of_a_run_has_a_receipt_of_its_own(local):
    program = "import os, random, subprocess; subprocess.run(['python', '-c', 'import random; random.seed(3)']); os.fork() or os._exit(0); os.wait()"
    done = local.run("python", "-c", program)
    mine = receipts(local)
    assert len(mine) == len({r["pid"] for r in mine}) == 3
    assert sorted(r["lineage"] for r in mine) == ["", "", "f0"]
    assert "1 process reseeded by <string>:1 (random, 3)" in last_line(done)


def test_the_same_line_in_a_loop_is_one_event_with_a_count(local):
    local.run("python", "-c", "import random\nfor _ in range(7): random.Random()")
    (event,) = only_receipt(local)["events"]
    assert (event["line"], event["count"]) == (2, 7)


def test_a_library_that_makes_an_unseeded_generator_is_in_the_receipt_and_not_in_the_line(local):
    local.write("site-packages/theirs.py", "import random\ndraw = random.Random().random()\n")
    program = "import sys; sys.path.insert(0, 'site-packages'); import theirs; print(theirs.draw)"
    done = local.run("python", "-c", program)
    assert local.run("python", "-c", program).stdout == done.stdout
    (event,) = only_receipt(local)["events"]
    assert (event["kind"], event["origin"], event["line"]) == ("unseeded", "library", 2)
    assert last_line(done).endswith("receipt: 1 process seeded, nothing changed; nothing escaped")


def test_a_failure_before_the_first_draw_is_in_the_receipt(local):
    program = "import _reprobox_hook as h; h.recipe['seed'] = 'broken'; import random; print('went on')"
    done = local.run("python", "-c", program)
    assert done.stdout == "went on\n"
    (event,) = only_receipt(local)["events"]
    assert event["kind"] == "failure"
    assert "random is not seeded in process" in event["message"]
    assert last_line(done).endswith("receipt: 1 failure inside the hook")


USE_EVERY_WRAPPER = """\
import _reprobox_hook as hook
import concurrent.futures, multiprocessing, os, random, subprocess, warnings
import numpy, torch
def broken(*arguments, **options):
    raise ZeroDivisionError("injected")
hook.load({module!r}).{function} = broken
random.seed(1); first = random.random(); random.seed(1); assert random.random() == first
random.seed(); random.Random().random(); random.SystemRandom().random(); os.urandom(1)
numpy.random.seed(1); numpy.random.seed(); numpy.random.default_rng(); numpy.random.RandomState()
torch.manual_seed(1); torch.seed(); torch.cuda.seed_all(); torch.Generator().seed()
torch.set_num_threads(2); assert torch.get_num_threads() == 2
torch.backends.cudnn.benchmark = True; assert torch.backends.cudnn.benchmark
torch.utils.deterministic.fill_uninitialized_memory = False
os.environ["WORLD_SIZE"] = "2"
torch.utils.data.random_split([1, 2], [1, 1]); torch.utils.data.RandomSampler([1])
warnings.warn("put_ does not have a deterministic implementation")
subprocess.run(["python", "-c", "pass"], check=True)
if os.fork() == 0:
    print("child", flush=True)
    os._exit(0)
os.wait()
with multiprocessing.Pool(2) as pool:
    print(sorted(pool.map(abs, [1, -2])))
with concurrent.futures.ProcessPoolExecutor(2) as pool:
    print(list(pool.map(abs, [1, -2])))
"""
FAULTS = (
    "receipt.caller",
    "receipt.note",
    "receipt.write",
    "receipt.start",
    "watch.fresh_bits",
    "watch_flags.flags",
    "seeding.derive",
)


@pytest.mark.torch
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_inside_the_hook_at_any_moment_never_breaks_the_program_and_is_said(local, fault):
    module, _, function = fault.partition(".")
    local.write("use.py", USE_EVERY_WRAPPER.format(module=module, function=function))
    done = local.run("python", "use.py")
    assert done.stdout == "child\n[1, 2]\n[1, 2]\n"
    assert "ZeroDivisionError: injected" in done.stderr
    if fault in ("receipt.caller", "watch.fresh_bits", "watch_flags.flags", "seeding.derive"):
        assert local.manifest()["receipt"]["events"]["failure"]
        assert "inside the hook" in last_line(done)


def test_values_that_are_no_json_leave_a_whole_receipt(local):
    program = """
import random, numpy, subprocess
class Unspeakable(int):
    def __repr__(self):
        raise ValueError("no words")
for seed in (float("nan"), float("inf"), numpy.float64(1.5), "\\u2603", b"\\xff", Unspeakable(5)):
    random.seed(seed)
numpy.random.seed(numpy.int64(2))
subprocess.run(["python", "-c", "pass", "\\udcff"])
print("went on", random.random())
"""
    assert local.run("python", "-c", program).stdout == "went on 0.6229016948897019\n", "random.seed(5) was done"
    (main,) = (receipt for receipt in receipts(local) if receipt["children"])
    kinds = [event["kind"] for event in main["events"]]
    assert (kinds.count("reseed"), kinds.count("failure")) == (6, 1)


CHILD = (
    "import os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import random'], env={{**os.environ, {given}}})"
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("'OMP_NUM_THREADS': '1'", "OMP_NUM_THREADS is 1 where the recipe has 4"),
        ("'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '2'", "OMP_NUM_THREADS is 1 where the recipe has 4 and 1 more"),
        ("'PYTHONHASHSEED': '5'", "PYTHONHASHSEED is 5 where the recipe has 42"),
    ],
)
def test_a_knob_that_a_child_finds_otherwise_is_named_and_it_is_not_said_that_nothing_escaped(local, given, words):
    assert last_line(local.run("python", "-c", CHILD.format(given=given))) == f"reprobox: receipt: {words}"


def test_a_knob_of_the_callers_own_is_as_the_recipe_has_it(local):
    done = local.run("python", "-c", "import random", environment={"OMP_NUM_THREADS": "2"})
    assert last_line(done) == "reprobox: receipt: 1 process seeded, nothing changed; nothing escaped"
