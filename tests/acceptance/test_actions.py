"""The actions that other repositories use: their scripts run as a runner runs them, through the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml
from docker.errors import ImageNotFound
from support.cli import BIN, ROOT, clean_environment
from support.engine import config_digest
from support.registry import running_registry

from reprobox.images.lockfile import dump_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedImage

GITHUB = ROOT / ".github"
ACTIONS = GITHUB / "actions"
FEW = "matmul,training step"
FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH", "GITHUB_ENV")


class Runner:
    """A job of GitHub Actions: its files, its folders, and the steps run in it."""

    def __init__(self, folder):
        self.workspace, self.temp = folder / "workspace", folder / "temp"
        self.files = {name: folder / name.lower() for name in FILES}
        for made in (self.workspace, self.temp):
            made.mkdir()
        for path in self.files.values():
            path.touch()
        (self.workspace / "reprobox.toml").write_text("")

    def step(self, script, **variables):
        environment = {**clean_environment(), **{name: str(path) for name, path in self.files.items()}}
        environment |= {"RUNNER_TEMP": str(self.temp), "GITHUB_ACTIONS": "true", **variables}
        return subprocess.run(
            ["bash", ROOT / script],
            cwd=self.workspace,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    def run(self, command, **variables):
        return self.step(".github/actions/run/run.sh", RUN_COMMAND=command, **variables)

    def selftest(self, **variables):
        local = {"FLAGS": "--engine\nlocal", "SELFTEST_CASES": FEW}
        return self.step(".github/actions/selftest/selftest.sh", **{**local, **variables})

    @property
    def outputs(self):
        return dict(line.split("=", 1) for line in self.files["GITHUB_OUTPUT"].read_text().splitlines() if "=" in line)

    @property
    def summary(self):
        return self.files["GITHUB_STEP_SUMMARY"].read_text()

    def certificate(self, change=lambda case: None):
        """Commit the certificate that the last self-test wrote, with ``change`` done to each case."""
        certificate = json.loads((self.temp / "reprobox-certificate.json").read_text())
        for case in certificate["cases"]:
            change(case)
        (self.workspace / "certificate.json").write_text(json.dumps(certificate))
        self.files["GITHUB_OUTPUT"].write_text("")
        self.files["GITHUB_STEP_SUMMARY"].write_text("")
        return "certificate.json"


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def rows(markdown):
    """The rows of the tables of a summary, as lists of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def annotations(done, level):
    return [line for line in done.stdout.splitlines() if line.startswith(f"::{level}")]


def nudged(case):
    """Another digest, and numbers that differ a little."""
    if case["name"] == "matmul" and case["dtype"] == "float32":
        case["digest"] = "0" * len(case["digest"])
        case["norm"] = (float.fromhex(case["norm"]) + 0.25).hex()


@pytest.mark.local
def test_run_passes_output_and_exit_code_on_and_tells_what_it_ran_on(runner):
    done = runner.run("echo 'a | b'; exit 3", RUN_SEED="42", FLAGS="--engine\nlocal\n\n--self-test\noff")
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, "a | b")
    assert runner.outputs["exit-code"] == "3"
    manifest = json.loads(Path(runner.outputs["manifest"]).read_text())
    assert (manifest["id"], manifest["recipe"]["seed"]) == (runner.outputs["run-id"], 42)
    table = dict(rows(runner.summary)[1:])
    assert table["seed"] == "`42`"
    assert table["outcome"] == "`exited, exit code 3`"
    assert table["command"] == "`bash -c echo 'a \\| b'; exit 3`"
    assert annotations(done, "error") == ["::error title=reprobox run::the command ended with exit code 3"]


@pytest.mark.local
def test_a_run_that_ends_well_has_no_annotation(runner):
    done = runner.run("true", RUN_SEED="1", FLAGS="--engine\nlocal\n--self-test\noff")
    assert (done.returncode, annotations(done, "error")) == (0, [])


@pytest.mark.local
def test_a_run_that_is_refused_does_not_tell_of_an_earlier_one(runner):
    runner.run("true", RUN_SEED="1", FLAGS="--engine\nlocal\n--self-test\noff")
    before = runner.summary
    runner.files["GITHUB_OUTPUT"].write_text("")
    assert runner.run("true", RUN_SEED="-1", FLAGS="--engine\nlocal").returncode == 2
    assert runner.outputs == {"exit-code": "2"}
    assert runner.summary == before


