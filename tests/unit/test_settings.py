"""Settings: flag over environment over project file over default, each remembering where it came from."""

from __future__ import annotations

import pytest

from reprobox.engines import EngineName
from reprobox.errors import UsageError
from reprobox.recipe import Profile
from reprobox.settings import SETTINGS, Origin, Resolved, Settings
from reprobox.sizes import parse_size


def load(tmp_path, flags=None, environment=None):
    return Settings.load(flags or {}, tmp_path, environment or {})


def test_the_strongest_source_wins_and_is_remembered(tmp_path):
    (tmp_path / "reprobox.toml").write_text("seed = 3\nengine = 'local'\nfill = false\n")
    settings = load(tmp_path, {"seed": "1"}, {"REPROBOX_SEED": "2", "REPROBOX_PROFILE": "warn"})
    assert settings.resolve("seed") == Resolved(value=1, origin=Origin.FLAG)
    assert settings.resolve("profile") == Resolved(value=Profile.WARN, origin=Origin.ENVIRONMENT)
    assert settings.resolve("engine") == Resolved(value=EngineName.LOCAL, origin=Origin.PROJECT)
    assert settings.resolve("fill") == Resolved(value=False, origin=Origin.PROJECT)
    assert settings.resolve("threads") == Resolved(value=4, origin=Origin.DEFAULT)


def test_a_pyproject_table_is_read(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.reprobox]\nrank-seeds = 'same'\n")
    assert load(tmp_path).resolve("rank_seeds").origin is Origin.PROJECT


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [({"seed": "abc"}, {}, "--seed"), ({}, {"REPROBOX_SEED": "-1"}, "REPROBOX_SEED"), ({"fill": "x"}, {}, "--fill")],
)
def test_a_bad_value_is_named_by_where_it_was_given(flags, environment, named, tmp_path):
    with pytest.raises(UsageError, match=named) as caught:
        load(tmp_path, flags, environment)
    assert caught.value.exit_code == 2


def test_an_unknown_key_is_refused_with_a_near_miss(tmp_path):
    (tmp_path / "reprobox.toml").write_text("sead = 3\n")
    with pytest.raises(UsageError, match=r"'sead' \(did you mean seed\?\)"):
        load(tmp_path)


def test_an_unknown_variable_is_refused_with_a_near_miss(tmp_path):
    with pytest.raises(UsageError, match=r"REPROBOX_SEDE \(did you mean REPROBOX_SEED\?\)"):
        load(tmp_path, environment={"REPROBOX_SEDE": "1"})


def test_a_broken_project_file_is_refused(tmp_path):
    (tmp_path / "reprobox.toml").write_text("seed = = 3\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        load(tmp_path)


def test_every_setting_has_a_help_and_a_variable_of_its_own():
    assert all(setting.help for setting in SETTINGS)
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64m", 64 << 20),
        ("8G", 8 << 30),
        ("1gb", 1 << 30),
        ("2GiB", 2 << 30),
        ("100", 100),
        ("5b", 5),
        ("1.5g", 3 << 29),
        ("0.5k", 512),
        ("1.1", 1),
        ("1.1g", 1181116006),
    ],
)
def test_a_size_is_counted_as_docker_counts(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "0.5",
        "1.",
        "1.5.g",
        "1,5g",
        "1e3",
        "inf",
        "g",
        "8x",
        "8\u212a",
        "1 g",
        "9" * 13 + "g",
        "9" * 19,
        "9" * 5000,
    ],
)
def test_a_bad_size_is_refused(text):
    with pytest.raises(UsageError, match="such as 512m"):
        parse_size(text)
