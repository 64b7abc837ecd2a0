"""``reprobox init``, ``lock`` and ``fetch`` as a user types them, with the real uv, pip and apt."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cli import BIN, ROOT, clean_environment
from support.index import Index, make_wheel

from reprobox.images.lockfile import dump_lock, parse_lock_file, read_lock
from reprobox.images.locking import base_pins

PROJECT = """\
variant = "cpu"
python = [
    "einops",
    "tomli<2.4",
    "packaging",
]
apt = ["tree"]
"""


class Place:
    """A project folder and a cache of its own."""

    def __init__(self, folder, cache, environment=None):
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**clean_environment(), "XDG_CACHE_HOME": str(cache), **(environment or {})}

    @property
    def path(self):
        return self.folder / "reprobox.lock"

    @property
    def lock(self):
        return read_lock(self.path)

    def write(self, text=PROJECT, name="reprobox.toml"):
        (self.folder / name).write_text(text)
        return self

    NO_NETWORK = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-n", "-r")

    def call(self, *words, code=0, offline=False, environment=None):
        """Run ``reprobox WORDS``; with ``offline`` in a network that has no way out."""
        prefix = self.NO_NETWORK if offline else ()
        done = subprocess.run(
            [*prefix, BIN / "reprobox", *words],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def check(self, code=0):
        """The differences that ``lock --check`` finds without a network."""
        document = json.loads(self.call("lock", "--check", "--json", code=code, offline=True).stdout)
        assert document["schema"] == "reprobox.lock-check/1"
        assert document["same"] == (code == 0)
        return document["differences"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The project, locked once: asking uv and apt takes most of a minute."""
    folder = tmp_path_factory.mktemp("lock")
    place = Place(folder / "project", folder / "cache").write()
    place.said = place.call("lock").stderr
    return place


@pytest.fixture
def locked(first, tmp_path):
    """A fresh copy of the locked project."""
    place = Place(tmp_path / "project", first.cache).write()
    shutil.copy(first.path, place.path)
    return place


def wheels(lock, platform="x86_64", layer="project"):
    return {wheel.name: wheel for wheel in lock.wheels_for("cpu", platform, layer=layer)}


# --------------------------------------------------------------------------------------------------------------- lock


def test_a_lock_has_exact_versions_and_hashes_for_both_platforms(first):
    lock = first.lock
    for platform in ("x86_64", "aarch64"):
        assert wheels(lock, platform).keys() == {"einops", "tomli", "packaging"}
    tomli = [wheel for wheel in lock.wheels if wheel.name == "tomli"]
    assert {wheel.version for wheel in tomli} <= {"2.3.0", "2.3.1", "2.3.2", "2.3.3"}
    assert {one for one in ("x86_64", "aarch64") if any(one in wheel.file for wheel in tomli)} == {"x86_64", "aarch64"}
    assert all(wheel.size for wheel in lock.wheels)


def test_the_base_of_the_lock_is_reproboxs_own(first):
    base = wheels(first.lock, layer="base")
    assert base["torch"].version == "2.13.0+cpu"
    assert base["torch"].file == "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert {"filelock", "jinja2", "sympy"} <= set(base["torch"].requires) <= base.keys()


def test_what_no_index_of_this_machine_has_is_said_by_name(first):
    missing = first.lock.missing_for("cpu", "aarch64")
    assert [str(one.name) for one in missing] in (["torch"], [])
    assert bool(missing) == ("no index of this machine has torch==2.13.0+cpu" in first.said)


def test_debian_packages_are_locked_with_the_ones_asked_for(first):
    for platform, architecture in (("x86_64", "amd64"), ("aarch64", "arm64")):
        debs = {deb.name: deb for deb in first.lock.debs_for(platform)}
        assert {"tree", "dpkg", "apt", "g++", "tini", "python3-venv", "libc6"} <= debs.keys()
        assert debs["tree"].architecture == architecture
        assert all(deb.architecture in (architecture, "all") for deb in debs.values())


def test_no_address_is_in_a_lock(first):
    text = first.path.read_text()
    addresses = [word for word in re.findall(r"\S+", text) if "://" in word or word.startswith(('"/', '"file:'))]
    assert addresses == []
    assert str(first.folder) not in text


def test_locking_again_changes_nothing_and_says_so(locked):
    before = locked.path.stat().st_mtime_ns, locked.path.read_bytes()
    document = json.loads(locked.call("lock", "--json").stdout)
    assert document["schema"] == "reprobox.lock-result/1"
    assert (document["written"], document["changes"]) == (False, [])
    assert (locked.path.stat().st_mtime_ns, locked.path.read_bytes()) == before


