"""``reprobox fetch``: what a lock names comes once, is what the lock says, and then needs no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cli import ROOT
from support.locking import Place


def test_everything_the_lock_names_for_this_machine_comes_and_is_what_the_lock_says(fetched):
    lock = fetched.lock
    wanted = {one.sha256: one.file for one in (*lock.wheels_for("cpu"), *lock.debs_for())}
    assert {file["sha256"]: file["file"] for file in fetched.fetch["files"]} == wanted
    for file in fetched.fetch["files"]:
        with open(file["path"], "rb") as content:
            assert hashlib.file_digest(content, "sha256").hexdigest() == file["sha256"]
        assert f"/sha256/{file['sha256'][:2]}/{file['sha256']}/{file['file']}" in file["path"]


@pytest.mark.parametrize("words", [[], ["--offline"]])
def test_a_second_fetch_asks_no_network(words, fetched):
    document = json.loads(fetched.call("fetch", "--json", *words, offline=True).stdout)
    assert document["cached"] == len(document["files"])
    assert document["fetched"] == 0


@pytest.fixture
def own_cache(fetched, tmp_path):
    """The project with a cache that it may damage."""
    place = Place(tmp_path / "project", tmp_path / "cache").write()
    shutil.copy(fetched.path, place.path)
    shutil.copytree(fetched.cache, place.cache, copy_function=os.link)
    return place


def cached(place, name):
    (found,) = (place.cache / "reprobox" / "artefacts" / "sha256").rglob(f"{name}*")
    return found


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def test_offline_names_what_the_cache_lacks(own_cache):
    cached(own_cache, "einops-").unlink()
    cached(own_cache, "tree_").unlink()
    done = own_cache.call("fetch", "--offline", code=125)
    assert re.search(r"the cache lacks einops-\S+\.whl, tree_\S+\.deb; ", done.stderr)


def test_what_nobody_serves_is_named(own_cache):
    cached(own_cache, "einops-").unlink()
    done = own_cache.call("fetch", code=125, environment={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(own_cache.folder)})
    assert re.search(r"einops-\S+\.whl cannot be had", done.stderr.splitlines()[-1])


def test_damaged_files_are_said_and_fetched_again(own_cache):
    wheel, deb = cached(own_cache, "einops-"), cached(own_cache, "tree_")
    whole = wheel.read_bytes(), deb.read_bytes()
    replace(wheel, b"damaged")
    replace(deb, whole[1][:-1])
    assert "cannot be had" not in (done := own_cache.call("fetch", "--json")).stderr
    assert json.loads(done.stdout)["fetched"] == 2
    for path in (wheel, deb):
        assert f"the cached {path.name} is damaged" in done.stderr
    assert (wheel.read_bytes(), deb.read_bytes()) == whole


def test_a_wheelhouse_stands_in_for_the_network(own_cache, tmp_path):
    (tmp_path / "house").mkdir()
    for name in ("einops-", "tree_"):
        path = cached(own_cache, name)
        shutil.move(path, tmp_path / "house" / path.name)
    document = json.loads(own_cache.call("fetch", "--json", "--wheelhouse", tmp_path / "house", offline=True).stdout)
    assert document["fetched"] == 2


def test_without_a_lock_there_is_nothing_to_fetch(tmp_path):
    done = Place(tmp_path / "p", tmp_path / "c").write().call("fetch", code=125)
    assert "has no reprobox.lock; write one: reprobox lock" in done.stderr


BASE = """
import os, sys
from pathlib import Path
from support.said import Said
from reprobox.images.artefacts import ArtefactCache, artefact_folder
from reprobox.images.fetching import fetch
from reprobox.images.lockedbase import make_locked_base
from reprobox.images.lockfile import require_lock
from reprobox.images.project import base_names
os.umask(int(sys.argv[1], 8))
said, debs = Said(), require_lock(Path()).debs_for()
files = fetch(debs, cache=ArtefactCache(root=artefact_folder(), say=said.say), report=said, offline=True).files
names = base_names(require_lock(Path()), debs, compiler=sys.argv[3:] != ["bare"])
print(make_locked_base(debs, files, cache=Path(sys.argv[2]), report=said, names=names).stem)
"""


def test_the_locked_debian_packages_make_the_same_base_anywhere_without_a_network(fetched, tmp_path):
    def make(umask, zone):
        # Each in a cache of its own: nothing is left of the one before.
        environment = {
            **fetched.environment,
            "TZ": zone,
            "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}/tests",
        }
        done = subprocess.run(
            [*Place.NO_NETWORK, sys.executable, "-c", BASE, umask, tmp_path / umask],
            cwd=fetched.folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (tar,) = (tmp_path / umask).glob("*.tar")
        return done.stdout, tar

    with ThreadPoolExecutor(2) as pool:
        (one, tar), (other, _) = pool.map(make, ("022", "077"), ("UTC", "Asia/Tokyo"))
    assert one == other
    with tarfile.open(tar) as archive:
        names = {member.name for member in archive}
        status = archive.extractfile("./var/lib/dpkg/status").read().decode()
    installed = dict(re.findall(r"^Package: (.+)\n(?:.+\n)*?Version: (.+)$", status, re.MULTILINE))
    assert installed == {deb.name: deb.version for deb in fetched.lock.debs_for()}
    assert "./usr/bin/tree" in names
    assert not [
        name for name in names if re.match(r"\./etc/apt/sources\.list($|\.d/.)|\./var/lib/apt/lists/.*Packages", name)
    ]


def test_the_base_of_an_image_without_a_compiler_is_of_the_locked_packages_too_and_has_none(fetched, tmp_path):
    environment = {**fetched.environment, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}/tests"}
    done = subprocess.run(
        [*Place.NO_NETWORK, sys.executable, "-c", BASE, "022", tmp_path, "bare"],
        cwd=fetched.folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"{done.stdout.strip()}.tar") as archive:
        names = {member.name for member in archive}
        status = archive.extractfile("./var/lib/dpkg/status").read().decode()
    installed = dict(re.findall(r"^Package: (.+)\n(?:.+\n)*?Version: (.+)$", status, re.MULTILINE))
    locked = {deb.name: deb.version for deb in fetched.lock.debs_for()}
    assert installed.items() < locked.items()
    assert not {"g++", "libpython3-dev"} & set(installed)
    assert not [name for name in names if re.match(r"\./usr/bin/(.*-)?(g\+\+|gcc|cc|c\+\+)(-\d+)?$", name)]
    assert {"./usr/bin/tree", "./usr/bin/python3", "./usr/bin/tini"} <= names