@pytest.mark.local
def test_no_input_is_taken_for_shell_code(runner):
    done = runner.run("true", RUN_SEED="$(touch planted)", FLAGS="--engine\nlocal\n--profile=`touch planted`")
    assert done.returncode == 2
    assert not (runner.workspace / "planted").exists()


@pytest.fixture
def pushed(runner, docker_client, tmp_path):
    """A lock whose CPU image a registry has; the registry's repository, and the image's digest there."""
    with running_registry(tmp_path) as registry:
        name = f"{registry.address}/team/{uuid.uuid4().hex[:8]}"
        labels = ['LABEL reprobox.box-protocol="2"', 'LABEL reprobox.variant="cpu"']
        (tmp_path / "empty.tar").write_bytes(bytes(10240))
        docker_client.api.import_image_from_file(str(tmp_path / "empty.tar"), name, "1", changes=labels)
        docker_client.images.push(name, "1")
        image = docker_client.images.get(f"{name}:1")
        (digest,) = image.attrs["RepoDigests"]
        locked = LockedImage(config_digest=config_digest(docker_client, f"{name}:1"), repo_digest=digest.split("@")[1])
        (runner.workspace / "reprobox.lock").write_text(dump_lock(Lock(inputs=Inputs(), images={"cpu": locked})))
        docker_client.images.remove(f"{name}:1", force=True)
        yield name, digest
        for tag in {tag for found in docker_client.images.list(name) for tag in (*found.tags, found.id)}:
            with contextlib.suppress(ImageNotFound):  # another test's lock may be of the same packages
                docker_client.images.remove(tag, force=True)


LOCKED = {"IMAGE_LOCK": "reprobox.lock", "IMAGE_VARIANT": "cpu", "RUN_SEED": "1", "FLAGS": "--dry-run\n--json"}


@pytest.mark.engine
def test_run_pulls_the_image_of_the_lock_by_its_digest(runner, pushed, docker_client):
    repository, digest = pushed
    done = runner.run("true", IMAGE_REPOSITORY=repository, **LOCKED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"]["reference"] == digest
    assert docker_client.images.get(digest)
    assert annotations(done, "warning") == []


@pytest.mark.engine
def test_an_image_that_the_registry_does_not_have_ends_the_job_before_the_run(runner, pushed):
    repository, _ = pushed
    done = runner.run("true", IMAGE_REPOSITORY=f"{repository}-other", **LOCKED)
    assert done.returncode == 125
    assert [line.partition("::the")[0] for line in annotations(done, "error")] == [
        "::error title=reprobox pull,file=reprobox.lock"
    ]
    assert "exit-code" not in runner.outputs


@pytest.mark.engine
def test_an_image_that_is_named_without_a_digest_is_run_with_a_warning(runner, docker_client):
    done = runner.run("true", IMAGE="reprobox-test:absent", RUN_SEED="1", FLAGS="--pull\nnever")
    assert done.returncode == 125
    assert "is named without a digest" in annotations(done, "warning")[0]


@pytest.mark.local
def test_selftest_agrees_with_a_certificate_of_this_machine_and_not_with_one_that_differs(runner):
    alone = runner.selftest()
    assert alone.returncode == 0, alone.stderr
    assert runner.outputs["passed"] == "true"
    assert "| matmul | cpu | float32 | same | - |" in runner.summary

    same = runner.selftest(SELFTEST_CERTIFICATE=runner.certificate())
    assert same.returncode == 0, same.stderr
    assert runner.outputs["passed"] == "true"
    assert {row[4] for row in rows(runner.summary)[1:]} == {"agree"}
    assert [line for line in same.stdout.splitlines() if line.startswith("::")] == []

    other = runner.selftest(SELFTEST_CERTIFICATE=runner.certificate(nudged))
    assert other.returncode == 1
    assert runner.outputs["passed"] == "false"
    (error,) = annotations(other, "error")
    assert error.startswith(
        "::error file=certificate.json,title=reprobox self-test::matmul[float32] cpu differs from the certificate"
    )
    table = {(row[0], row[2]): row for row in rows(runner.summary)[1:]}
    assert table["matmul", "float32"][4:] == ["differ", "0.25"]
    assert table["matmul", "bfloat16"][4] == "agree"
    assert "1 cases differ from the certificate" in runner.summary

    close = runner.selftest(SELFTEST_CERTIFICATE=runner.certificate(nudged), SELFTEST_TOLERANCE="0.5")
    assert close.returncode == 0, close.stderr
    assert "is close to the certificate and not the same bits" in annotations(close, "warning")[0]


@pytest.mark.local
def test_a_selftest_that_cannot_be_carried_out_says_so_and_has_no_certificate(runner):
    done = runner.selftest(SELFTEST_CERTIFICATE="absent.json")
    assert done.returncode == 125
    assert "could not be carried out (exit code 125)" in annotations(done, "error")[0]
    assert runner.outputs["certificate"] == ""


def test_a_case_that_was_lost_is_missed_unless_only_some_were_asked_for(runner, tmp_path):
    comparison = {
        "differs": False,
        "cases": [{"case": "gone[float32] cpu", "agreement": "only there", "largest_deviation": None}],
        "fingerprint_differences": {},
    }
    document = {"passed": True, "cases": [], "failures": ["100% odd\nline"], "comparison": comparison}
    (tmp_path / "document.json").write_text(json.dumps(document))

    def report(*words):
        command = [sys.executable, ACTIONS / "selftest" / "report.py", tmp_path / "document.json", *words]
        environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(runner.files["GITHUB_STEP_SUMMARY"])}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    missed = report("a,b.json")
    assert annotations(missed, "warning") == [
        "::warning file=a%2Cb.json,title=reprobox self-test::gone[float32] cpu is in the certificate and was not run here"
    ]
    assert annotations(missed, "error") == ["::error title=reprobox self-test::100%25 odd%0Aline"]
    assert annotations(report("a,b.json", FEW), "warning") == []


