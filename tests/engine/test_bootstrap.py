"""The Debian base made by mmdebstrap: the same bytes each time, and nothing of the machine that made it."""

from __future__ import annotations

import shutil
import tarfile

import pytest
from support.engine import config_digest
from support.said import Said

from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import BuildError
from reprobox.folders import cache_folder
from reprobox.images.base import Base, missing_packages
from reprobox.images.bootstrap import PACKAGES, apt_targets, base_config, bootstrap, make_base, tag_of
from reprobox.images.wheels import sha256_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def targets():
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed (apt-get install mmdebstrap)")
    try:
        return apt_targets()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def base(docker_client, targets):
    """Image id of the base, from the cache every build uses."""
    return bootstrap(DockerImageStore(docker_client), cache=cache_folder() / "base", report=Said())


@pytest.fixture(scope="module")
def made_again(targets, tmp_path_factory):
    """The tar of a second, independent run of mmdebstrap."""
    return make_base(targets, cache=tmp_path_factory.mktemp("base"), report=Said())


def test_a_second_bootstrap_gives_the_same_bytes_and_so_the_same_image(docker_client, base, made_again):
    assert sha256_of(made_again) == made_again.stem
    assert base_config(made_again.stem)[0] == base == config_digest(docker_client, base)
    assert docker_client.images.get(base).attrs["RootFS"]["Layers"] == [f"sha256:{made_again.stem}"]


def test_nothing_of_the_host_is_in_the_base(made_again, targets):
    with tarfile.open(made_again) as archive:
        files = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
        machine_id = archive.extractfile("./etc/machine-id").read()
    assert machine_id == b""
    assert not {"etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"} & set(files)
    for folder in ("etc/apt/sources.list.d/", "var/lib/apt/lists/", "usr/share/doc/", "usr/share/man/"):
        assert [name for name, member in files.items() if name.startswith(folder) and member.size] == []
    assert [name for name, member in files.items() if name.startswith("var/log/") and member.size] == []


def test_a_base_without_a_compiler_has_all_the_rest_and_weighs_less(docker_client, base, targets):
    cache = cache_folder() / "base"
    bare = bootstrap(DockerImageStore(docker_client), cache=cache, report=Said(), packages=PACKAGES)
    chosen = Base(source=tag_of(bare), digest=bare, record=bare)
    assert missing_packages(chosen, store=DockerImageStore(docker_client), compiler=False) == ""
    assert missing_packages(chosen, store=DockerImageStore(docker_client)) == "libpython3-dev g++"
    sizes = [docker_client.images.get(each).attrs["Size"] for each in (bare, base)]
    assert sizes[0] < 120_000_000 < sizes[1]


def test_pythons_own_library_has_bytecode_that_is_never_checked(made_again):
    with tarfile.open(made_again) as archive:
        kinds = {
            archive.extractfile(member).read(8)[4]
            for member in archive
            if member.name.startswith("./usr/lib/python3") and member.name.endswith(".pyc")
        }
    assert kinds == {1}


def test_a_base_that_is_in_the_engine_is_not_made_again(docker_client, base):
    said = Said()
    assert bootstrap(DockerImageStore(docker_client), cache=cache_folder() / "base", report=said) == base
    assert said.lines == [f"the bootstrapped base {base} is already in the engine"]
