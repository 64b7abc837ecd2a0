"""The entrypoint's decisions, without executing anything."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest

from reprobox.box import entrypoint
from reprobox.box.environment import KNOB_WORD, RECIPE_VARIABLE, SITE, box_environment
from reprobox.box.hook import VARIABLE, words_of
from reprobox.errors import RecipeError
from reprobox.knobs import IMAGE_ENVIRONMENT
from reprobox.recipe import Profile, Recipe

STRICT = Recipe(seed=42)


@pytest.fixture(autouse=True)
def _no_self_test(monkeypatch):
    """It runs processes; tests/box and tests/acceptance have it."""
    monkeypatch.setenv("REPROBOX_SELFTEST", "off")


@pytest.fixture(autouse=True)
def _no_recipe_is_left(monkeypatch):
    """The image's entrypoint leaves the recipe in /tmp; here the children of other tests would find it."""
    monkeypatch.setattr(entrypoint, "_leave_recipe", lambda *_: None)


@pytest.fixture(autouse=True)
def _signals_are_put_back():
    """The entrypoint gives the command default signals, and here its process is pytest's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_knob_with_the_images_value_gets_the_recipes():
    environment, notes = box_environment({**IMAGE_ENVIRONMENT}, STRICT, IMAGE_ENVIRONMENT)
    assert environment["PYTHONHASHSEED"] == "42"
    assert notes == []


def test_a_knob_the_profile_does_not_want_is_removed_where_it_has_the_images_value():
    environment, _ = box_environment({**IMAGE_ENVIRONMENT}, Recipe(seed=1, profile=Profile.FAST), IMAGE_ENVIRONMENT)
    assert "CUBLAS_WORKSPACE_CONFIG" not in environment
    assert environment["OMP_NUM_THREADS"] == "4"


def test_off_removes_every_knob_of_the_image():
    environment, _ = box_environment({**IMAGE_ENVIRONMENT}, Recipe(profile=Profile.OFF), IMAGE_ENVIRONMENT)
    assert not environment.keys() & IMAGE_ENVIRONMENT.keys()


def test_a_callers_own_value_wins_and_is_told():
    environment, notes = box_environment({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, STRICT, IMAGE_ENVIRONMENT)
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert notes == ["CUBLAS_WORKSPACE_CONFIG=:16:8 is yours and stays; the recipe would set :4096:8"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("PYTHONHASHSEED", "random"), ("CUBLAS_WORKSPACE_CONFIG", ":0:0"), ("OMP_DYNAMIC", "TRUE"), ("NCCL_ALGO", "NVLS")],
)
def test_under_strict_a_value_that_breaks_determinism_is_refused_with_the_allowed_ones(name, value):
    with pytest.raises(RecipeError, match=f"{name}={value} breaks determinism.*give "):
        box_environment({name: value}, STRICT, IMAGE_ENVIRONMENT)
    environment, notes = box_environment({name: value}, Recipe(seed=42, profile=Profile.WARN), IMAGE_ENVIRONMENT)
    assert environment[name] == value
    assert len(notes) == 1


def test_without_an_image_a_value_equal_to_the_images_is_the_callers():
    environment, notes = box_environment({"PYTHONHASHSEED": "0"}, STRICT, {})
    assert environment["PYTHONHASHSEED"] == "0"
    assert len(notes) == 1


def test_the_hook_reads_what_the_entrypoint_wrote():
    assert VARIABLE == RECIPE_VARIABLE
    recipe = Recipe(seed=42, profile=Profile.WARN, fill=False)
    environment, _ = box_environment({}, recipe, {})
    words = words_of(environment[VARIABLE])
    assert (words["seed"], words["profile"], words["fill"], words["threads"]) == ("42", "warn", "off", "4")
    assert words["ranks"].startswith("RANK,SLURM_PROCID")
    assert words[KNOB_WORD + "OMP_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "4"


def test_a_knob_whose_value_is_not_one_word_is_left_out_of_the_recipes_words():
    environment, _ = box_environment({"NCCL_ALGO": "ring; tree"}, Recipe(seed=1, profile=Profile.WARN), {})
    assert KNOB_WORD + "NCCL_ALGO" not in words_of(environment[VARIABLE])


def test_the_hooks_folder_comes_first_and_once_on_the_users_path():
    once, _ = box_environment({"PYTHONPATH": "/mine"}, STRICT, {})
    twice, _ = box_environment(once, STRICT, {})
    assert once["PYTHONPATH"] == twice["PYTHONPATH"] == f"{SITE}:/mine"


def test_ranks_without_a_common_seed_are_refused(monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert entrypoint.main(["--", "true"]) == 125
    assert "give every rank the same REPROBOX_SEED" in capfd.readouterr().err


def test_no_command_is_refused(capfd):
    assert entrypoint.main([]) == 125
    assert "no command was given" in capfd.readouterr().err


def test_a_bad_value_stops_the_box_and_the_stage_says_refused(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("REPROBOX_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("REPROBOX_SEED", "abc")
    assert entrypoint.main(["true"]) == 125
    assert (tmp_path / "stage").read_text() == "refused\n"
    assert capfd.readouterr().err.startswith("reprobox: REPROBOX_SEED cannot be 'abc'; give")


def test_a_missing_working_directory_is_126(capfd):
    assert entrypoint.main(["--chdir=/no/such", "--", "true"]) == 126
    assert "/no/such cannot be entered (No such file or directory)" in capfd.readouterr().err


def test_a_run_folder_that_cannot_be_written_stops_the_box(monkeypatch, capfd):
    monkeypatch.setenv("REPROBOX_RUN_DIR", "/no/such")
    assert entrypoint.main(["true"]) == 125
    assert "REPROBOX_RUN_DIR" in capfd.readouterr().err


@pytest.mark.parametrize(("command", "code"), [("/no/such", 127), ("no-such-command", 127), ("/etc", 126), ("", 127)])
def test_a_command_that_cannot_be_executed(command, code, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("REPROBOX_RUN_DIR", str(tmp_path))
    assert entrypoint.main(["--", command]) == code
    assert (tmp_path / "stage").read_text() == "exec-failed\n"


def test_a_script_whose_interpreter_is_missing_is_told_apart_from_a_missing_script(capfd, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o755)
    assert entrypoint.main([str(script)]) == 127
    assert "names an interpreter" in capfd.readouterr().err


def is_locked(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_stage_is_locked_until_the_command_has_taken_over(monkeypatch, tmp_path):
    seen = []

    def executed(*_):
        seen.append(((tmp_path / "stage").read_text(), is_locked(tmp_path / "stage")))
        raise FileNotFoundError(2, "none")

    monkeypatch.setenv("REPROBOX_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(os, "execvpe", executed)
    assert entrypoint.main(["--", "true"]) == 127
    assert seen == [("exec\n", True)]
    assert (tmp_path / "stage").read_text() == "exec-failed\n"
