"""What is made of uv's answers: the file that is chosen for a package, and where it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from reprobox.images import resolve
from reprobox.images.requirements import Requirements
from reprobox.images.resolve import Resolver

A, B = "a" * 64, "b" * 64
PACKAGE = """
[[packages]]
name = "alpha"
version = "1.0"
wheels = [{wheel}]
sdist = {sdist}
"""


@pytest.fixture
def uv_says(monkeypatch):
    """Have uv answer with this text of a pylock.toml, wherever it is to write it."""

    def says(**files):
        def run_uv(words, *_, **__):
            if "--output-file" in words:
                output = Path(words[words.index("--output-file") + 1])
                output.write_text(PACKAGE.format(**files), encoding="utf-8")
            return "alpha==1.0"

        monkeypatch.setattr(resolve, "run_uv", run_uv)

    return says


def chosen(name=frozenset()):
    (found,) = (
        Resolver(environment={}, sdists=name)
        .resolve(Requirements(lines=("alpha",)), (), variant="cpu", platform="x86_64", preferred={})
        .found
    )
    return found.file, found.sha256, found.url


SDIST = f'{{ path = "/house/alpha-1.0.tar.gz", hashes = {{ sha256 = "{B}" }} }}'


@pytest.mark.parametrize(
    ("where", "address"),
    [
        (
            'url = "https://i.example/a%2B/alpha-1.0-py3-none-any.whl"',
            "https://i.example/a%2B/alpha-1.0-py3-none-any.whl",
        ),
        ('path = "/my house/alpha-1.0-py3-none-any.whl"', "file:///my%20house/alpha-1.0-py3-none-any.whl"),
    ],
    ids=["url", "path"],
)
def test_a_file_has_an_address_however_uv_says_where_it_is(uv_says, where, address):
    uv_says(wheel=f'{{ {where}, hashes = {{ sha256 = "{A}" }} }}', sdist=SDIST)
    assert chosen() == ("alpha-1.0-py3-none-any.whl", A, address)
    found = Resolver(environment={}).locate([("alpha", "1.0")], "x86_64")
    assert found == {A: address, B: "file:///house/alpha-1.0.tar.gz"}


def test_a_path_counts_from_the_list_and_outlives_it(uv_says, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uv_says(wheel=f'{{ path = "../house/alpha-1.0-py3-none-any.whl", hashes = {{ sha256 = "{A}" }} }}', sdist=SDIST)
    assert chosen()[2] == (tmp_path / "house" / "alpha-1.0-py3-none-any.whl").as_uri()


def test_a_file_of_which_nothing_says_where_it_is_or_what_it_holds_is_passed_over(uv_says):
    uv_says(
        wheel='{ name = "alpha-1.0-py3-none-any.whl" }, { url = "https://i.example/alpha-1.0-py2.py3-none-any.whl" }',
        sdist=SDIST,
    )
    assert Resolver(environment={}).locate([("alpha", "1.0")], "x86_64") == {B: "file:///house/alpha-1.0.tar.gz"}
    assert chosen(frozenset({"alpha"})) == ("alpha-1.0.tar.gz", B, "file:///house/alpha-1.0.tar.gz")