def test_a_new_wish_changes_what_it_must_and_keeps_the_other_versions(locked):
    version = wheels(locked.lock)["tomli"].version
    locked.write(PROJECT.replace('"tomli<2.4"', '"tomli", "idna"'))
    said = locked.call("lock").stderr
    assert re.search(r"reprobox: \+ idna \d", said)
    assert wheels(locked.lock)["tomli"].version == version
    assert locked.check() == []


def test_upgrade_takes_the_newest_that_fits(locked):
    old = wheels(locked.lock)["tomli"].version
    locked.write(PROJECT.replace("tomli<2.4", "tomli"))
    locked.call("lock", "--upgrade")
    new = wheels(locked.lock)["tomli"].version
    assert tuple(map(int, new.split("."))) >= (2, 4) > tuple(map(int, old.split(".")))[:2]


def test_a_version_that_the_new_wish_excludes_is_not_kept(locked):
    locked.write(PROJECT.replace("tomli<2.4", "tomli<2.1"))
    locked.call("lock")
    assert wheels(locked.lock)["tomli"].version.startswith("2.0.")


def test_the_cuda_image_is_locked_for_both_platforms_with_reproboxs_own_files(locked):
    locked.write(PROJECT.replace('"cpu"', '"cuda"')).call("lock")
    lock, pins = locked.lock, {pin.name: pin for pin in base_pins("cuda")}
    base = {wheel.name: wheel for wheel in lock.wheels_for("cuda", layer="base")}
    assert {name: (wheel.version, wheel.sha256 in pins[name].hashes) for name, wheel in base.items()} == {
        name: (pin.version, True) for name, pin in pins.items()
    }
    other = {wheel.name: wheel for wheel in lock.wheels_for("cuda", "aarch64")}
    assert other["torch"].version == base["torch"].version
    assert "aarch64" in other["torch"].file
    assert "nvidia-nccl-cu13" in other["torch"].requires
    assert lock.missing == ()
    assert locked.check() == []


def test_a_wish_against_the_base_is_refused_in_one_sentence(locked):
    before = locked.path.read_bytes()
    locked.write(PROJECT.replace("tomli<2.4", "numpy<2"))
    done = locked.call("lock", code=125)
    assert re.search(r"numpy.*; change the requirement", done.stderr.splitlines()[-1])
    assert locked.path.read_bytes() == before


def test_a_package_that_does_not_exist_is_refused_by_name(locked):
    locked.write(PROJECT.replace("tomli<2.4", "reprobox-no-such-package-1b2c"))
    assert "reprobox-no-such-package-1b2c" in locked.call("lock", code=125).stderr.splitlines()[-1]


def test_a_debian_package_that_does_not_exist_is_refused_by_name(locked):
    locked.write(PROJECT.replace("tree", "no-such-package-1b2c"))
    assert "no-such-package-1b2c" in locked.call("lock", code=125).stderr.splitlines()[-1]


@pytest.fixture
def alone(fetched, tmp_path):
    """An environment with no index but a folder of the CPU image's wheels: no CUDA torch can be had there."""
    house = tmp_path / "house"
    house.mkdir()
    for path in (fetched.cache / "reprobox" / "artefacts" / "sha256").rglob("*.whl"):
        os.link(path, house / path.name)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house)}


def test_without_an_index_a_variant_that_cannot_be_had_is_left_out_by_name(locked, alone):
    locked.write(PROJECT.replace('variant = "cpu"\n', ""))
    said = locked.call("lock", environment=alone).stderr
    assert re.search(
        r"the cuda image is left out: no index of this machine has cuda-bindings==\S+ .*and \d+ more", said
    )
    assert locked.lock.inputs.variants == ("cpu",)
    assert wheels(locked.lock).keys() == {"einops", "tomli", "packaging"}
    assert locked.check() == []


def test_a_variant_that_was_asked_for_and_cannot_be_had_is_an_error(locked, alone):
    before = locked.path.read_bytes()
    locked.write(PROJECT.replace('variant = "cpu"', 'variant = "cuda"'))
    assert "which the cuda image holds" in locked.call("lock", environment=alone, code=125).stderr
    assert locked.path.read_bytes() == before


# -------------------------------------------------------------------------------------------------------------- check


def test_a_lock_that_fits_passes_without_a_network(locked):
    assert locked.check() == []


def test_a_pin_edited_in_the_project_is_found(locked):
    locked.write(PROJECT.replace("tomli<2.4", "tomli==2.0.1"))
    found = locked.check(code=1)
    assert "python: the project asks for tomli==2.0.1, which the lock does not know" in found
    assert any(
        re.fullmatch(r"cpu on x86_64: the lock has tomli==2.3\S+, and the project asks for tomli==2.0.1", one)
        for one in found
    )


