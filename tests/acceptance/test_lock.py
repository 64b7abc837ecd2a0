"""``reprobox lock`` as a user types it, with the real uv, pip and apt."""

from __future__ import annotations

import json
import os
import re

import pytest
from support.locking import PROJECT, wheels

from reprobox.images.locking import base_pins


def test_a_lock_has_exact_versions_and_hashes_for_both_platforms(locked_once):
    lock = locked_once.lock
    for platform in ("x86_64", "aarch64"):
        assert wheels(lock, platform).keys() == {"einops", "tomli", "packaging"}
    tomli = [wheel for wheel in lock.wheels if wheel.name == "tomli"]
    assert {wheel.version for wheel in tomli} <= {"2.3.0", "2.3.1", "2.3.2", "2.3.3"}
    assert {one for one in ("x86_64", "aarch64") if any(one in wheel.file for wheel in tomli)} == {"x86_64", "aarch64"}
    assert all(wheel.size for wheel in lock.wheels)


def test_the_base_of_the_lock_is_reproboxs_own(locked_once):
    base = wheels(locked_once.lock, layer="base")
    assert base["torch"].version == "2.13.0+cpu"
    assert base["torch"].file == "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert {"filelock", "jinja2", "sympy"} <= set(base["torch"].requires) <= base.keys()


def test_what_no_index_of_this_machine_has_is_said_by_name(locked_once):
    missing = locked_once.lock.missing_for("cpu", "aarch64")
    assert [str(one.name) for one in missing] in (["torch"], [])
    assert bool(missing) == ("no index of this machine has torch==2.13.0+cpu" in locked_once.said)


def test_debian_packages_are_locked_with_the_ones_asked_for(locked_once):
    for platform, architecture in (("x86_64", "amd64"), ("aarch64", "arm64")):
        debs = {deb.name: deb for deb in locked_once.lock.debs_for(platform)}
        assert {"tree", "dpkg", "apt", "g++", "tini", "python3-venv", "libc6"} <= debs.keys()
        assert debs["tree"].architecture == architecture
        assert all(deb.architecture in (architecture, "all") for deb in debs.values())


def test_no_address_is_in_a_lock(locked_once):
    text = locked_once.path.read_text()
    addresses = [word for word in re.findall(r"\S+", text) if "://" in word or word.startswith(('"/', '"file:'))]
    assert addresses == []
    assert str(locked_once.folder) not in text


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
