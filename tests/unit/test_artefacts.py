"""The cache of package files, and what a fetch takes from it and from folders, without a network."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest
from support.said import Said

from reprobox.errors import ArtefactError
from reprobox.images import fetching
from reprobox.images.artefacts import ArtefactCache, Downloader
from reprobox.images.fetching import artefacts_of, fetch, locked_variants
from reprobox.images.lockmodel import Inputs, Lock, LockedDeb, LockedWheel

CONTENT = b"a wheel"
SHA = hashlib.sha256(CONTENT).hexdigest()
FILE = "thing-1.0-py3-none-any.whl"


def wheel(content=CONTENT, name="thing", variants=("cpu",), platforms=("x86_64",)):
    return LockedWheel(
        name=name,
        version="1.0",
        file=f"{name}-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(content).hexdigest(),
        variants=variants,
        platforms=platforms,
    )


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def cache(tmp_path, said):
    return ArtefactCache(root=tmp_path / "cache" / "artefacts", say=said.say)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "house" / FILE
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def files(cache):
    return sorted(str(path.relative_to(cache.root)) for path in cache.root.rglob("*") if path.is_file())


def test_a_file_lies_under_its_hash_and_keeps_its_name(cache, source):
    assert cache.find(SHA, FILE) is None
    placed = cache.add(source, SHA, FILE)
    assert placed == cache.root / "sha256" / SHA[:2] / SHA / FILE == cache.find(SHA, FILE)
    assert placed.read_bytes() == CONTENT
    assert source.exists()


def test_a_file_of_another_content_is_never_taken_in(cache, source):
    source.write_bytes(b"another")
    assert cache.add(source, SHA, FILE) is None
    assert files(cache) == []


def test_a_damaged_file_is_said_removed_and_no_longer_found(cache, source, said):
    placed = cache.add(source, SHA, FILE)
    placed.write_bytes(b"a wheeI")
    assert cache.find(SHA, FILE) is None
    assert said.lines == [f"the cached {FILE} is damaged and is removed"]
    assert not placed.exists()


def test_the_same_content_under_another_name_is_found(cache, source):
    cache.add(source, SHA, FILE)
    other = "thing-1.0-py2.py3-none-any.whl"
    assert cache.find(SHA, other) == cache.place(SHA, other)
    assert cache.place(SHA, other).read_bytes() == CONTENT


def test_a_copy_that_stops_half_way_leaves_nothing_to_be_found(cache, source, monkeypatch):
    def half(_source, target):
        with open(target, "wb") as file:
            file.write(CONTENT[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", half)
    with pytest.raises(ArtefactError, match="No space"):
        cache.add(source, SHA, FILE)
    assert files(cache) == []


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room for"), (errno.EROFS, "see why")])
def test_a_file_that_this_machine_cannot_keep_is_a_sentence_whoever_brings_it(
    cache, source, said, no_network, monkeypatch, number, remedy
):
    def refuse(_from, to):
        raise OSError(number, os.strerror(number), str(to))

    monkeypatch.setattr("shutil.copyfile", refuse)
    with pytest.raises(ArtefactError, match="cannot be kept") as caught:
        cache.add(source, SHA, FILE)
    assert caught.value.remedy.startswith(remedy)
    assert files(cache) == []
    with pytest.raises(ArtefactError, match="cannot be kept"):
        fetch([wheel()], cache=cache, report=said, offline=True, wheelhouses=[source.parent])


def test_a_download_of_a_file_address_is_verified_too(cache, source):
    downloader = Downloader(cache=cache, environment={})
    assert downloader.fetch(source.as_uri(), SHA, FILE, lambda _: None).read_bytes() == CONTENT
    source.write_bytes(b"another")
    with pytest.raises(ArtefactError, match=f"is not the {FILE} of the lock"):
        downloader.fetch(source.as_uri(), "0" * 64, FILE, lambda _: None)


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("https://me:p%40ss@index.example/simple", ("me", "p@ss")),
        ("corp=https://me:p%40ss@index.example/simple", ("me", "p@ss")),
        ("https://me:p%40ss@other.example/simple", None),
        ("https://index.example/simple", None),
    ],
)
def test_a_password_goes_to_the_host_it_was_given_for_and_to_no_other(cache, address, known):
    downloader = Downloader(cache=cache, environment={"UV_INDEX": f"https://x.example/ {address}"})
    assert downloader._session("https://index.example/files/a.whl").auth == known


# ------------------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was asked")

    for way in ("by_address", "through_pip", "through_apt"):
        monkeypatch.setattr(fetching._Fetch, way, refuse)


def test_what_is_cached_is_not_fetched(cache, source, said, no_network):
    cache.add(source, SHA, FILE)
    done = fetch([wheel()], cache=cache, report=said, offline=True)
    assert done.files == {SHA: cache.place(SHA, FILE)}
    assert done.cached == 1
    assert done.to_json()["fetched"] == 0


def test_a_wheelhouse_fills_the_cache(cache, source, said, no_network):
    done = fetch([wheel()], cache=cache, report=said, offline=True, wheelhouses=[source.parent])
    assert done.files[SHA] == cache.place(SHA, FILE)
    assert done.to_json()["fetched"] == 1


def test_a_wheelhouse_with_another_content_under_the_name_is_of_no_use(cache, source, said, no_network):
    source.write_bytes(b"another")
    with pytest.raises(ArtefactError, match=FILE):
        fetch([wheel()], cache=cache, report=said, offline=True, wheelhouses=[source.parent])


def test_the_cache_of_an_earlier_version_is_used(cache, source, said, no_network):
    earlier = cache.root.parent / "wheels" / SHA / FILE
    earlier.parent.mkdir(parents=True)
    os.link(source, earlier)
    assert fetch([wheel()], cache=cache, report=said, offline=True).files[SHA] == cache.place(SHA, FILE)


def test_offline_names_what_is_missing_and_keeps_what_is_there(cache, source, said, no_network):
    cache.add(source, SHA, FILE)
    deb = LockedDeb(
        name="git",
        version="1:2",
        architecture="amd64",
        file="git_1%3a2_amd64.deb",
        sha256="d" * 64,
        platforms=("x86_64",),
    )
    with pytest.raises(ArtefactError) as caught:
        fetch([wheel(), wheel(b"2", "other"), deb], cache=cache, report=said, offline=True)
    assert caught.value.message == "the cache lacks other-1.0-py3-none-any.whl, git_1%3a2_amd64.deb"
    assert "--offline" in caught.value.remedy
    assert cache.find(SHA, FILE)


def test_where_this_machine_cannot_keep_a_file_no_index_is_blamed(cache, said, no_network, monkeypatch):
    full = ArtefactError(f"{FILE} cannot be kept (No space left on device)", remedy="make room")
    full.__cause__ = OSError(28, "No space left on device")

    def fails(with_problem):
        def by_address(job, artefacts, _files):
            job.problems[artefacts[0].sha256] = with_problem

        monkeypatch.setattr(fetching._Fetch, "by_address", by_address)
        with pytest.raises(ArtefactError) as caught:
            fetch([wheel()], cache=cache, report=said)
        return caught.value.remedy

    for way in ("through_pip", "through_apt"):
        monkeypatch.setattr(fetching._Fetch, way, lambda *_: None)
    assert fails(full) == "make room"
    assert "configure an index" in fails(ArtefactError("refused", remedy="log in"))


def test_a_long_list_of_missing_files_is_cut_in_the_sentence_and_whole_in_the_detail(cache, said, no_network):
    many = [wheel(str(number).encode(), f"thing{number}") for number in range(30)]
    with pytest.raises(ArtefactError, match="and 22 more") as caught:
        fetch(many, cache=cache, report=said, offline=True)
    assert len(caught.value.detail.splitlines()) == 30


def test_a_wheelhouse_that_is_no_folder_is_refused(cache, source, said):
    with pytest.raises(ArtefactError, match="is not a folder"):
        fetch([wheel()], cache=cache, report=said, offline=True, wheelhouses=[source])


def test_each_file_of_the_asked_images_is_fetched_once():
    both, cuda, arm = (
        wheel(variants=("cpu", "cuda"), platforms=("x86_64", "aarch64")),
        wheel(b"2", "torch", variants=("cuda",)),
        wheel(b"3", "numpy", platforms=("aarch64",)),
    )
    lock = Lock(inputs=Inputs(variants=("cpu", "cuda")), wheels=(both, cuda, arm))
    assert artefacts_of(lock, ["cpu"], ["x86_64"]) == (both,)
    assert set(artefacts_of(lock, ["cpu", "cuda"], ["x86_64"])) == {both, cuda}
    assert set(artefacts_of(lock, ["cpu"], ["x86_64", "aarch64"])) == {both, arm}


def test_an_image_that_is_not_locked_is_refused():
    lock = Lock(inputs=Inputs(variants=("cpu",)))
    assert locked_variants(lock, []) == ("cpu",)
    with pytest.raises(Exception, match="the cuda image is not in the lock"):
        locked_variants(lock, ["cuda"])
