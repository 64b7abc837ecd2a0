"""A project with a lock: run takes the lock's image, builds it where it is missing, and refuses another."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from docker.errors import ImageNotFound
from support.wheel import make_wheel

from reprobox.images.lockfile import read_lock, write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedImage
from reprobox.images.project_name import project_tag

pytestmark = pytest.mark.engine

FLAGS = ("--seed", "1")


@pytest.fixture
def project(docker, docker_client, tmp_path):
    """A project whose lock names one package, which is in the cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    package = make_wheel(wheels, "alpha", {"alpha.py": "VALUE = 7\n"})
    docker.lock = Lock(inputs=Inputs(variants=("cpu",)), wheels=(package,))
    write_lock(docker.folder / "reprobox.lock", docker.lock)
    docker.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    docker.reprobox("fetch", "--offline", "--wheelhouse", wheels)
    docker.tag = project_tag(docker.lock, "cpu")
    yield docker
    with contextlib.suppress(ImageNotFound):
        docker_client.images.remove(docker.tag, force=True)


def test_the_image_is_built_once_and_then_nothing_is(project):
    refused = project.run("true", flags=(*FLAGS, "--dry-run"), check=False)
    assert refused.returncode == 125
    assert "fetch or build it: reprobox build" in refused.stderr
    program = ("python", "-c", "import alpha; print(alpha.VALUE)")
    first = project.run(*program, flags=FLAGS)
    assert first.stdout == "7\n"
    assert "the image of reprobox.lock is not on this machine; building it" in first.stderr
    again = project.run(*program, flags=FLAGS)
    assert again.stdout == "7\n"
    assert "building" not in again.stderr
    assert f"in {project.tag}," in again.stderr
    assert project.manifest()["image"]["reference"] == project.tag


def test_a_build_is_noted_in_the_lock_and_another_image_of_that_lock_is_refused(project):
    built = project.reprobox("build", "--offline")
    path = project.folder / "reprobox.lock"
    noted = read_lock(path).images["cpu"]
    assert noted.config_digest == built.stdout.strip()
    assert noted.torch
    assert "names" not in project.reprobox("build", "--offline").stderr
    other = replace(noted, config_digest=f"sha256:{'0' * 64}")
    write_lock(path, project.lock.with_image("cpu", other))
    refused = project.run("true", flags=FLAGS, check=False)
    assert refused.returncode == 125
    assert f"is the image {noted.config_digest}, and reprobox.lock names {other.config_digest}" in refused.stderr
    failed = project.reprobox("build", "--offline", check=False)
    assert failed.returncode == 125
    assert f"this build gave {noted.config_digest}" in failed.stderr
    write_lock(path, project.lock.with_image("cpu", LockedImage(config_digest=other.config_digest, input="older")))
    assert project.reprobox("build", "--offline").returncode == 0  # made of something else: reprobox itself changed
    assert project.run("true", flags=FLAGS).returncode == 0


def test_an_image_chosen_by_name_is_refused_unless_it_was_typed_for_this_run(project, image):
    project.reprobox("build", "--offline")
    chosen = {"REPROBOX_IMAGE": image}
    refused = project.run("true", flags=FLAGS, environment=chosen, check=False)
    assert refused.returncode == 125
    assert "and reprobox.lock names sha256:" in refused.stderr
    typed = project.run("true", flags=(*FLAGS, "--image", image))
    assert "it is used because --image was given" in typed.stderr
    assert json.loads((project.runs()[-1] / "manifest.json").read_text())["image"]["reference"] == image


def test_a_package_that_is_not_in_the_cache_is_named_where_nothing_may_be_fetched(project, tmp_path):
    empty = {"XDG_CACHE_HOME": str(tmp_path / "empty")}
    failed = project.reprobox("build", "--offline", environment=empty, check=False)
    assert failed.returncode == 125
    assert project.lock.wheels[0].file in failed.stderr
