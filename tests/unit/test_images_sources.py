import io
import tarfile

import pytest

from reprobox import __version__
from reprobox.errors import BuildError
from reprobox.images import input_digest, local_tag, sources
from reprobox.images.context import EPOCH, context_file, write_context


@pytest.fixture
def package(tmp_path):
    """A checkout in small: the files an image is made of, one of each kind, and some that are not its business."""
    contents = {
        "Dockerfile": "FROM x\n",
        "docker/entrypoint": "#!/usr/bin/python3\n",
        "docker/locks/cpu.txt": "a==1 --hash=sha256:0\n",
        "docker/locks/cuda.txt": "b==1 --hash=sha256:0\n",
        "docker/locks/relock.py": "pass\n",
        "docker/.hidden": "",
        "reprobox/__init__.py": "",
        "reprobox/errors.py": "",
        "reprobox/knobs.py": "",
        "reprobox/recipe.py": "",
        "reprobox/settings.py": "",
        "reprobox/box/__init__.py": "",
        "reprobox/box/site/sitecustomize.py": "",
        "reprobox/box/__pycache__/x.py": "",
        "reprobox/box/notes.txt": "",
    }
    for name, text in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "reprobox"


def digest(package, variant="cpu", version="1"):
    files = sources.image_files(variant, package=package)
    return sources.digest_of({name: path.read_bytes() for name, path in files.items()}, version)


def test_the_context_holds_what_the_dockerfile_copies_and_this_variants_lock_only(package):
    assert list(sources.image_files("cuda", package=package)) == [
        "Dockerfile",
        "docker/entrypoint",
        "docker/locks/cuda.txt",
        "reprobox/__init__.py",
        "reprobox/box/__init__.py",
        "reprobox/box/site/sitecustomize.py",
        "reprobox/errors.py",
        "reprobox/knobs.py",
        "reprobox/recipe.py",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile", "docker/entrypoint", "docker/locks/cpu.txt", "reprobox/__init__.py", "reprobox/errors.py",
        "reprobox/knobs.py", "reprobox/recipe.py", "reprobox/box/__init__.py", "reprobox/box/site/sitecustomize.py",
        "docker/new", "reprobox/box/new.py", "docker/locks/base.txt",
    ],
)  # fmt: skip
def test_each_input_changes_the_digest(package, name):
    before = digest(package)
    path = package.parent / name
    path.write_text((path.read_text() if path.exists() else "") + "# changed\n")
    assert digest(package) != before


@pytest.mark.parametrize(
    "name", ["docker/locks/cuda.txt", "docker/locks/relock.py", "reprobox/settings.py", "reprobox/box/notes.txt"]
)
def test_what_is_not_in_the_image_leaves_the_digest_alone(package, name):
    before = digest(package)
    (package.parent / name).write_text("changed")
    assert digest(package) == before


def test_a_moved_line_between_two_files_and_a_new_version_change_the_digest(package):
    before = digest(package)
    assert digest(package, version="2") != before
    (package / "errors.py").write_text("x")
    one = digest(package)
    (package / "errors.py").write_text("")
    (package / "recipe.py").write_text("x")
    assert len({before, one, digest(package)}) == 3


def test_an_installed_package_is_built_from_its_own_data_files(package):
    data = package / "_image"
    data.mkdir()
    (package.parent / "Dockerfile").rename(data / "Dockerfile")
    (package.parent / "docker").rename(data / "docker")
    assert sources.image_root(package) == data
    assert "docker/locks/cpu.txt" in sources.image_files("cpu", package=package)


def test_an_installation_without_its_dockerfile_is_named(tmp_path):
    with pytest.raises(BuildError, match="Dockerfile"):
        sources.image_root(tmp_path / "reprobox")


def test_a_file_that_is_missing_is_named(package):
    (package / "recipe.py").unlink()
    with pytest.raises(BuildError, match=r"reprobox/recipe\.py"):
        sources.image_files("cpu", package=package)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_local_tag_names_version_variant_and_input(variant):
    inputs = input_digest(variant)
    assert len(inputs) == 64
    assert local_tag(variant) == f"reprobox:{__version__}-{variant}-{inputs[:12]}"


def test_the_context_tar_is_the_same_bytes_whatever_order_dates_and_modes_the_files_have(tmp_path):
    def tar(order, mode):
        files = {}
        for name in order:
            path = tmp_path / name.replace("/", "-")
            path.write_text(name)
            path.chmod(mode)
            files[name] = path
        out = io.BytesIO()
        write_context(files, out)
        return out.getvalue()

    names = ["Dockerfile", "docker/entrypoint", "wheels/a.whl", "reprobox/box/site/x.py"]
    first = tar(names, 0o600)
    assert first == tar(names[::-1], 0o777)
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        members = {member.name: member for member in archive}
    assert {member.mtime for member in members.values()} == {EPOCH}
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}
    assert members["docker/entrypoint"].mode == 0o755
    assert members["wheels/a.whl"].mode == 0o644
    assert members["reprobox/box/site"].isdir()


def test_the_context_on_disk_has_the_same_bytes_and_leaves_nothing_behind(tmp_path):
    files = {"Dockerfile": b"FROM x\n"}
    expected = io.BytesIO()
    write_context(files, expected)
    with context_file(files, tmp_path / "contexts") as context:
        assert context.read() == expected.getvalue()
    assert list((tmp_path / "contexts").iterdir()) == []
