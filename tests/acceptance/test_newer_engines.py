"""Debian 13's Docker, with either image store, and its Podman: the image is the same there, and a run keeps the same."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import uuid

import docker.errors
import pytest
from acceptance import test_cases as cases
from acceptance import test_podman as on_podman
from acceptance import test_podman_cases as podman_cases
from acceptance import test_run as runs
from acceptance import test_security as security
from support.daemon import TAG
from support.engine import boxes_left
from support.newer_engines import KINDS, REGISTRY, shared
from support.once import once, session_folder
from support.scenarios import call, named
from support.small_edition import build, small_archive, small_edition

# Who runs them first on a machine also makes two file systems of Debian's packages.
pytestmark = [pytest.mark.newer, pytest.mark.timeout(1800)]

DOCKERS = [kind for kind in KINDS if kind.engine == "docker"]
PODMANS = [kind for kind in KINDS if kind.engine == "podman"]
DIGEST = r"sha256:[0-9a-f]{64}"


@pytest.fixture(scope="session")
def edition(tmp_path_factory):
    return small_edition(tmp_path_factory.mktemp("edition"))


@pytest.fixture(scope="session")
def archive(edition, tmp_path_factory):
    """The small image as Debian 12's Docker built it: what ``reprobox save`` told of its file."""
    folder = once(tmp_path_factory, "small-archive", lambda folder: small_archive(folder, edition))
    return json.loads((folder / "saved.json").read_text())


@pytest.fixture(scope="session")
def engines(archive, tmp_path_factory):
    """What gives the engine of a kind, with the archive loaded; ``prepared`` is what ``reprobox load`` told."""

    def load(engine):
        cli = engine.cli(tmp_path_factory.mktemp("load"))
        return json.loads(cli.reprobox("load", archive["file"], "--engine", cli.engine, "--json").stdout)

    with contextlib.ExitStack() as stack:
        folder = session_folder(tmp_path_factory)
        yield functools.cache(lambda kind: stack.enter_context(shared(kind, folder, load)))


@pytest.fixture
def engine(request, engines):
    return engines(request.param)


@pytest.fixture
def cli(engine, tmp_path, record_property):
    """The command line on the engine, in a project of its own; every run's record is complete at the end."""
    record_property("engine", engine.told)
    cli = engine.cli(tmp_path)
    yield cli
    manifests = sorted(cli.folder.rglob("manifest.json"))
    with contextlib.closing(engine.client()) as client:
        assert boxes_left(client, {manifest.parent.name for manifest in manifests}) == []
    for manifest in manifests:
        assert json.loads(manifest.read_text())["end"], "a run's record was not completed"
        assert not (manifest.parent / "box").exists()


def on(kinds):
    return pytest.mark.parametrize("engine", kinds, ids=lambda kind: kind.name, indirect=True)


# --- one image ------------------------------------------------------------------------------------------------------


@on(KINDS)
def test_an_archive_of_debian_12s_docker_is_loaded_with_its_id(cli, engine, archive):
    assert engine.prepared["image_id"] == archive["image_id"]
    assert (
        json.loads(cli.reprobox("save", "a.img", "--image", TAG, "--engine", cli.engine, "--json").stdout)["image_id"]
        == archive["image_id"]
    )


BUILDS = (
    (DOCKERS, ("classic, twice", ("--builder", "classic", "--verify"))),
    (DOCKERS, ("buildkit", ("--builder", "buildkit"))),
    (PODMANS, ("twice", ("--verify",))),
)


@pytest.mark.parametrize(
    ("engine", "options"),
    [pytest.param(kind, options, id=f"{kind.name}, {name}") for kinds, (name, options) in BUILDS for kind in kinds],
    indirect=["engine"],
)
def test_what_is_built_there_is_the_image_that_debian_12s_docker_built(cli, archive, edition, options):
    built = build(edition, cli, *options, "--no-cache", "--engine", cli.engine)
    assert built["image_id"] == archive["image_id"]
    assert built["reused"] is False
    if "--verify" in options:
        assert built["verification"]["same"] is True