def test_setup_installs_the_checkout_it_is_part_of_and_keys_the_cache_by_the_lock(runner):
    (runner.workspace / "reprobox.lock").write_text("one")
    done = runner.step(".github/actions/setup/setup.sh", SETUP_LOCK="reprobox.lock", SETUP_EXTRAS="", HOME="/h")
    assert done.returncode == 0, done.stderr
    folder = runner.files["GITHUB_PATH"].read_text().strip()
    version = subprocess.run([f"{folder}/reprobox", "--version"], capture_output=True, text=True).stdout
    assert version == f"reprobox {runner.outputs['version']}\n"
    assert runner.outputs["lock"] == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert "/h/.cache/reprobox/artefacts" in runner.files["GITHUB_OUTPUT"].read_text()


def test_setup_refuses_a_python_that_is_too_old(runner, tmp_path):
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\ncase $1 in -V) echo Python 3.10.9;; *) exit 1;; esac\n")
    old.chmod(0o755)
    done = runner.step(".github/actions/setup/setup.sh", PATH=f"{old.parent}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert annotations(done, "error")[0].startswith("::error title=reprobox::this runner's python3 is Python 3.10.9")
    assert not (runner.temp / "reprobox-venv").exists()


@pytest.mark.engine
def test_publish_builds_tests_pushes_and_describes_one_image(runner, docker_client, image, tmp_path):
    with running_registry(tmp_path) as registry:
        variables = {"VARIANT": "cpu", "REGISTRY": registry.address, "SELFTEST_CASES": FEW}
        github = {
            "GITHUB_REPOSITORY": f"Team/Box-{uuid.uuid4().hex[:8]}",
            "GITHUB_REF": "refs/tags/v9.9",
            "GITHUB_REF_NAME": "v9.9",
            "GITHUB_SERVER_URL": "https://github.example",
        }
        done = runner.step(".github/publish.sh", **variables, **github)
        assert done.returncode == 0, done.stdout + done.stderr
        digest, folder = runner.outputs["digest"], runner.outputs["folder"]
        name, _, manifest = digest.partition("@")
        try:
            assert name == f"{registry.address}/{github['GITHUB_REPOSITORY'].lower()}"
            assert manifest in registry.blobs()
            statement = json.loads(Path(f"{folder}/provenance.json").read_text())
            assert manifest[7:] in [one["digest"]["sha256"] for one in statement["subject"]]
            assert json.loads(Path(f"{folder}/predicate.json").read_text()) == statement["predicate"]
            builder = statement["predicate"]["runDetails"]["builder"]["id"]
            assert builder.endswith("/.github/workflows/publish.yml@refs/tags/v9.9")
            assert json.loads(Path(f"{folder}/sbom.json").read_text())["bomFormat"] == "CycloneDX"
            assert json.loads(Path(f"{folder}/certificate.json").read_text())["schema"] == "reprobox.certificate/1"
            assert f"    {digest}" in runner.summary
        finally:
            docker_client.images.remove(f"{name}:9.9-cpu")


def steps(path):
    document = yaml.safe_load(path.read_text())
    jobs = document.get("jobs", {"": document.get("runs", {})})
    return [step for job in jobs.values() for step in job["steps"]]


PLACES = sorted([*GITHUB.glob("workflows/*.yml"), *GITHUB.glob("actions/*/action.yml")])


@pytest.mark.parametrize("path", PLACES, ids=lambda path: str(path.relative_to(GITHUB)))
def test_every_action_of_others_is_named_by_a_commit_and_no_input_is_pasted_into_a_script(path):
    for step in steps(path):
        if uses := step.get("uses"):
            assert uses.startswith("./") or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", uses), uses
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", ["run", "selftest", "setup"])
def test_an_action_hands_its_script_every_input(name):
    action = yaml.safe_load((ACTIONS / name / "action.yml").read_text())
    text = json.dumps(action["runs"])
    assert {found for found in re.findall(r"inputs\.([\w-]+)", text)} == set(action["inputs"])
    (script,) = [step for step in action["runs"]["steps"] if "run" in step]
    assert script["run"] == f'bash "$GITHUB_ACTION_PATH/{name}.sh"'
    read = "".join(path.read_text() for path in (ACTIONS / name / f"{name}.sh", ACTIONS / "image.sh"))
    assert all(re.search(rf"\b{variable}\b", read) for variable in script["env"])


def lint(folder):
    """Run what ``make lint`` runs on workflows and actions, on a copy; return which found something."""
    actions = sorted(map(str, folder.glob(".github/actions/*/action.yml")))
    workflows = sorted(map(str, folder.glob(".github/workflows/*.yml")))
    commands = {
        "actionlint": ["actionlint", *workflows],
        "zizmor": ["zizmor", "--offline", "--quiet", "--no-progress", ".github"],
        "check-jsonschema": ["check-jsonschema", "--builtin-schema", "vendor.github-actions", *actions],
    }
    found = set()
    for name, command in commands.items():
        done = subprocess.run([BIN / command[0], *command[1:]], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("path", "old", "new", "finder"),
    [
        ("workflows/publish.yml", "steps.publish.outputs.digest", "steps.absent.outputs.digest", "actionlint"),
        ("workflows/publish.yml", "@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7", "zizmor"),
        ("actions/run/action.yml", 'bash "$GITHUB_ACTION_PATH/run.sh"', 'bash -c "${{ inputs.command }}"', "zizmor"),
        ("actions/run/action.yml", "using: composite", "using: composites", "check-jsonschema"),
    ],
)
def test_lint_finds_what_is_wrong_in_a_workflow_and_in_an_action(path, old, new, finder, tmp_path):
    shutil.copytree(GITHUB, tmp_path / ".github")
    (tmp_path / ".git").mkdir()
    assert lint(tmp_path) == set()
    planted = tmp_path / ".github" / path
    assert old in planted.read_text()
    planted.write_text(planted.read_text().replace(old, new))
    assert finder in lint(tmp_path)


def test_make_lint_runs_all_three():
    text = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert all(tool in text for tool in ("/actionlint", "/zizmor --offline", "/check-jsonschema"))


@pytest.mark.parametrize(
    ("begins", "schema"), [("name: train", "vendor.github-workflows"), ("train:", "vendor.gitlab-ci")]
)
def test_the_examples_of_other_ci_systems_fit_their_schemas(tmp_path, begins, schema):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "guides" / "ci.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if block.startswith(begins)]
    (tmp_path / "example.yml").write_text(example)
    check = [BIN / "check-jsonschema", "--builtin-schema", schema, tmp_path / "example.yml"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
