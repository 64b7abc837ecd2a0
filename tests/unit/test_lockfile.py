"""reprobox.lock as text and back: the same lock, the same text; and what is not one is refused with the reason."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprobox.errors import LockDamaged, LockError
from reprobox.images.lockfile import dump_lock, parse_lock_file, read_lock, require_lock, write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedDeb, LockedImage, LockedSdist, LockedWheel, Missing

A, B, C = "a" * 64, "b" * 64, "c" * 64
BOTH = ("x86_64", "aarch64")
EINOPS = LockedWheel(
    name="einops", version="0.8.2", file="einops-0.8.2-py3-none-any.whl", sha256=A, size=64_000,
    variants=("cpu", "cuda"), platforms=BOTH,
)  # fmt: skip
TORCH = LockedWheel(
    name="torch", version="2.13.0+cpu", file="torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", sha256=B,
    layer="base", variants=("cpu",), platforms=("x86_64",), requires=("einops",),
)  # fmt: skip
OLD = LockedSdist(
    name="antlr4", version="4.9", file="antlr4-4.9.tar.gz", sha256=C, variants=("cpu",), platforms=("x86_64",)
)
GPP = LockedDeb(
    name="g++", version="4:12.2.0-3", architecture="amd64", file="g++_4%3a12.2.0-3_amd64.deb", sha256=C, size=1,
    platforms=("x86_64",),
)  # fmt: skip
LOCK = Lock(
    inputs=Inputs(
        variants=("cpu", "cuda"),
        python=("einops>=0.8 ; python_version < '3.13'", "-c numpy<3"),
        apt=("git",),
        sdists=("antlr4",),
        base={"cpu": f"sha256:{A}", "debian": f"sha256:{B}"},
    ),
    wheels=(EINOPS, TORCH),
    sdists=(OLD,),
    debs=(GPP,),
    missing=(Missing(name="torch", version="2.13.0+cpu", variant="cpu", platform="aarch64"),),
    images={"cpu": LockedImage(config_digest=f"sha256:{C}", torch="2.13.0+cpu")},
)
TEXT = dump_lock(LOCK)


def same(lock):
    """A lock with everything in the order in which it is written."""
    return replace(lock, inputs=replace(lock.inputs, python=tuple(sorted(lock.inputs.python))))


def test_a_lock_that_is_written_is_read_as_it_was(tmp_path):
    write_lock(tmp_path / "reprobox.lock", LOCK)
    assert read_lock(tmp_path / "reprobox.lock") == require_lock(tmp_path) == same(LOCK)


def test_the_order_of_packages_changes_nothing_in_the_text():
    assert dump_lock(replace(LOCK, wheels=(TORCH, EINOPS))) == TEXT
    assert dump_lock(replace(LOCK, wheels=(TORCH,))) != TEXT


def test_one_more_package_is_one_more_block_of_lines():
    more = replace(EINOPS, name="tomli", version="2.5.0", file="tomli-2.5.0-py3-none-any.whl", sha256=C)
    longer = dump_lock(replace(LOCK, wheels=(*LOCK.wheels, more)))
    lines = iter(longer.splitlines())
    assert all(line in lines for line in TEXT.splitlines()), "a line that was there is gone or moved"


def test_packages_added_on_two_branches_merge_as_text():
    first = replace(EINOPS, name="attrs", version="1", file="attrs-1-py3-none-any.whl", sha256=B)
    second = replace(EINOPS, name="tomli", version="2", file="tomli-2-py3-none-any.whl", sha256=C)
    block = {
        one.name: dump_lock(replace(LOCK, wheels=(one,))).split("[[wheel]]")[1].split("[[sdist]]")[0]
        for one in (first, second)
    }
    ours = dump_lock(replace(LOCK, wheels=(first, *LOCK.wheels)))
    merged = ours.replace("[[sdist]]", f"[[wheel]]{block['tomli']}[[sdist]]")
    assert {wheel.name for wheel in parse_lock_file(merged).wheels} == {"attrs", "einops", "tomli", "torch"}


def test_there_is_no_lock_where_there_is_no_file(tmp_path):
    assert read_lock(tmp_path / "reprobox.lock") is None
    with pytest.raises(LockError, match=r"has no reprobox.lock; write one: reprobox lock"):
        require_lock(tmp_path)


def test_a_lock_of_a_newer_reprobox_is_refused_as_such():
    with pytest.raises(LockError, match="newer reprobox") as caught:
        parse_lock_file(TEXT.replace("reprobox.lock/1", "reprobox.lock/2"))
    assert not isinstance(caught.value, LockDamaged)


def test_fields_that_are_not_known_are_passed_over():
    assert parse_lock_file(TEXT.replace('name = "torch"\nversion', 'colour = "red"\nname = "torch"\nversion')) == same(
        LOCK
    )


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("reprobox.lock/1", "poetry.lock/1", "schema"),
        ('version = "0.8.2"', 'version = "0.8.1"', "einops was edited"),
        ("einops-0.8.2", "einops-0.8.1", "einops was edited"),
        (A, C, "einops was edited"),
        ("size = 64000", "size = 64001", "einops was edited"),
        ("size = 64000", "size = -1", "size in bytes"),
        ('variants = ["cpu"]', 'variants = ["tpu"]', "list of variants"),
        ('platforms = ["x86_64"]', "platforms = []", "list of platforms"),
        ('version = "4:12.2.0-3"', 'version = "4:12.2.0-4"', "g\\+\\+"),
        (f'config_digest = "sha256:{C}"', "", "no config_digest"),
        ("[images.cpu]", "[images.tpu]", "images.tpu"),
        ("[inputs]", "[outputs]", "inputs has no list of variants"),
        ("[inputs", "[outputs", r"no table \[inputs\]"),
        ("[[wheel]]", "[[wheel]", "not valid TOML"),
        ("[[missing]]", "<<<<<<< HEAD\n[[missing]]", "unfinished merge"),
        ("manylinux_2_28_x86_64.whl", "manylinux.txt", "torch was edited"),
        ('file = "einops', 'file = "../einops', "the file of"),
    ],
)  # fmt: skip
def test_what_is_no_lock_is_refused_and_what_is_wrong_is_named(old, new, named):
    assert old in TEXT
    with pytest.raises(LockDamaged, match=named) as caught:
        parse_lock_file(TEXT.replace(old, new), source="x.lock")
    assert "x.lock is damaged" in str(caught.value)
    assert caught.value.exit_code == 125


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (
            replace(EINOPS, version="0.8.1"),
            "einops==0.8.1 and its file einops-0.8.2-py3-none-any.whl are of two packages",
        ),
        (replace(EINOPS, file="einops-0.8.2.txt"), "is no wheel"),
        (replace(EINOPS, file="torch-0.8.2-py3-none-any.whl"), "of two packages"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused_though_it_is_sealed(entry, named):
    with pytest.raises(LockDamaged, match=named):
        parse_lock_file(dump_lock(replace(LOCK, wheels=(entry,))))


def test_a_package_that_a_merge_kept_twice_is_refused():
    other = replace(
        EINOPS, version="0.8.1", file="einops-0.8.1-py3-none-any.whl", platforms=("x86_64",), variants=("cpu",)
    )
    with pytest.raises(LockDamaged, match="einops is in it twice for x86_64"):
        parse_lock_file(dump_lock(replace(LOCK, wheels=(EINOPS, other))))
    apart = replace(EINOPS, variants=("cuda",))
    assert len(parse_lock_file(dump_lock(replace(LOCK, wheels=(apart, other)))).wheels) == 2


def test_an_images_files_are_those_of_its_variant_platform_and_layer():
    assert LOCK.wheels_for("cpu") == (EINOPS, TORCH)
    assert LOCK.wheels_for("cpu", layer="project") == (EINOPS,)
    assert LOCK.wheels_for("cpu", "aarch64") == LOCK.wheels_for("cuda") == (EINOPS,)
    assert LOCK.sdists_for("cuda") == LOCK.debs_for("aarch64") == LOCK.missing_for("cuda", "aarch64") == ()
    assert [one.name for one in LOCK.missing_for("cpu", "aarch64")] == ["torch"]


def test_the_digest_of_an_image_follows_from_its_packages_alone():
    digest = LOCK.digest("cpu")
    assert replace(LOCK, images={}, inputs=replace(LOCK.inputs, python=())).digest("cpu") == digest
    assert replace(LOCK, debs=()).digest("cpu") != digest
    assert replace(LOCK, wheels=(replace(EINOPS, sha256=B), TORCH)).digest("cpu") != digest
    assert replace(LOCK, wheels=(EINOPS,)).digest("cuda") == LOCK.digest("cuda")


def test_an_image_is_noted_beside_the_others():
    noted = LOCK.with_image("cuda", LockedImage(config_digest=f"sha256:{A}", driver="580.1"))
    assert parse_lock_file(dump_lock(noted)).images == noted.images
    assert noted.images.keys() == {"cpu", "cuda"}


# ------------------------------------------------------------------------------------------------ whatever is read

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?", fullmatch=True)
VERSIONS = st.from_regex(r"[1-9][0-9]{0,3}(\.[0-9]{1,3}){0,2}(\+cpu)?", fullmatch=True).map(
    lambda v: re.sub(r"\b0+(\d)", r"\1", v)
)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def wheels(draw):
    name, version = draw(NAMES), draw(VERSIONS)
    return LockedWheel(
        name=name,
        version=version,
        file=f"{name.replace('-', '_')}-{version}-py3-none-any.whl",
        sha256=draw(HASHES),
        size=draw(st.none() | st.integers(0, 2**62)),
        layer=draw(st.sampled_from(["base", "project"])),
        variants=draw(st.sampled_from([("cpu",), ("cuda",), ("cpu", "cuda")])),
        platforms=draw(st.sampled_from([("x86_64",), ("aarch64",), BOTH])),
        requires=tuple(sorted(draw(st.sets(NAMES, max_size=3)))),
    )


LOCKS = st.builds(
    Lock,
    inputs=st.builds(
        Inputs,
        variants=st.sampled_from([(), ("cpu",), ("cpu", "cuda")]),
        python=st.sets(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4).map(lambda s: tuple(sorted(s))),
        apt=st.sets(NAMES, max_size=3).map(lambda s: tuple(sorted(s))),
        base=st.just({"cpu": f"sha256:{A}"}),
    ),
    wheels=st.lists(wheels(), max_size=6, unique_by=lambda one: one.name).map(
        lambda some: tuple(sorted(some, key=lambda one: (one.name, one.version, one.file)))
    ),
)


@given(LOCKS)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_every_lock_is_read_as_it_was_written_and_written_as_it_was_read(lock):
    text = dump_lock(lock)
    assert parse_lock_file(text) == lock
    assert dump_lock(parse_lock_file(text)) == text


@given(st.integers(0, len(TEXT) - 1), st.text(st.characters(codec="utf-8"), max_size=3), st.integers(0, 40))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_a_lock_that_was_damaged_anywhere_is_refused_in_words_or_means_the_same(at, put, cut):
    text = TEXT[:at] + put + TEXT[at + cut :]
    with contextlib.suppress(LockError):
        found = parse_lock_file(text)
        # What no package's seal covers may have changed: inputs, images and whole entries that are gone.
        assert set(found.wheels) <= set(LOCK.wheels)
        assert set(found.debs) <= set(LOCK.debs)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_other_text_is_refused_in_words(text):
    with pytest.raises(LockError):
        parse_lock_file(text)