@on(KINDS)
def test_an_image_goes_to_a_registry_and_comes_back_by_its_digest(cli, engine, archive, tmp_path):
    name = f"{REGISTRY}/team/{uuid.uuid4().hex[:12]}"  # the registry is one for all engines and workers
    pushed = json.loads(cli.reprobox("push", f"{name}:1", "--image", TAG, "--engine", cli.engine, "--json").stdout)
    assert re.fullmatch(f"{name}@{DIGEST}", pushed["repo_digest"])
    with contextlib.closing(engine.client()) as client:
        for wanted in (f"{name}:1", pushed["repo_digest"]):
            forget(client, name)
            pulled = json.loads(cli.reprobox("pull", wanted, "--engine", cli.engine, "--json").stdout)
            assert (pulled["image_id"], pulled["repo_digest"]) == (archive["image_id"], pushed["repo_digest"])
            flags = ("--image", pushed["repo_digest"])
            assert cli.run("python", "-c", "print('ran')", flags=flags).stdout == "ran\n"
        forget(client, name)


def forget(client, name):
    """Take every name in a repository away; layers that no other image has go as well."""
    for image in client.images.list(name):
        for each in (*image.tags, *image.attrs["RepoDigests"]):
            if each.startswith(name):
                try:
                    client.api.remove_image(each)
                except docker.errors.NotFound:
                    pass  # a digest goes with the last tag of its repository
                except docker.errors.APIError as error:  # Podman lists digests that no name of this repository has
                    if "tag not known" not in str(error):
                        raise


