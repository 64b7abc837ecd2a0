"""The command line's edges: usage errors, and one sentence for everything."""

from __future__ import annotations

import pytest

from reprobox.cli.app import COMMANDS, run_app


@pytest.fixture(autouse=True)
def _project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-such-flag", "x"],
        ["run"],
        ["run", "--seed", "-1", "true"],
        ["run", "--seed", "4294967296", "true"],
        ["run", "--seed", "abc", "true"],
        ["run", "--seed", "", "true"],
        ["run", "--profile", "strickt", "true"],
        ["run", "--engine", "moby", "true"],
        ["run", "--gpus", "some", "true"],
        ["run", "--shm-size", "lots", "true"],
        ["run", "--name", "-x", "true"],
        ["run", "-e", "=x", "true"],
        ["run", "-v", "nonsense", "true"],
        ["run", "--env-file", "/no/such", "true"],
        ["run", "--network=-x", "true"],
        ["rnu"],
        ["build", "--variant", "tpu"],
        ["runs", "show", "--what"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_one_sentence_and_an_empty_stdout(arguments, capfd):
    assert run_app(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("reprobox: ")
    assert err.count("\n") == 1


def test_a_misspelt_command_is_suggested(capfd):
    run_app(["rnu"])
    assert "did you mean run" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capfd):
    run_app(arguments)
    out = capfd.readouterr().out
    assert all(f"  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name, capfd):
    assert run_app([name, "--help"]) == 0
    assert "Usage: reprobox" in capfd.readouterr().out


def test_an_unexpected_failure_is_one_sentence_and_125(monkeypatch, capfd):
    import reprobox.cli.choice

    def fail():
        raise RuntimeError("boom")

    monkeypatch.setattr(reprobox.cli.choice, "take_inventory", fail)
    assert run_app(["run", "true"]) == 125
    assert "reprobox itself failed (RuntimeError: boom)" in capfd.readouterr().err
    assert run_app(["--debug", "run", "true"]) == 125
    assert "Traceback" in capfd.readouterr().err
