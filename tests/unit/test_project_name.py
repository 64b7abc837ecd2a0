"""A project's image with the compiler and the one without: two images, and a run takes the one that the lock names."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import docker.errors
import pytest
from support.said import Said

from reprobox.engines import ImageInfo
from reprobox.engines.docker_store import DockerImageStore
from reprobox.engines.fake import FakeEngine
from reprobox.images import BuildRequest
from reprobox.images.bootstrap import COMPILER
from reprobox.images.debs import BASE_PACKAGES
from reprobox.images.lockedbase import locked_base_key
from reprobox.images.lockfile import read_lock, write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedDeb, LockedImage
from reprobox.images.project import base_names, build_project, note_in_lock
from reprobox.images.project_name import project_name, project_tag
from reprobox.images.sources import input_digest
from reprobox.runs.locked_image import LockedChoice, locked_image

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
LOCK = Lock(inputs=Inputs(variants=("cpu",)))
WITH, WITHOUT = project_name(LOCK, "cpu", compiler=True), project_name(LOCK, "cpu", compiler=False)


def naming(name, image_id=ONE):
    """The lock with this image noted."""
    return LOCK.with_image("cpu", LockedImage(config_digest=image_id, input=name.input))


class Client:
    """An engine that has both images."""

    def __init__(self):
        there = {WITH: ONE, WITHOUT: TWO}
        self.there = {name.tag: self.described(name, image_id) for name, image_id in there.items()}
        self.there |= {one["Id"]: one for one in self.there.values()}
        self.images = SimpleNamespace(get=self.get)

    def described(self, name, image_id):
        labels = {"reprobox.project": name.input, "reprobox.base": "sha256:b"}
        return {"Id": image_id, "Config": {"Labels": labels}}

    def get(self, name):
        if name not in self.there:
            raise docker.errors.ImageNotFound(name)
        return SimpleNamespace(attrs=self.there[name])

    def info(self):
        return {}


def test_the_images_with_and_without_a_compiler_have_names_of_their_own():
    made_of = f"{input_digest('cpu')}\n{LOCK.digest('cpu')}\n"
    assert WITH.input == hashlib.sha256(made_of.encode()).hexdigest()
    assert WITH.input != WITHOUT.input
    assert WITH.tag != WITHOUT.tag
    assert (WITH.compiler, WITHOUT.compiler) == (True, False)


@pytest.mark.parametrize(("compiler", "image_id"), [(True, ONE), (False, TWO)])
def test_a_build_returns_the_image_that_is_asked_for(compiler, image_id):
    built = build_project(LOCK, BuildRequest(compiler=compiler), store=DockerImageStore(Client()), report=Said())
    assert (built.image_id, built.reused) == (image_id, True)


def test_the_image_without_a_compiler_is_noted_in_place_of_the_one_with_it(tmp_path):
    path = tmp_path / "reprobox.lock"
    write_lock(path, naming(WITH))
    built = build_project(LOCK, BuildRequest(compiler=False), store=DockerImageStore(Client()), report=Said())
    assert f"names {TWO}" in note_in_lock(path, "cpu", built, torch="2.13.0")
    assert project_name(read_lock(path), "cpu") == WITHOUT


def test_what_the_lock_names_is_what_its_image_is_called():
    older = replace(WITH, input="0" * 64)
    assert [project_name(lock, "cpu") for lock in (LOCK, naming(WITH), naming(older))] == [WITH] * 3
    assert project_name(LOCK.with_image("cpu", LockedImage(config_digest=ONE)), "cpu") == WITH
    assert project_tag(naming(WITHOUT), "cpu") == WITHOUT.tag


@pytest.mark.parametrize("name", [WITH, WITHOUT], ids=["with", "without"])
def test_a_run_takes_the_one_that_the_lock_names(tmp_path, name):
    def image(one, image_id):
        labels = {"reprobox.project": one.input}
        return ImageInfo(engine_id=image_id, image_id=image_id, repo_digests=(), labels=labels)

    engine = FakeEngine(images={WITH.tag: image(WITH, ONE), WITHOUT.tag: image(WITHOUT, TWO)})
    lock = naming(name, engine.image(name.tag).image_id)
    choice = LockedChoice(lock=lock, path=tmp_path, variant="cpu", repository=None, pull="never")
    assert locked_image(engine, choice, Said())[0] == name.tag


def test_the_base_of_an_image_without_a_compiler_asks_for_all_but_the_compiler():
    names = (*BASE_PACKAGES, "cpp-12", "tree", "libc6")
    debs = [
        LockedDeb(
            name=name, version="1", architecture="amd64", file=f"{name}_1_amd64.deb", sha256="a" * 64, platforms=()
        )
        for name in names
    ]
    lock = replace(LOCK, inputs=replace(LOCK.inputs, apt=("tree",)))
    everything, less = base_names(lock, debs, compiler=True), base_names(lock, debs, compiler=False)
    assert everything == tuple(sorted(names))
    assert set(less) == {*BASE_PACKAGES, "tree"} - set(COMPILER)
    assert locked_base_key(debs, everything) == locked_base_key(debs) != locked_base_key(debs, less)
    asked_for = replace(lock, inputs=replace(lock.inputs, apt=("g++",)))
    assert "g++" in base_names(asked_for, debs, compiler=False)