@pytest.mark.parametrize(
    "edit", [("einops-0", "einops-9"), ('name = "einops"\nversion = "0', 'name = "einops"\nversion = "9')]
)
def test_a_pin_edited_in_the_lock_is_found(edit, locked):
    text = locked.path.read_text()
    locked.path.write_text(text.replace(*edit))
    assert locked.path.read_text() != text
    (found,) = locked.check(code=1)
    assert "einops was edited" in found


def test_a_hash_edited_in_the_lock_is_found(locked):
    sha256 = wheels(locked.lock)["einops"].sha256
    locked.path.write_text(locked.path.read_text().replace(sha256, "0" * 64))
    assert "einops was edited" in locked.check(code=1)[0]


def test_a_package_removed_from_the_project_is_found(locked):
    locked.write(PROJECT.replace('    "einops",\n', ""))
    assert locked.check(code=1) == ["python: the lock was made for einops, which the project no longer asks for"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("einops", "cpu on x86_64: einops is not in the lock"),
        ("numpy", "of reprobox's own image is not in the lock"),
        ("markupsafe", "markupsafe, which jinja2=="),
    ],
)
def test_a_package_removed_from_the_lock_is_found(name, told, locked):
    header, *tables = locked.path.read_text().split("\n[[")
    kept = [table for table in tables if f'wheel]]\nname = "{name}"\n' not in table]
    assert len(kept) < len(tables)
    locked.path.write_text("\n[[".join([header, *kept]))
    assert any(told in one for one in locked.check(code=1))


def test_a_debian_package_removed_from_the_lock_is_found(locked):
    lock = locked.lock
    vars(lock)["debs"] = tuple(deb for deb in lock.debs if deb.name != "tree")
    locked.path.write_text(dump_lock(lock))
    assert locked.check(code=1) == [
        f"Debian on {platform}: tree is not in the lock" for platform in ("x86_64", "aarch64")
    ]


def test_a_changed_base_is_found(locked):
    lock = locked.lock
    vars(lock.inputs)["base"] = {**lock.inputs.base, "cpu": "sha256:" + "0" * 64}
    locked.path.write_text(dump_lock(lock))
    assert locked.check(code=1) == [
        "base: the list of the cpu image's packages of reprobox changed since the lock was made"
    ]


def test_another_torch_in_the_base_is_found(locked):
    text = dump_lock(locked.lock)
    lock = parse_lock_file(text)
    torch = next(wheel for wheel in lock.wheels if wheel.name == "torch")
    vars(torch).update(version="2.12.0+cpu", file=torch.file.replace("2.13.0", "2.12.0"))
    locked.path.write_text(dump_lock(lock))
    assert any("torch==2.12.0+cpu, and reprobox's own image torch==2.13.0+cpu" in one for one in locked.check(code=1))


def test_a_changed_apt_list_and_another_variant_are_found(locked):
    locked.write(PROJECT.replace("tree", "git").replace('"cpu"', '"cuda"'))
    found = locked.check(code=1)
    assert {
        "apt: the project asks for git, which the lock does not know",
        "apt: the lock was made for tree, which the project no longer asks for",
    } <= set(found)
    assert "variant: the project asks for cuda, and the lock is of cpu" in found


def test_a_missing_lock_fails_the_check_and_a_newer_one_cannot_be_checked(locked):
    text = locked.path.read_text()
    locked.path.unlink()
    assert locked.check(code=1) == ["there is no reprobox.lock"]
    locked.path.write_text(text.replace("reprobox.lock/1", "reprobox.lock/9"))
    assert "newer reprobox" in locked.call("lock", "--check", code=125).stderr


# ------------------------------------------------------------------------------------------------ where packages are listed


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


# ------------------------------------------------------------------------------------------------------ private packages


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


# --------------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture(scope="module")
def fetched(first):
    """The first project with everything in its cache."""
    first.fetch = json.loads(first.call("fetch", "--json").stdout)
    return first


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
os.umask(int(sys.argv[1], 8))
said, debs = Said(), require_lock(Path()).debs_for()
files = fetch(debs, cache=ArtefactCache(root=artefact_folder(), say=said.say), report=said, offline=True).files
print(make_locked_base(debs, files, cache=Path(sys.argv[2]), report=said).stem)
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


# ---------------------------------------------------------------------------------------------------------------- init


def test_init_writes_a_project_file_once(tmp_path):
    place = Place(tmp_path / "p", tmp_path / "c")
    done = place.call("init")
    path = place.folder / "reprobox.toml"
    assert done.stdout.strip() == str(path)
    assert tomllib.loads(path.read_text()) == {}
    path.write_text("seed = 1\n")
    assert "there is a reprobox.toml already" in place.call("init", code=2).stderr
    assert path.read_text() == "seed = 1\n"
    assert json.loads(place.call("init", "--force", "--json").stdout) == {
        "schema": "reprobox.init/1",
        "path": str(path),
    }
    assert "# python = " in path.read_text()
