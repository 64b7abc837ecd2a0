"""What ``reprobox lock`` takes: lists of packages as others write them, private indices, sources that were allowed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from support.cli import BIN
from support.index import Index, make_wheel
from support.locking import PROJECT, wheels

PINS = "einops==0.8.1\npackaging==25.0\n"


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml", "pylock.toml", "uv.lock"])
def test_packages_may_be_listed_in_the_files_that_others_use(name, locked):
    if name == "requirements.txt":
        locked.write("# ours\n-r more.txt\npackaging==25.0\n", name).write(
            "einops==0.8.1 ; python_version < '4'\n", "more.txt"
        )
    else:
        listed = ", ".join(f'"{line}"' for line in PINS.split())
        locked.write(
            f'[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = [{listed}]\n',
            "pyproject.toml",
        )
    if name.endswith("lock.toml"):
        locked.write(PINS, "in.txt")
        uv(locked, "pip", "compile", "-q", "in.txt", "--format", "pylock.toml", "-o", "pylock.toml")
    if name == "uv.lock":
        uv(locked, "lock", "-q")
    locked.write(f'variant = "cpu"\npython = "{name}"\napt = ["tree"]\n')
    locked.call("lock")
    assert {wheel.version for wheel in wheels(locked.lock).values()} == {"0.8.1", "25.0"}
    assert locked.check() == []
    path = locked.folder / ("more.txt" if name == "requirements.txt" else name)
    path.write_text(path.read_text().replace("0.8.1", "0.8.0"))
    assert any("einops==0.8.0" in one for one in locked.check(code=1))


def uv(place, *words):
    subprocess.run(
        [BIN / "uv", *words, "--python", sys.executable], cwd=place.folder, env=place.environment, check=True
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("einops @ https://example.org/einops-0.8.1-py3-none-any.whl", "taken from an address"),
        ("-e .", "is no package of an index"),
        ("--no-binary :all:", "is not taken"),
        ("einops=0.8", "is no requirement"),
    ],
)
def test_a_list_with_what_no_lock_can_hold_is_refused(line, told, locked):
    locked.write(f"{line}\n", "requirements.txt").write('python = "requirements.txt"\n')
    for words in (["lock"], ["lock", "--check"]):
        assert told in locked.call(*words, code=2).stderr


def test_a_hash_in_the_list_decides_which_file_is_locked(locked):
    sha256 = wheels(locked.lock)["einops"].sha256
    locked.write('variant = "cpu"\npython = "requirements.txt"\napt = ["tree"]\n')
    version = wheels(locked.lock)["einops"].version
    locked.write(f"einops=={version} --hash=sha256:{sha256}\n", "requirements.txt").call("lock")
    assert locked.check() == []
    locked.write(f"einops=={version} \\\n  --hash=sha256:{'0' * 64}\n", "requirements.txt")
    assert any("hashes" in one for one in locked.check(code=1))
    assert "with the hash that is asked for" in locked.call("lock", code=125).stderr


def test_a_private_index_and_its_password_are_pips_and_reach_nothing_that_is_written(locked, tmp_path):
    (tmp_path / "files").mkdir()
    wheel = make_wheel(tmp_path / "files", requires=["einops"])
    with Index(tmp_path / "files", password="me:s3cr3tp4ss") as index:
        own = {"PIP_EXTRA_INDEX_URL": f"{os.environ.get('PIP_EXTRA_INDEX_URL', '')} {index.url}".strip()}
        locked.write(PROJECT.replace('"einops"', '"secretpkg"'))
        lock = locked.call("lock", environment=own)
        fetch = locked.call("fetch", "--json", environment=own)
        path = next(file for file in json.loads(fetch.stdout)["files"] if file["file"] == wheel.name)
        assert path["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert any(authorization for _, _, authorization in index.asked)
        host = index.host
    assert wheels(locked.lock)["secretpkg"].requires == ("einops",)
    written = [locked.path.read_text(), lock.stdout, lock.stderr, fetch.stdout, fetch.stderr]
    assert not any(word in text for text in written for word in ("s3cr3tp4ss", host))
    locked.call("fetch", "--offline", offline=True)


def test_a_source_distribution_is_taken_only_where_it_is_allowed_and_the_lock_remembers(locked, tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    source = tmp_path / "oldpkg-1.0"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "oldpkg"\nversion = "1.0"\n'
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.2\nName: oldpkg\nVersion: 1.0\n")
    subprocess.run(["tar", "-czf", house / "oldpkg-1.0.tar.gz", "-C", tmp_path, "oldpkg-1.0"], check=True)
    own = {"PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {house}".strip()}
    locked.write(PROJECT.replace('"einops"', '"oldpkg"'))
    assert "oldpkg" in locked.call("lock", environment=own, code=125).stderr
    locked.call("lock", "--allow-sdist", "oldpkg", environment=own)
    (sdist,) = locked.lock.sdists_for("cpu")
    assert (sdist.name, sdist.file) == ("oldpkg", "oldpkg-1.0.tar.gz")
    locked.call("lock", environment=own)
    assert locked.lock.sdists == (sdist,)
    fetched = json.loads(locked.call("fetch", "--json", environment=own).stdout)
    assert sdist.sha256 in {file["sha256"] for file in fetched["files"]}


def source_of(folder, name, marker, needs=""):
    """A source distribution whose build code leaves a marker, and tells what it needs when it is run alone."""
    source = folder / f"{name}-1.0"
    source.mkdir()
    (source / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n')
    (source / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (source / "b.py").write_text(f"""
import os
open({str(marker / name)!r}, "w")
def get_requires_for_build_wheel(config=None): return []
def prepare_metadata_for_build_wheel(folder, config=None):
    made = os.path.join(folder, "{name}-1.0.dist-info")
    os.mkdir(made)
    open(made + "/METADATA", "w").write("Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n{needs}")
    return "{name}-1.0.dist-info"
""")
    subprocess.run(["tar", "-czf", folder / f"{name}-1.0.tar.gz", "-C", folder, source.name], check=True)


def test_lock_says_before_it_runs_build_code_and_runs_none_that_is_not_allowed(locked, tmp_path):
    house, marks = tmp_path / "house", tmp_path / "marks"
    house.mkdir()
    marks.mkdir()
    source_of(house, "okaypkg", marks, "Requires-Dist: evilpkg\\n")
    source_of(house, "evilpkg", marks)
    own = {
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {house}".strip(),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
    }
    locked.write(PROJECT.replace('"einops"', '"okaypkg"'))
    assert "okaypkg" in locked.call("lock", environment=own, code=125).stderr
    assert os.listdir(marks) == []
    refused = locked.call("lock", "--allow-sdist", "okaypkg", environment=own, code=125).stderr
    assert os.listdir(marks) == ["okaypkg"]
    assert "okaypkg has no wheel: its own build code is run on this machine" in refused
    locked.call("lock", "--allow-sdist", "okaypkg", "--allow-sdist", "evilpkg", environment=own)
    assert {one.name for one in locked.lock.sdists} == {"okaypkg", "evilpkg"}
