"""The recipe: parsed from and rendered to environment variables, and the knob table behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reprobox.errors import RecipeError
from reprobox.knobs import IMAGE_ENVIRONMENT, KNOBS, environment_of
from reprobox.recipe import (
    MAX_SEED,
    RANK_VARIABLES,
    VARIABLES,
    BoxSettings,
    Profile,
    RankSeeds,
    Recipe,
    SelfTest,
    draw_seed,
    parse_seed,
    world_size,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("text", ["-1", str(2**32), "abc", "", "1.0", "0x10", " 7", "٧", "1e3", "99999999999999999999"])
def test_a_bad_seed_is_refused_with_the_allowed_range(text):
    with pytest.raises(RecipeError) as caught:
        BoxSettings.parse({"REPROBOX_SEED": text})
    assert "REPROBOX_SEED" in str(caught.value)
    assert f"0 to {MAX_SEED}" in str(caught.value)


@pytest.mark.parametrize("seed", [0, 1, 42, MAX_SEED])
def test_a_seed_in_range_is_read(seed):
    assert parse_seed(str(seed)) == seed


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("REPROBOX_PROFILE", "strickt", "strict"),
        ("REPROBOX_PROFILE", "Fast", "fast"),
        ("REPROBOX_RANK_SEEDS", "ofset", "offset"),
        ("REPROBOX_SELFTEST", "alway", "always"),
    ],
)
def test_a_bad_word_is_refused_with_the_allowed_words_and_the_nearest(name, value, near):
    with pytest.raises(RecipeError) as caught:
        BoxSettings.parse({name: value})
    assert f"did you mean {near}?" in str(caught.value)
    assert "choose one of" in str(caught.value)


@pytest.mark.parametrize("name", ["REPROBOX_FILL", "REPROBOX_PORTABLE", "REPROBOX_FORCE_SEED", "REPROBOX_QUIET"])
@pytest.mark.parametrize("value", ["", "yes", "1", "true", "ON"])
def test_a_switch_takes_on_and_off_alone(name, value):
    with pytest.raises(RecipeError, match="choose one of on, off"):
        BoxSettings.parse({name: value})


@pytest.mark.parametrize("value", ["0", "-4", "many", "", "1025"])
def test_a_bad_thread_count_is_refused(value):
    with pytest.raises(RecipeError, match="from 1 to 1024"):
        BoxSettings.parse({"REPROBOX_THREADS": value})


def test_an_unknown_variable_is_refused_with_a_near_miss():
    with pytest.raises(RecipeError, match=r"unknown variable REPROBOX_SEDE \(did you mean REPROBOX_SEED\?\)"):
        BoxSettings.parse({"REPROBOX_SEDE": "1"})


def test_variables_of_others_are_left_alone():
    assert BoxSettings.parse({"PATH": "/bin", "XREPROBOX_SEED": "no"}).recipe == Recipe()


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("seed", [None, 7])
def test_a_recipe_survives_the_trip_through_the_environment(profile, seed):
    recipe = Recipe(
        seed=seed,
        profile=profile,
        rank_seeds=RankSeeds.SAME,
        threads=3,
        fill=False,
        portable=True,
        force_seed=True,
    )
    assert BoxSettings.parse(recipe.to_variables()).recipe == recipe


def test_everything_else_the_box_reads():
    settings = BoxSettings.parse({"REPROBOX_QUIET": "on", "REPROBOX_SELFTEST": "off", "REPROBOX_RUN_DIR": "/run/x"})
    assert (settings.quiet, settings.selftest, settings.run_dir) == (True, SelfTest.OFF, "/run/x")


def test_a_recipe_renders_only_known_variables():
    assert set(Recipe(seed=1).to_variables()) < set(VARIABLES)


@pytest.mark.parametrize(
    ("mode", "seed", "rank", "expected"),
    [
        (RankSeeds.OFFSET, 42, 0, 42),
        (RankSeeds.OFFSET, 42, 3, 45),
        (RankSeeds.OFFSET, MAX_SEED, 1, 0),
        (RankSeeds.SAME, 42, 3, 42),
    ],
)
def test_the_seed_of_a_rank(mode, seed, rank, expected):
    assert Recipe(seed=seed, rank_seeds=mode).seed_for(rank) == expected


def test_a_recipe_without_a_seed_has_no_rank_seed():
    with pytest.raises(RecipeError, match="no seed yet"):
        Recipe().seed_for(0)


def test_two_drawn_seeds_differ():
    assert len({draw_seed() for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("environment", "size"),
    [({}, 1), ({"WORLD_SIZE": "2"}, 2), ({"SLURM_NTASKS": "8"}, 8), ({"WORLD_SIZE": "x"}, 1)],
)
def test_the_world_size_a_launcher_announces(environment, size):
    assert world_size(environment) == size


def test_off_touches_nothing():
    assert environment_of(Recipe(seed=1, profile=Profile.OFF, portable=True)) == {}
    assert all(knob.value(Recipe(seed=1, profile=Profile.OFF)) is None for knob in KNOBS)


def test_fast_seeds_everything_and_constrains_no_algorithm():
    recipe = Recipe(seed=5, profile=Profile.FAST)
    values = {knob.name: knob.value(recipe) for knob in KNOBS}
    assert {values[n] for n in ("PYTHONHASHSEED", "random.seed", "numpy.random.seed", "torch.manual_seed")} == {"5"}
    assert values["CUBLAS_WORKSPACE_CONFIG"] is None
    assert values["torch.use_deterministic_algorithms"] is None


def test_portable_pins_the_instruction_set_and_nothing_else():
    plain, portable = environment_of(Recipe(seed=1)), environment_of(Recipe(seed=1, portable=True))
    assert portable.keys() - plain.keys() == {"ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"}


@pytest.mark.parametrize("knob", KNOBS, ids=lambda k: k.name)
def test_every_knob_says_why_and_where_from(knob):
    assert len(knob.why) > 20
    assert knob.source
    assert set(knob.values) == set(Profile)
    assert (knob.allowed is None) == (knob.allowed_text == "")


@pytest.mark.parametrize("knob", [k for k in KNOBS if k.allowed], ids=lambda k: k.name)
def test_the_recipes_own_value_is_one_that_keeps_determinism(knob):
    assert not knob.breaks_determinism(knob.value(Recipe(seed=42)))
    assert knob.breaks_determinism("random nonsense")


def test_the_image_carries_exactly_the_default_recipe():
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, value in IMAGE_ENVIRONMENT.items():
        assert re.search(rf"\b{name}={re.escape(value)}(\s|$)", dockerfile), f"Dockerfile lacks {name}={value}"


def test_the_rank_variables_are_words_the_hook_can_split():
    assert all(re.fullmatch(r"[A-Z0-9_]+", name) for name in RANK_VARIABLES)
