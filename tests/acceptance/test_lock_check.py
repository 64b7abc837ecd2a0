"""``reprobox lock --check``: each way in which project and lock can disagree is found, without a network."""

from __future__ import annotations

import re

import pytest
from support.locking import PROJECT, wheels

from reprobox.images.lockfile import dump_lock, parse_lock_file


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
