"""A project's own image: the packages of its lock in one layer on reprobox's, and the same bits however often."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from docker.errors import ImageNotFound
from support.said import Said
from support.wheel import make_sdist, make_wheel

from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import ArtefactError, BuildError
from reprobox.images import BuildRequest
from reprobox.images.lockmodel import Inputs, Lock, Missing
from reprobox.images.project import build_project
from reprobox.images.project_name import project_tag

pytestmark = pytest.mark.engine


@pytest.fixture
def house(tmp_path):
    """A folder of wheels, and the lock that names three of them."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheels = (
        make_wheel(
            folder,
            "alpha",
            {"alpha/__init__.py": "def main():\n    print('alpha speaks')\n"},
            scripts=["alpha=alpha:main"],
        ),
        make_wheel(folder, "beta", {"beta.py": "import alpha\nVALUE = 2\n", "beta.data.txt": "data\n"}),
        make_wheel(
            folder, "gamma", {"gamma/__init__.py": "from beta import VALUE\n", "gamma/old.py": "print 'python 2'\n"}
        ),
    )
    return folder, Lock(inputs=Inputs(variants=("cpu",)), wheels=wheels)


@pytest.fixture
def built(docker_client, image, house):
    """Build the lock's image, and remove what was built at the end."""
    folder, _ = house
    tags = []

    def build(lock, **more):
        tags.append(project_tag(lock, "cpu"))
        request = BuildRequest(variant="cpu", wheelhouses=(folder,), **more)
        return build_project(lock, request, store=DockerImageStore(docker_client), report=Said())

    yield build
    for tag in dict.fromkeys(tags):
        with contextlib.suppress(ImageNotFound):
            docker_client.images.remove(tag, force=True)


def layers(docker_client, name):
    return docker_client.images.get(name).attrs["RootFS"]["Layers"]


def test_the_packages_are_there_with_their_scripts_and_the_rest_is_shared(docker, docker_client, image, house, built):
    _, lock = house
    result = built(lock)
    below, whole = layers(docker_client, image), layers(docker_client, result.tag)
    assert whole[:-1] == below
    flags = ("--seed", "1", "--image", result.tag)
    done = docker.run(
        "sh", "-c", "alpha; python -c 'import gamma, torch; print(gamma.VALUE, gamma.__cached__)'", flags=flags
    )
    said, imported = done.stdout.splitlines()
    assert said == "alpha speaks"
    assert imported == "2 /opt/project/gamma/__pycache__/__init__.cpython-311.pyc"
    assert (
        docker.run("python", "-I", "-c", "import beta; print(beta.__file__)", flags=flags).stdout
        == "/opt/project/beta.py\n"
    )


def test_the_bytecode_is_there_and_carries_no_date(docker, house, built):
    _, lock = house
    program = (
        "import glob, json\n"
        "found = {p: open(p, 'rb').read(8)[4] for p in glob.glob('/opt/project/**/*.pyc', recursive=True)}\n"
        "print(json.dumps(found))"
    )
    done = docker.run("python", "-c", program, flags=("--seed", "1", "--image", built(lock).tag))
    found = json.loads(done.stdout)
    assert len(found) == 3  # and none of the file in an older Python's syntax
    assert set(found.values()) == {0b01}  # by hash, and never checked


def test_the_same_lock_gives_the_same_image_and_another_package_only_another_top_layer(docker_client, house, built):
    folder, lock = house
    first = built(lock)
    assert built(lock).reused
    docker_client.images.remove(first.tag, force=True)
    again = built(lock)
    assert (again.image_id, again.reused) == (first.image_id, False)
    other = replace(
        lock, wheels=(*lock.wheels[:2], make_wheel(folder, "gamma", {"gamma.py": "VALUE = 3\n"}, version="1.1"))
    )
    changed = built(other)
    assert changed.tag != first.tag
    assert changed.image_id != first.image_id
    assert layers(docker_client, changed.tag)[:-1] == layers(docker_client, first.tag)[:-1]
    assert layers(docker_client, changed.tag)[-1] != layers(docker_client, first.tag)[-1]


SETUP = """
from setuptools import Extension, setup
setup(name="zeta", version="1.0", py_modules=["zeta"], ext_modules=[Extension("_zeta", ["zeta.c"])])
"""
EXTENSION = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_zeta", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__zeta(void) {
    PyObject *made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "VALUE", 26);
    return made;
}
"""


def test_a_source_distribution_is_built_in_the_image_the_same_each_time(docker, docker_client, house, built):
    folder, lock = house
    zeta = make_sdist(folder, "zeta", {"setup.py": SETUP, "zeta.c": EXTENSION, "zeta.py": "from _zeta import VALUE\n"})
    with_source = replace(lock, sdists=(zeta,))
    first = built(with_source)
    flags = ("--seed", "1", "--image", first.tag)
    assert docker.run("python", "-c", "import beta, zeta; print(zeta.VALUE)", flags=flags).stdout == "26\n"
    docker_client.images.remove(first.tag, force=True)
    assert built(with_source).image_id == first.image_id


def test_a_source_distribution_whose_backend_is_missing_says_so_and_leaves_nothing(docker_client, house, built):
    folder, lock = house
    eta = make_sdist(folder, "eta", {"eta.py": ""}, backend="nobody_has_this")
    with pytest.raises(BuildError, match=r"building eta-1\.0\.tar\.gz failed with exit code .*build backend") as caught:
        built(replace(lock, sdists=(eta,)))
    assert "nobody_has_this" in caught.value.detail
    assert not docker_client.containers.list(all=True, filters={"label": "reprobox.stage=project"}, ignore_removed=True)


def test_what_cannot_be_installed_is_refused_by_name_and_leaves_no_image(docker_client, house, built):
    folder, lock = house
    twice = make_wheel(folder, "delta", {"beta.py": "VALUE = 4\n"})
    with pytest.raises(ArtefactError, match=r"delta-1\.0-py3-none-any\.whl holds a file that another package holds"):
        built(replace(lock, wheels=(*lock.wheels, twice)))
    outside = make_wheel(folder, "epsilon", {"../../escaped.py": "\n"})
    with pytest.raises(ArtefactError, match="epsilon"):
        built(replace(lock, wheels=(outside,)))
    absent = Missing(name="torchvision", version="0.30", variant="cpu", platform="x86_64")
    with pytest.raises(ArtefactError, match=r"the lock lacks torchvision 0\.30 for cpu"):
        built(replace(lock, missing=(absent,)))
    assert not docker_client.containers.list(all=True, filters={"label": "reprobox.stage=project"}, ignore_removed=True)
