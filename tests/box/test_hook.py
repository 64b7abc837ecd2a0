"""The hook: light, idempotent, polite to the user's own sitecustomize, and never fatal."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.local

MODULES = "import sys; print(sorted(sys.modules))"


def names(text):
    return set(eval(text))


def test_a_bare_interpreter_loads_nothing_but_the_hook(local):
    plain = names(local.run("python", "-c", MODULES, recipe=False).stdout)
    seeded = names(local.run("python", "-c", MODULES).stdout)
    assert seeded - plain == {"_reprobox_hook", "sitecustomize"}


def test_profile_off_watches_no_imports(local):
    program = "import sys; print([type(f).__name__ for f in sys.meta_path])"
    assert "_Finder" in local.run("python", "-c", program).stdout
    assert "_Finder" not in local.run("python", "-c", program, flags=("--profile", "off")).stdout


def test_the_users_own_sitecustomize_still_runs(local):
    local.write("mine/sitecustomize.py", "import os; os.environ['SEEN'] = __file__\n")
    program = "import os, random, sitecustomize; print(os.environ['SEEN'], sitecustomize.__file__, random.random())"
    done = local.run("python", "-c", program, environment={"PYTHONPATH": str(local.folder / "mine")})
    seen, module, draw = done.stdout.split()
    assert seen == module == str(local.folder / "mine" / "sitecustomize.py")
    assert draw == local.run("python", "-c", "import random; print(random.random())").stdout.strip()


def test_a_users_sitecustomize_that_imports_random_gets_it_seeded(local):
    local.write("mine/sitecustomize.py", "import random; print(random.random())\n")
    # Through -e, so that the command line's own interpreter does not run it as well.
    flags = ("--seed", "42", "-e", f"PYTHONPATH={local.folder / 'mine'}")
    first = local.run("python", "-c", "pass", flags=flags).stdout
    assert local.run("python", "-c", "pass", flags=flags).stdout == first


def test_a_target_imported_before_the_hook_is_seeded_all_the_same(local):
    # An explicit install stands for a .pth file that imported random before site came to sitecustomize.
    program = """
import random, sys
before = random.random()
import _reprobox_hook as hook
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "_Finder"]
hook.install()
print(before, random.random())
"""
    before, after = local.run("python", "-c", program).stdout.split()
    assert before == after, "installing again seeds again, to the same state"


def test_finding_a_spec_without_executing_it_changes_nothing(local):
    program = """
import importlib.util, random
importlib.util.find_spec("random"); importlib.util.find_spec("numpy.random")
first = random.random()
importlib.util.find_spec("random")
print(first, random.random())
"""
    first, second = local.run("python", "-c", program).stdout.split()
    assert first != second


@pytest.mark.parametrize("target", ["random", "torch"])
def test_a_failure_inside_the_hook_is_said_and_the_program_runs_on(local, target):
    program = f"import _reprobox_hook as h; h.recipe['seed'] = 'broken'; import {target}; print('went on')"
    done = local.run("python", "-c", program)
    assert done.stdout == "went on\n"
    assert f"reprobox: {target} is not seeded in process" in done.stderr


def test_a_recipe_variable_that_makes_no_sense_is_said_and_the_program_runs_on(local):
    done = local.run("env", "_REPROBOX_RECIPE=nonsense", "python", "-c", "print('went on')")
    assert done.stdout == "went on\n"
    assert "the recipe did not reach process" in done.stderr
