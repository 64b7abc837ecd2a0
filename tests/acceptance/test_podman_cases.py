"""Docker's cases of ``reprobox run``, on Podman with root; those where it could matter, without root too."""

from __future__ import annotations

import dataclasses

import pytest
from acceptance import test_cases as cases
from support.podman import AS_ROOT, AS_USER
from support.scenarios import call, named

pytestmark = pytest.mark.podman

# What Podman does not tell has a test of its own, and without root it may not be bounded at all.
ROWS = [row for row in cases.ROWS if "docker" in row.engines and "--memory" not in row.flags]

# Without root what is between the command and the caller is another: the user, the namespaces, the streams. Of rows that
# ask the same of it, one.
ROWS_OF_A_USER = (
    "exit 72",
    "no such command",
    "a folder",
    "SEGV",
    "two streams",
    "input with -i",
    "orphans are reaped",
)

SCENARIOS = {
    cases.test_10_what_is_printed_just_before_the_end_always_arrives: [{}],
    cases.test_14_a_slow_reader_loses_nothing: [{}],
    cases.test_15_a_reader_that_goes_away_ends_the_command: [{}],
    cases.test_17_a_hundred_mebibytes_go_in_and_come_out: [{}],
    cases.test_18_input_that_is_never_read_holds_nothing_up: [
        {"unread": "nothing comes"},
        {"unread": "more than a pipe holds"},
    ],
    cases.test_19_a_trap_decides_the_exit_code: [{"name": name} for name in ("TERM", "INT", "USR1")],
    cases.test_20_a_signal_nobody_traps_ends_the_command_at_once: [
        {"name": "TERM", "code": 143},
        {"name": "INT", "code": 130},
    ],
    cases.test_21_the_third_signal_kills_a_command_that_ignores_them: [{}],
    cases.test_22_a_signal_at_any_moment_of_the_start_is_143: [{}],
    cases.test_23_signals_that_mean_nothing_to_the_command_do_not_reach_it: [{}],
    cases.test_30_variables_arrive_as_they_are: [{}],
    cases.test_30_a_name_alone_that_is_unset_here_removes_the_images_variable: [{}],
    cases.test_32_a_missing_mount_source_is_125_and_is_not_created: [{"flags": ("-v", "./none:/data")}],
    cases.test_35_the_tail_belongs_to_the_command_with_and_without_the_dashes: [{}],
}
SCENARIOS_OF_A_USER = (
    cases.test_15_a_reader_that_goes_away_ends_the_command,
    cases.test_17_a_hundred_mebibytes_go_in_and_come_out,
    cases.test_19_a_trap_decides_the_exit_code,
    cases.test_20_a_signal_nobody_traps_ends_the_command_at_once,
    cases.test_21_the_third_signal_kills_a_command_that_ignores_them,
    cases.test_22_a_signal_at_any_moment_of_the_start_is_143,
)
"""As for the rows; each with the first of its values."""


def as_podman_says(row):
    return dataclasses.replace(row, said=row.said.replace("docker pull", "podman pull"))


def same_as_docker(podman, row):
    cases.test_a_case(podman, as_podman_says(row))


@AS_ROOT
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number} {row.name}")
def test_a_case_of_docker_run(podman, row):
    same_as_docker(podman, row)


@AS_USER
@pytest.mark.parametrize("name", ROWS_OF_A_USER)
def test_a_case_of_docker_run_without_root(podman, name):
    (row,) = [row for row in ROWS if row.name == name]
    same_as_docker(podman, row)


@AS_ROOT
@pytest.mark.parametrize(
    ("scenario", "values"),
    [pytest.param(s, values, id=named(s, values)) for s, every in SCENARIOS.items() for values in every],
)
def test_a_scenario_of_docker_run(podman, tmp_path, scenario, values):
    call(scenario, cli=podman, tmp_path=tmp_path, **values)


@AS_USER
@pytest.mark.parametrize("scenario", SCENARIOS_OF_A_USER, ids=lambda scenario: named(scenario, {}))
def test_a_scenario_of_docker_run_without_root(podman, tmp_path, scenario):
    call(scenario, cli=podman, tmp_path=tmp_path, **SCENARIOS[scenario][0])
