"""What a requirements file asks for, and the files that it names, however often and in whichever order."""

from __future__ import annotations

import pytest

from reprobox.errors import ArtefactError
from reprobox.images.requirements import Requirements, read_requirements
from reprobox.images.uv import folder_for_uv


@pytest.fixture
def read(tmp_path):
    """Write files by name and read the one called requirements.txt."""

    def read(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.txt").write_text(text)
        return read_requirements("requirements.txt", tmp_path)

    return read


@pytest.mark.parametrize("lines", ["-c both.txt\n-r both.txt\n", "-r both.txt\n-c both.txt\n"])
def test_a_file_that_is_named_with_c_and_with_r_limits_and_is_asked_for(read, lines):
    found = read(requirements=f"{lines}einops\n", both="--index-url https://i.example/simple\nnumpy<3\n")
    assert found == Requirements(
        lines=("einops", "numpy<3"), constraints=("numpy<3",), options=("--index-url https://i.example/simple",)
    )


def test_a_file_that_is_named_with_c_alone_is_not_asked_for(read):
    assert read(requirements="-c limits.txt\neinops\n", limits="numpy<3\n") == Requirements(
        lines=("einops",), constraints=("numpy<3",)
    )


def test_whatever_a_file_of_limits_names_limits_too(read):
    assert read(requirements="-c limits.txt\n", limits="-r more.txt\n", more="numpy<3\n").lines == ()


def test_files_that_name_one_another_are_read_once_as_each(read):
    found = read(requirements="-r other.txt\na\n", other="-r requirements.txt\n-c requirements.txt\nb\n")
    assert (found.lines, found.constraints) == (("a", "b"), ("a", "b"))


def test_where_no_temporary_folder_can_be_made_that_is_said_and_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(ArtefactError, match="no temporary folder can be made") as caught, folder_for_uv():
        pass
    assert "TMPDIR" in caught.value.remedy
