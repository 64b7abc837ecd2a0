"""Settings: flag over environment over project file over default, each remembering where it came from."""

from __future__ import annotations

import pytest

from reprobox.engines import EngineName
from reprobox.errors import UsageError
from reprobox.recipe import Profile
from reprobox.settings import SETTINGS, Origin, Resolved, Settings


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