@on(KINDS)
def test_what_the_registry_has_not_is_an_error_of_one_sentence(cli):
    done = cli.reprobox("pull", f"{REGISTRY}/team/absent:1", "--engine", cli.engine, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"{REGISTRY}/team/absent:1" in done.stderr


# --- runs -----------------------------------------------------------------------------------------------------------

CASES = [(kind, row) for kind in DOCKERS for row in cases.ROWS if "docker" in row.engines]
CASES += [(kind, podman_cases.as_podman_says(row)) for kind in PODMANS for row in podman_cases.ROWS]


@pytest.mark.parametrize(
    ("engine", "row"),
    [pytest.param(kind, row, id=f"{kind.name}, {row.number} {row.name}") for kind, row in CASES],
    indirect=["engine"],
)
def test_a_case_of_run(cli, row):
    cases.test_a_case(cli, row)


def scenarios(*tables):
    """Parametrise with the functions of other files' tests: each table has the engines it is for."""
    every = [
        pytest.param(kind, function, values, id=f"{kind.name}, {named(function, values)}")
        for kinds, table in tables
        for function, rows in table.items()
        for values in rows
        for kind in kinds
    ]
    return pytest.mark.parametrize(("engine", "scenario", "values"), every, indirect=["engine"])


@pytest.fixture
def carry_out(cli, engine, tmp_path, tmp_path_factory):
    """Call such a function with what it asks for, by whatever name."""
    given = dict.fromkeys(("cli", "docker", "podman"), cli)
    with contextlib.closing(engine.client()) as client:
        image = client.images.get(TAG).id  # a build here gave the name to an image of another manifest, perhaps
    given |= {"tmp_path": tmp_path, "tmp_path_factory": tmp_path_factory, "image": image}
    given["handed_over"] = lambda: [p for run in cli.runs() for p in cli.service.runtime.glob(f"*{run.name}*")]
    return lambda scenario, values: call(scenario, **given, **values)


AS_ON_PODMAN = (
    cases.test_20_a_signal_nobody_traps_ends_the_command_at_once,
    cases.test_21_the_third_signal_kills_a_command_that_ignores_them,
    cases.test_22_a_signal_at_any_moment_of_the_start_is_143,
    cases.test_23_signals_that_mean_nothing_to_the_command_do_not_reach_it,
)
SIGNALS = {
    cases.test_19_a_trap_decides_the_exit_code: [{"name": name} for name in ("INT", "TERM", "HUP", "QUIT", "USR1")],
    **{test: podman_cases.SCENARIOS[test] for test in AS_ON_PODMAN},
    runs.test_a_signal_while_it_starts_leaves_a_complete_record: [{}],
}
RUNS = {
    **{test: rows for test, rows in podman_cases.SCENARIOS.items() if test not in SIGNALS},
    runs.test_the_callers_subfolder_is_the_working_directory: [{}],
    on_podman.test_files_belong_to_the_caller_and_the_caller_has_a_name: [{}],
    on_podman.test_mounts_and_the_working_directory: [{}],
    on_podman.test_the_network_is_there_when_it_is_not_switched_off: [{}],
    on_podman.test_input_that_ends_is_the_end_of_the_commands_input: [{}],
    on_podman.test_a_terminal_is_a_terminal: [{}],
    on_podman.test_the_size_of_the_terminal_reaches_the_box: [{}],
    on_podman.test_a_detached_run_is_waited_for_and_its_output_kept: [{}],
    on_podman.test_a_detached_run_is_stopped: [{}],
    on_podman.test_a_detached_run_is_attached_to: [{}],
    on_podman.test_a_run_goes_on_without_its_command_line_and_can_be_waited_for: [{}],
    on_podman.test_gpus_that_cannot_be_had_are_refused: [{}],
    on_podman.test_bytes_that_are_no_text_are_in_the_log_as_they_were: [{}],
}
RUNS_ON_DOCKER = {
    runs.test_the_manifest_and_the_runs_command: [{}],
    cases.test_28_a_name_that_is_taken_is_125: [{}],
    cases.test_31_a_user_without_a_passwd_entry_has_a_home_and_a_name: [{}],
}
RUNS_ON_PODMAN = {
    on_podman.test_variables_that_podman_sets_can_be_given: [{}],
    on_podman.test_a_name_that_is_taken_is_125: [{}],
    on_podman.test_a_start_that_fails_leaves_nothing: [{}],
    on_podman.test_a_limit_of_memory_holds_or_is_refused: [{}],
}
SECRETS = {
    security.test_a_secret_on_the_command_line_is_not_recorded: [{}],
    security.test_no_file_of_a_secret_is_left: [{"end": end} for end in ("by itself", "by a signal", "killed")],
    security.test_a_start_that_fails_leaves_no_file_of_a_secret: [{}],
}
CLOSED = {
    security.test_the_command_cannot_touch_the_records_of_runs: [{}],
    security.test_an_output_is_not_hashed_through_a_link_out_of_the_project: [{}],
}


@scenarios((KINDS, RUNS), (DOCKERS, RUNS_ON_DOCKER), (PODMANS, RUNS_ON_PODMAN))
def test_a_run_is_as_on_debian_12(carry_out, scenario, values):
    carry_out(scenario, values)


@scenarios((KINDS, SIGNALS))
def test_a_signal_does_what_it_does_on_debian_12(carry_out, scenario, values):
    carry_out(scenario, values)


@scenarios(
    (KINDS, SECRETS),
    (DOCKERS, {security.test_secrets_reach_the_command_and_nothing_else: [{}]}),
    (PODMANS, {on_podman.test_secrets_are_files_that_the_boxs_user_alone_can_read: [{}]}),
)
def test_a_secret_goes_where_it_goes_on_debian_12(carry_out, scenario, values):
    carry_out(scenario, values)


@scenarios(
    (KINDS, CLOSED),
    (PODMANS, {on_podman.test_the_box_is_closed_down: [{}]}),
)
def test_the_box_is_closed_as_on_debian_12(carry_out, scenario, values):
    carry_out(scenario, values)


@on(KINDS)
def test_a_program_is_seeded_as_on_debian_12(cli, docker):
    program = ("python", "-c", "import random; print(random.random(), {*'abcdef'})")
    assert cli.run(*program).stdout == docker.run(*program).stdout
    assert cli.run(*program, flags=("--seed", "43")).stdout != cli.run(*program).stdout
