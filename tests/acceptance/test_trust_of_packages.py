"""Indexes and sources of packages that a project asks for: nothing is fetched or built before a person has allowed it."""

from __future__ import annotations

import json

import pytest
from support.locking import Place

from reprobox.images.lockfile import write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedSdist

INDEX = "--index-url http://127.0.0.1:1/simple\neinops\n"
SDIST = LockedSdist(
    name="oldpkg", version="1", file="oldpkg-1.tar.gz", sha256="0" * 64, variants=("cpu",), platforms=("x86_64",)
)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "project", tmp_path / "cache")


def asked(place, *words):
    """What a command says that was not allowed, and nothing else."""
    told = place.call(*words, code=2, offline=True)
    assert (told.stdout, told.stderr.count("\n")) == ("", 1)
    return told.stderr.partition("you have not allowed it: ")[2].partition(";")[0]


def requests(place):
    return [one["value"] for one in json.loads(place.call("trust", "--json").stdout)["requests"]]


def test_an_index_of_the_project_is_not_asked_before_it_is_allowed(place):
    place.write('variant = "cpu"\npython = "needs.txt"\n').write(INDEX, "needs.txt")
    write_lock(place.path, Lock(inputs=Inputs(variants=("cpu",))))
    for command in ("lock", "fetch"):
        assert asked(place, command) == "index = --index-url http://127.0.0.1:1/simple"
    place.call("fetch", "--offline")
    assert requests(place) == ["--index-url http://127.0.0.1:1/simple"]
    assert json.loads(place.call("fetch", "--json", offline=True).stdout)["files"] == []
    place.write(INDEX + "packaging\n", "needs.txt")
    place.call("fetch", offline=True)


def test_a_source_package_of_the_project_file_or_of_a_cloned_lock_is_asked_about(place):
    place.write('variant = "cpu"\nallow-sdist = ["one"]\n')
    write_lock(place.path, Lock(inputs=Inputs(variants=("cpu",), sdists=("oldpkg",)), sdists=(SDIST,)))
    assert asked(place, "lock") == "allow-sdist = oldpkg, allow-sdist = one"
    assert asked(place, "lock", "--allow-sdist", "one") == "allow-sdist = oldpkg"
    assert asked(place, "build") == "allow-sdist = oldpkg"
    assert requests(place) == ["oldpkg", "one"]
