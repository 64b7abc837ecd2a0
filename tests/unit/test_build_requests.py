"""What ``reprobox build`` is asked: refused before an engine is, where it cannot be."""

from __future__ import annotations

import pytest

import reprobox.engines.docker
from reprobox.cli.app import run_app
from reprobox.images.lockfile import write_lock
from reprobox.images.lockmodel import Inputs, Lock


class Reached(Exception):
    """The engine was asked for."""


@pytest.fixture
def build(tmp_path, monkeypatch, capsys):
    def connect():
        raise Reached

    monkeypatch.chdir(tmp_path)
    (tmp_path / "reprobox.toml").touch()
    monkeypatch.setattr(reprobox.engines.docker, "connect", connect)

    def build(*flags, locked):
        if locked:
            write_lock(tmp_path / "reprobox.lock", Lock(inputs=Inputs(variants=("cpu",))))
        return run_app(["build", *flags]), capsys.readouterr().err

    return build


@pytest.mark.parametrize("locked", [False, True], ids=["bare", "locked"])
@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("mine@sha256:" + "a" * 64, "has a digest"),
        ("Mine:1", "must be lower case"),
        ("mine:a b", "the tag 'a b' is not"),
    ],
)
def test_a_tag_that_no_image_can_have_is_refused_before_the_engine_is_asked(build, locked, tag, why):
    code, told = build("--tag", tag, locked=locked)
    assert code == 2
    assert why in told
    assert tag in told


@pytest.mark.parametrize("locked", [False, True], ids=["bare", "locked"])
def test_a_good_tag_is_not_refused(build, locked):
    code, told = build("--tag", "host:5000/mine:1", locked=locked)
    assert code == 125
    assert "Reached" in told
